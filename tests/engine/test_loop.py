"""Inside a workflow asyncio does what it does elsewhere, and does it again in every replay."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import math
import os
import random
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future as ThreadFuture
from typing import Any

import pytest

from engine import Context, loop, values
from engine.errors import ForeignAwaitError, StepFailedError
from engine.model import Entry, Kind, Mark, Step
from engine.replay import Replay
from tests.engine.protocol.passes import START, begin, closed, failure, fired, replayed, result

Code = Callable[..., Coroutine[Any, Any, Any]]


def nothing() -> str:
    """What the steps of these workflows would execute: here nothing does, see `live`."""
    return ""


async def step(ctx: Context, name: str, after: float = 0.0) -> str:
    """One side effect, whose value here is its name."""
    if after:
        await asyncio.sleep(after)
    return await ctx.run(name, nothing)


def value(step: Step, sequence: int) -> Entry:
    data = values.encode(step.name)
    time_ns = START + sequence * 1_000_000
    return Entry(sequence, time_ns, step.number, 1, step.kind, step.digest, step.name, "value", data.type, data.data)


def live(code: Code, draw: random.Random | None = None, fail: str = "") -> tuple[Replay, list[Entry]]:
    """A run to its end and its journal: functions return in order of issue, or as drawn; timers fire when they are
    all that is left; the step called `fail` fails.
    """
    replay = begin(code)
    entries: list[Entry] = []
    while replay.outcome is None:
        replay.take_effects()
        waiting = replay.open_steps()
        runs = [step for step in waiting if step.kind == Kind.RUN]
        if runs:
            chosen = draw.choice(runs) if draw else runs[0]
        else:
            chosen = min(waiting, key=lambda step: step.due_ns)
        number = len(entries) + 1
        if chosen.kind == Kind.SLEEP:
            entries.append(fired(chosen, number, at=(chosen.due_ns - START) / 1e9))
        elif chosen.name == fail:
            entries.append(closed(chosen, number, Mark.GAVE_UP, "broken"))
        else:
            entries.append(value(chosen, number))
        replay.feed(entries[-1])
    return replay, entries


def asked_for(replay: Replay) -> list[tuple[str, str]]:
    return [(step.title, step.digest) for step in replay.steps]


def play(code: Code, draw: random.Random | None = None, fail: str = "") -> Any:
    """The result of a run, once it is certain that every replay, complete or not, asks for the same steps."""
    replay, entries = live(code, draw, fail)
    again = replayed(code, *entries)
    assert asked_for(again) == asked_for(replay)
    assert again.outcome is not None
    assert replay.outcome is not None
    assert (again.outcome.result, again.outcome.failure is None) == (replay.outcome.result, True)
    for count in range(len(entries)):
        part = replayed(code, *entries[:count])
        assert part.outcome is None
        assert asked_for(part) == asked_for(replay)[: len(part.steps)]
        part.put_away()
    return result(replay)


# --- what a user of plain asyncio expects


def test_gather_keeps_the_order_of_its_arguments() -> None:
    async def code(ctx: Context) -> list[str]:
        return await asyncio.gather(*(step(ctx, name) for name in "abcd"))

    for seed in range(5):
        assert play(code, random.Random(seed)) == ["a", "b", "c", "d"]


def test_gather_collects_exceptions_where_asked() -> None:
    async def code(ctx: Context) -> list[str]:
        found = await asyncio.gather(step(ctx, "a"), step(ctx, "b"), return_exceptions=True)
        return [type(item).__name__ for item in found]

    assert play(code, fail="b") == ["str", "StepFailedError"]


def test_task_group_waits_for_all_of_its_tasks() -> None:
    async def code(ctx: Context) -> list[str]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(step(ctx, name)) for name in "abc"]
        return [task.result() for task in tasks]

    assert play(code) == ["a", "b", "c"]


def test_failing_child_of_a_task_group_cancels_its_siblings() -> None:
    async def sibling(ctx: Context, name: str, seen: list[str]) -> None:
        try:
            await step(ctx, name, after=60)
        except asyncio.CancelledError:
            await step(ctx, f"undo {name}")
            seen.append(name)
            raise

    async def code(ctx: Context) -> list[str]:
        seen: list[str] = []
        try:
            async with asyncio.TaskGroup() as group:
                for name in "abcdefgh":
                    group.create_task(sibling(ctx, name, seen))
                group.create_task(step(ctx, "bad"))
        except* StepFailedError as errors:
            seen.append(str(len(errors.exceptions)))
        return seen

    names = play(code, fail="bad")
    assert (sorted(names[:-1]), names[-1]) == (list("abcdefgh"), "1")


def test_first_completed_is_the_same_in_every_pass() -> None:
    async def code(ctx: Context) -> list[str]:
        pending = {asyncio.create_task(step(ctx, name)) for name in "abcdef"}
        order: list[str] = []
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            order += [task.result() for task in done]
            await step(ctx, f"{len(order)} done")
        return order

    for seed in range(5):
        assert sorted(play(code, random.Random(seed))) == list("abcdef")


def test_tasks_that_end_together_come_out_of_a_set_in_the_same_order() -> None:
    """asyncio's sets are ordered by hashes, which elsewhere are addresses."""

    async def code(ctx: Context) -> list[str]:
        gate = asyncio.Event()

        async def waiter(name: str) -> str:
            await gate.wait()
            return name

        tasks = {asyncio.create_task(waiter(name)) for name in "abcdefghijkl"}
        await step(ctx, "first")
        gate.set()
        done, _ = await asyncio.wait(tasks)
        return [await step(ctx, task.result()) for task in done]

    assert sorted(play(code)) == list("abcdefghijkl")


def test_as_completed_begins_its_coroutines_in_the_order_given() -> None:
    async def code(ctx: Context) -> list[str]:
        return [await first for first in asyncio.as_completed([step(ctx, name) for name in "abcdefghijkl"])]

    replay, _ = live(code)
    assert [step.name for step in replay.steps] == list("abcdefghijkl")
    for seed in range(5):
        assert sorted(play(code, random.Random(seed))) == list("abcdefghijkl")


def test_as_completed_with_a_timeout() -> None:
    async def code(ctx: Context) -> str:
        try:
            for first in asyncio.as_completed([asyncio.sleep(5), asyncio.sleep(50)], timeout=10):
                await first
        except TimeoutError:
            return f"{ctx.now().timestamp() * 1e9 - START:g}"
        return "all"

    assert float(play(code)) == pytest.approx(10e9, rel=1e-6)


@pytest.mark.parametrize("at", [False, True])
def test_timeout_ends_what_takes_longer(at: bool) -> None:
    async def code(ctx: Context) -> list[Any]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout_at(began + 2) if at else asyncio.timeout(2):
                await asyncio.sleep(60)
        except TimeoutError:
            return [await step(ctx, "late"), loop.time() - began]
        return ["in time"]

    name, seconds = play(code)
    assert (name, seconds) == ("late", pytest.approx(2, abs=0.01))


def test_timeout_that_is_not_reached_disturbs_nothing() -> None:
    async def code(ctx: Context) -> list[Any]:
        async with asyncio.timeout(30) as limit:
            first = await step(ctx, "a")
        second = await asyncio.wait_for(step(ctx, "b"), 30)
        return [first, second, limit.expired()]

    assert play(code) == ["a", "b", False]


def test_wait_for_cancels_what_it_gave_up() -> None:
    async def code(ctx: Context) -> list[str]:
        seen: list[str] = []

        async def slow() -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(slow(), 1)
        return seen

    assert play(code) == ["cancelled"]


def test_shield_lets_the_inner_task_go_on() -> None:
    async def code(ctx: Context) -> list[str]:
        inner = asyncio.create_task(step(ctx, "kept", after=5))
        try:
            async with asyncio.timeout(1):
                await asyncio.shield(inner)
        except TimeoutError:
            return ["timeout", await inner]
        return []

    assert play(code) == ["timeout", "kept"]


def test_queue_between_producer_and_consumers() -> None:
    async def code(ctx: Context) -> list[str]:
        queue: asyncio.Queue[str] = asyncio.Queue(maxsize=1)
        got: list[str] = []

        async def consume() -> None:
            while True:
                got.append(await step(ctx, await queue.get()))
                queue.task_done()

        consumers = [asyncio.create_task(consume()) for _ in range(2)]
        for name in "abcd":
            await queue.put(name)
        await queue.join()
        for consumer in consumers:
            consumer.cancel()
        await asyncio.gather(*consumers, return_exceptions=True)
        return got

    assert play(code) == ["a", "b", "c", "d"]


def test_event_lock_semaphore_and_condition() -> None:
    async def code(ctx: Context) -> dict[str, Any]:
        event, lock, few, condition = asyncio.Event(), asyncio.Lock(), asyncio.Semaphore(2), asyncio.Condition()
        inside = most = 0
        order: list[str] = []

        async def worker(name: str) -> None:
            nonlocal inside, most
            await event.wait()
            async with few:
                inside += 1
                most = max(most, inside)
                await step(ctx, name)
                inside -= 1
            async with lock:
                order.append(await step(ctx, f"{name} alone"))
            async with condition:
                condition.notify_all()

        workers = [asyncio.create_task(worker(name)) for name in "abcde"]
        await step(ctx, "ready")
        event.set()
        async with condition:
            await condition.wait_for(lambda: len(order) == 5)
        await asyncio.gather(*workers)
        return {"most": most, "order": order}

    for seed in range(3):
        found = play(code, random.Random(seed))
        assert found["most"] == 2
        assert sorted(found["order"]) == [f"{name} alone" for name in "abcde"]


def test_nested_tasks() -> None:
    async def tree(ctx: Context, depth: int, name: str) -> str:
        if depth == 0:
            return await step(ctx, name)
        left, right = await asyncio.gather(tree(ctx, depth - 1, f"{name}l"), tree(ctx, depth - 1, f"{name}r"))
        return left + right

    async def code(ctx: Context) -> str:
        return await asyncio.create_task(tree(ctx, 3, ""))

    assert play(code, random.Random(1)) == "".join(f"{a}{b}{c}" for a in "lr" for b in "lr" for c in "lr")


def test_cancelled_task_sees_it_and_its_step_is_not_waited_for() -> None:
    async def code(ctx: Context) -> list[Any]:
        task = asyncio.create_task(step(ctx, "long", after=1000))
        await step(ctx, "short")
        task.cancel("enough")
        try:
            await task
        except asyncio.CancelledError as error:
            return [*error.args, task.cancelled(), await step(ctx, "after")]
        return []

    assert play(code) == ["enough", True, "after"]


def test_workflow_that_cancels_itself_fails_of_it() -> None:
    async def code(ctx: Context) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await ctx.sleep(1)

    assert failure(begin(code)).type == "CancelledError"


def test_context_variables_are_each_tasks_own() -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nobody")

    async def code(ctx: Context) -> list[str]:
        async def worker(own: str) -> str:
            name.set(own)
            await step(ctx, own)
            return name.get()

        seen = await asyncio.gather(worker("a"), worker("b"))
        name.set("main")
        called: list[str] = []
        asyncio.get_running_loop().call_soon(lambda: called.append(name.get()))
        asyncio.get_running_loop().call_later(1, lambda: called.append(name.get()))
        name.set("later")
        await asyncio.sleep(2)
        return [*seen, *called, name.get()]

    assert play(code) == ["a", "b", "main", "main", "later"]
    assert name.get() == "nobody"


def test_async_generators_and_context_managers() -> None:
    async def code(ctx: Context) -> list[str]:
        async def numbers() -> AsyncIterator[str]:
            for n in range(3):
                yield await step(ctx, str(n))

        return [name async for name in numbers()]

    assert play(code) == ["0", "1", "2"]


async def test_dropped_async_generator_is_finished_inside_the_workflow() -> None:
    """Not by the event loop around it, whose turn no replay can repeat."""

    async def code(ctx: Context) -> list[str]:
        seen: list[str] = []

        async def numbers() -> AsyncIterator[str]:
            try:
                while True:
                    yield await step(ctx, "next")
            finally:
                seen.append(await step(ctx, "finally"))

        async for _ in numbers():
            break
        await step(ctx, "after")
        await ctx.sleep(1)
        return seen

    assert play(code) == ["finally"]
    assert sys.get_asyncgen_hooks().finalizer is not None, "those of the loop around are there again"


def test_exceptions_nobody_awaits_are_nobodys(capsys: pytest.CaptureFixture[str]) -> None:
    async def code(ctx: Context) -> str:
        asyncio.create_task(step(ctx, "bad"))  # noqa: RUF006  # that is the point
        asyncio.get_running_loop().create_future().set_exception(ValueError("unseen"))
        await asyncio.sleep(1)
        return await step(ctx, "good")

    assert play(code, fail="bad") == "good"
    gc.collect()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("delay", [0, -1, -math.inf, -0.0])
def test_sleep_of_no_time_is_no_step(delay: float) -> None:
    async def code(ctx: Context) -> str:
        await asyncio.sleep(delay)
        await ctx.sleep(delay)
        return "at once"

    replay = begin(code)
    assert result(replay) == "at once"
    assert replay.steps == []


def test_sleep_of_nan_is_an_error_at_once() -> None:
    async def code(ctx: Context) -> None:
        await asyncio.sleep(math.nan)

    assert failure(begin(code)).type == "ValueError"


@pytest.mark.parametrize("delay", [math.inf, 1e12, 1e300])
def test_sleep_for_ever_is_a_timer_that_can_be_stored(delay: float) -> None:
    async def code(ctx: Context) -> None:
        await asyncio.sleep(delay)

    replay = begin(code)
    assert replay.outcome is None
    (step,) = replay.take_effects()
    assert 99 * 365 * 86_400 < (step.due_ns - START) / 1e9 < 101 * 366 * 86_400
    assert step.due_ns < 1 << 63


def test_time_stands_still_between_inputs() -> None:
    async def code(ctx: Context) -> list[float]:
        loop = asyncio.get_running_loop()
        times = [loop.time()]
        for _ in range(100):
            await asyncio.sleep(0)
        times.append(loop.time())
        await asyncio.sleep(3.5)
        times.append(loop.time())
        return times

    first, second, third = play(code)
    assert first == second == START / 1e9
    assert third - first == pytest.approx(3.5)


def test_names_of_tasks_are_the_same_in_every_pass() -> None:
    async def named(ctx: Context) -> str:
        task = asyncio.current_task()
        assert task is not None
        return await step(ctx, task.get_name())

    async def code(ctx: Context) -> tuple[str, ...]:
        return await asyncio.gather(named(ctx), named(ctx), asyncio.create_task(named(ctx), name="own"))

    assert play(code)[2] == "own"


def test_sleeps_fire_in_the_order_of_their_entries() -> None:
    async def code(ctx: Context) -> list[str]:
        order: list[str] = []

        async def sleeper(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            order.append(name)

        await asyncio.gather(sleeper("c", 3), sleeper("a", 1), sleeper("b", 2))
        return order

    assert play(code) == ["a", "b", "c"]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_what_would_end_the_process_ends_the_run(error: type[BaseException]) -> None:
    async def code(ctx: Context) -> None:
        raise error

    assert failure(begin(code)).type == error.__name__


async def test_two_runs_and_the_loop_around_them_do_not_see_each_other() -> None:
    outer = asyncio.get_running_loop()

    async def code(ctx: Context) -> bool:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        await step(ctx, "a")
        return loop is asyncio.get_running_loop() and loop is not outer and asyncio.current_task() is task

    task = asyncio.current_task()
    first, second = begin(code), begin(code)
    second.feed(value(second.steps[0], 1))
    first.feed(value(first.steps[0], 1))
    assert (result(first), result(second)) == (True, True)
    assert (asyncio.get_running_loop(), asyncio.current_task()) == (outer, task)


# --- what reaches outside


async def _open_connection(_ctx: Context) -> None:
    await asyncio.open_connection("127.0.0.1", 1)


async def _start_server(_ctx: Context) -> None:
    await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)


async def _to_thread(_ctx: Context) -> None:
    await asyncio.to_thread(nothing)


async def _run_in_executor(_ctx: Context) -> None:
    await asyncio.get_running_loop().run_in_executor(None, nothing)


async def _subprocess(_ctx: Context) -> None:
    await asyncio.create_subprocess_exec("true")


async def _shell(_ctx: Context) -> None:
    await asyncio.create_subprocess_shell("true")


async def _add_reader(_ctx: Context) -> None:
    asyncio.get_running_loop().add_reader(0, nothing)


async def _signal(_ctx: Context) -> None:
    asyncio.get_running_loop().add_signal_handler(15, nothing)


async def _threadsafe(_ctx: Context) -> None:
    asyncio.get_running_loop().call_soon_threadsafe(nothing)


async def _getaddrinfo(_ctx: Context) -> None:
    await asyncio.get_running_loop().getaddrinfo("localhost", 80)


async def _stop(_ctx: Context) -> None:
    asyncio.get_running_loop().stop()


FOREIGN = [
    _open_connection,
    _start_server,
    _to_thread,
    _run_in_executor,
    _subprocess,
    _shell,
    _add_reader,
    _signal,
    _threadsafe,
    _getaddrinfo,
    _stop,
]


def assert_foreign(replay: Replay) -> None:
    found = failure(replay)
    assert found.type == "ForeignAwaitError", found
    assert "ctx.run" in found.message


@pytest.mark.parametrize("reach", FOREIGN, ids=lambda reach: reach.__name__.strip("_"))
@pytest.mark.parametrize("swallowed", [False, True], ids=["raised", "swallowed"])
def test_reaching_outside_is_a_foreign_await(reach: Code, swallowed: bool) -> None:
    async def code(ctx: Context) -> str:
        try:
            await reach(ctx)
        except Exception:
            if not swallowed:
                raise
        return await step(ctx, "went on")

    replay = begin(code)
    assert_foreign(replay)
    assert replay.take_effects() == []


def test_every_method_of_an_event_loop_is_decided_upon() -> None:
    """A method that asyncio adds must not fall through to its NotImplementedError."""

    async def code(ctx: Context) -> list[str]:
        loop = asyncio.get_running_loop()
        plain = {name for name in vars(asyncio.AbstractEventLoop) if not name.startswith("__")}
        return sorted(name for name in plain if getattr(type(loop), name) is getattr(asyncio.AbstractEventLoop, name))

    left = result(begin(code))
    assert set(left) <= {"_timer_handle_cancelled"}, left


@pytest.mark.parametrize("swallowed", [False, True], ids=["raised", "swallowed"])
@pytest.mark.parametrize("how", ["await", "gather", "task group", "shield", "wait_for"])
async def test_future_of_another_loop_is_a_foreign_await(how: str, swallowed: bool) -> None:
    other = asyncio.get_running_loop().create_future()

    async def wait() -> None:
        await other

    async def reach() -> None:
        if how == "await":
            await other
        elif how == "gather":
            await asyncio.gather(other, other)
        elif how == "shield":
            await asyncio.shield(other)
        elif how == "wait_for":
            await asyncio.wait_for(wait(), 10)
        else:
            async with asyncio.TaskGroup() as group:
                group.create_task(wait())

    async def code(ctx: Context) -> str:
        try:
            await reach()
        except Exception:
            if not swallowed:
                raise
        return await step(ctx, "went on")

    assert_foreign(begin(code))
    other.cancel()


async def test_waiting_for_a_future_of_another_loop_beside_a_step_fails_when_it_is_done() -> None:
    other = asyncio.get_running_loop().create_future()

    async def code(ctx: Context) -> str:
        task = asyncio.create_task(step(ctx, "a"))
        await asyncio.wait({task, other}, return_when=asyncio.FIRST_COMPLETED)
        return "other" if other.done() else "task"

    replay = begin(code)
    other.set_result(None)
    await asyncio.sleep(0)
    replay.feed(value(replay.steps[0], 1))
    assert_foreign(replay)


async def test_event_that_runs_share_is_a_foreign_await() -> None:
    shared = asyncio.Event()

    async def waits(ctx: Context) -> str:
        other = asyncio.create_task(step(ctx, "a"))
        await shared.wait()
        return await other

    async def sets(ctx: Context) -> str:
        shared.set()
        return "set"

    first = begin(waits)
    assert result(begin(sets)) == "set"
    first.feed(value(first.steps[0], 1))
    assert_foreign(first)
    shared.clear()
    assert_foreign(begin(waits))


def test_future_of_a_thread_is_a_foreign_await() -> None:
    future: ThreadFuture[None] = ThreadFuture()

    async def code(ctx: Context) -> None:
        await asyncio.wrap_future(future)

    assert_foreign(begin(code))
    future.cancel()


def test_waiting_for_what_nobody_can_bring_about_is_a_foreign_await() -> None:
    async def code(ctx: Context) -> None:
        await asyncio.get_running_loop().create_future()

    assert_foreign(begin(code))


# --- put away


def test_put_away_code_issues_no_steps() -> None:
    said: list[str] = []

    async def code(ctx: Context) -> None:
        try:
            await step(ctx, "a")
        finally:
            said.append("finally")
            await ctx.run("cleanup", nothing)
            said.append("went on")

    replay = begin(code)
    replay.put_away()
    assert said == ["finally"]
    assert [step.name for step in replay.steps] == ["a"]


@pytest.mark.parametrize("what", ["sleep", "task", "gather", "timer", "lock", "group", "stub", "foreign"])
def test_put_away_code_gets_nothing_done(what: str) -> None:
    done: list[str] = []

    async def last_words(ctx: Context) -> None:
        if what == "sleep":
            await ctx.sleep(1)
        elif what == "task":
            await asyncio.create_task(step(ctx, "x"))
        elif what == "gather":
            await asyncio.gather(step(ctx, "x"), step(ctx, "y"))
        elif what == "timer":
            asyncio.get_running_loop().call_later(1, nothing)
        elif what == "lock":
            await asyncio.Queue[int]().get()
        elif what == "group":
            async with asyncio.TaskGroup() as group:
                group.create_task(step(ctx, "x"))
        elif what == "stub":
            await ctx.channel.unary_unary("/kit.Steps/A")(b"")
        else:
            await asyncio.to_thread(nothing)
        done.append(what)

    async def code(ctx: Context) -> None:
        try:
            await step(ctx, "a")
        finally:
            await last_words(ctx)

    replay = begin(code)
    replay.put_away()
    gc.collect()
    assert done == []
    assert len(replay.steps) == 1
    assert replay.outcome is None


async def test_put_away_is_silent(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    """Warnings are errors in these tests: "was never awaited", "ignored GeneratorExit" and the like fail it."""

    async def worker(ctx: Context, event: asyncio.Event) -> None:
        try:
            await step(ctx, "a", after=5)
        finally:
            await event.wait()

    async def code(ctx: Context) -> None:
        event = asyncio.Event()

        async def generator() -> AsyncIterator[int]:
            try:
                yield 1
                await event.wait()
            finally:
                await ctx.run("cleanup", nothing)

        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(worker(ctx, event))
            lost = asyncio.gather(step(ctx, "b"), step(ctx, "c"))
            try:
                async with asyncio.timeout(100):
                    async for _ in generator():
                        pass
            except BaseException:  # noqa: BLE001  # what user code does
                await asyncio.shield(lost)

    replay = begin(code)
    replay.put_away()
    del replay
    gc.collect()
    for _ in range(3):
        await asyncio.sleep(0)
    assert capsys.readouterr() == ("", "")
    assert caplog.records == []


def test_code_that_catches_everything_for_ever_gives_the_thread_back(caplog: pytest.LogCaptureFixture) -> None:
    enough = False

    async def code(ctx: Context) -> None:
        while not enough:
            try:
                await ctx.sleep(1)
            except BaseException:  # noqa: BLE001  # that is the point
                continue

    replay = begin(code)
    replay.put_away()
    assert "cannot be put away" in caplog.text
    assert len(replay.steps) == 1
    enough = True
    loop._unending.clear()


@pytest.mark.parametrize("ends", [False, True], ids=["put away", "ended"])
def test_nothing_of_a_run_stays_in_memory(ends: bool) -> None:
    class Local:
        """Something that workflow code holds."""

    kept: list[weakref.ref[Any]] = []

    async def code(ctx: Context) -> str:
        local = Local()
        kept.append(weakref.ref(local))

        async def child() -> str:
            own = Local()
            kept.append(weakref.ref(own))
            async with asyncio.timeout(50):
                return await step(ctx, "b")

        tasks = [asyncio.create_task(child()) for _ in range(3)]
        await step(ctx, "a")
        return (await asyncio.gather(*tasks))[0]

    if ends:
        replay, _ = live(code)
        assert result(replay) == "b"
    else:
        replay = begin(code)
        replay.feed(value(replay.steps[0], 1))
    kept.append(weakref.ref(replay))
    replay.put_away()
    del replay
    gc.collect()
    assert [ref() for ref in kept] == [None] * len(kept)


def test_frames_are_gone_without_the_garbage_collector() -> None:
    """A processor that holds many runs must not wait for it: what user code holds may be large."""

    class Local:
        pass

    kept: list[weakref.ref[Any]] = []

    async def code(ctx: Context) -> None:
        local = Local()
        kept.append(weakref.ref(local))
        await step(ctx, "a")

    replay = begin(code)
    gc.disable()
    try:
        replay.put_away()
        assert kept[0]() is None
    finally:
        gc.enable()


def test_asyncio_is_as_it_was_for_everybody_else() -> None:
    """`asyncio.wait` and `as_completed` keep the order of workflow code's awaitables, and are otherwise untouched."""

    async def main() -> tuple[set[str], set[str]]:
        async def same(name: str) -> str:
            await asyncio.sleep(0)
            return name

        done, pending = await asyncio.wait([asyncio.ensure_future(same(name)) for name in "aab"])
        assert pending == set()
        assert isinstance(done, set)
        return {task.result() for task in done}, {await item for item in asyncio.as_completed([same("x"), same("y")])}

    assert asyncio.run(main()) == ({"a", "b"}, {"x", "y"})


# --- cost


def _profiled(steps: int) -> int:
    """Function calls of a replay over a journal of so many sequential steps, per step in thousandths."""

    async def code(ctx: Context) -> int:
        for n in range(steps):
            await ctx.run(f"s{n}", nothing)
        return steps

    replay, entries = live(code)
    assert result(replay) == steps
    calls = 0

    def count(_frame: object, event: str, _arg: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    sys.setprofile(count)
    try:
        again = replayed(code, *entries)
    finally:
        sys.setprofile(None)
    assert result(again) == steps
    return calls * 1000 // steps


def test_ten_thousand_steps_replay_in_linear_work() -> None:
    assert _profiled(10_000) <= _profiled(2_000) * 1.02


def test_ten_thousand_steps_are_fed_without_looking_at_the_old_ones() -> None:
    """Work inside C functions (a scan of a list) is no call: so time too, loosely, as a ratio."""

    def seconds(steps: int) -> float:
        async def code(ctx: Context) -> None:
            for _ in range(steps):
                await ctx.run("s", nothing)

        _, entries = live(code)
        best = math.inf
        for _ in range(3):
            before = os.times()
            replayed(code, *entries)
            after = os.times()
            best = min(best, after.user + after.system - before.user - before.system)
        return best

    assert seconds(10_000) < 5 * 3 * max(seconds(2_000), 0.02)


@pytest.fixture(autouse=True)
def _no_loop_is_left_running() -> Iterator[None]:
    hooks = sys.get_asyncgen_hooks()
    yield
    assert sys.get_asyncgen_hooks() == hooks


def test_errors_name_the_way_out() -> None:
    assert issubclass(ForeignAwaitError, Exception), "user code may catch it; the run fails all the same"
