"""H12: a timer counts when its entry is stored, at the place of that entry, and not when a clock says so."""

from __future__ import annotations

import asyncio

import pytest

from engine import Context
from engine.model import Kind, Step
from tests.engine.protocol.passes import SECOND, START, answer, begin, fired, replayed, result


async def call_with_timeout(ctx: Context) -> str:
    """A call that may take one second, as the code's clock has it."""
    try:
        async with asyncio.timeout(1):
            return (await ctx.call("kit.Steps", "A", b"", bytes)).decode()
    except TimeoutError:
        return "too late"


async def two_sleeps(ctx: Context) -> list[float]:
    """When the code believes that it woke, in seconds after its start."""
    start = ctx.now().timestamp()
    woke = []
    for _ in range(2):
        await asyncio.sleep(1.5)
        woke.append(ctx.now().timestamp() - start)
    return woke


async def parallel_sleeps(ctx: Context) -> list[str]:
    """Three sleeps at once, the shortest issued last."""
    order: list[str] = []

    async def sleep(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        order.append(name)

    await asyncio.gather(sleep("long", 3), sleep("middle", 2), sleep("short", 1))
    return order


def test_an_answer_stored_before_the_fired_entry_wins_however_late_it_is() -> None:
    timer, call = _timer_and_call()
    replay = replayed(call_with_timeout, answer(call, 10, b"in time", at=5.0), fired(timer, 11, at=5.1))
    assert result(replay) == "in time"


def test_a_fired_entry_stored_before_the_answer_wins_by_its_place() -> None:
    timer, call = _timer_and_call()
    replay = replayed(call_with_timeout, answer(call, 11, b"in time", at=1.0), fired(timer, 10, at=1.0))
    assert result(replay) == "too late"


def test_a_late_answer_of_a_call_that_timed_out_is_no_input_of_what_follows() -> None:
    async def goes_on(ctx: Context) -> str:
        try:
            async with asyncio.timeout(1):
                seen = await ctx.call("kit.Steps", "A", b"", bytes)
        except TimeoutError:
            seen = b"too late"
        return (seen + b", " + await ctx.call("kit.Steps", "B", seen, bytes)).decode()

    steps = {step.kind: step for step in begin(goes_on).steps}
    timed_out = fired(steps[Kind.SLEEP], 10, at=1.0)
    after = replayed(goes_on, timed_out)
    assert [step.name for step in after.take_effects()] == ["Steps.B"]
    assert [step.name for step in after.open_steps()] == ["Steps.B"]
    late, last = answer(steps[Kind.CALL], 11, b"in time after all"), after.open_steps()[0]
    assert result(replayed(goes_on, timed_out, late, answer(last, 12, b"end"))) == "too late, end"
    assert result(replayed(goes_on, timed_out, answer(last, 11, b"end"), late)) == "too late, end"


def test_a_cancelled_call_is_not_waited_for() -> None:
    async def cancels(ctx: Context) -> str:
        call = asyncio.ensure_future(ctx.call("kit.Steps", "A", b"", bytes))
        await ctx.call("kit.Steps", "B", b"", bytes)
        call.cancel()
        return (await ctx.call("kit.Steps", "C", b"", bytes)).decode()

    # B is issued by the body itself, before the task of A has begun.
    b, a = begin(cancels).steps
    assert (a.name, b.name) == ("Steps.A", "Steps.B")
    replay = replayed(cancels, answer(b, 10))
    assert [step.name for step in replay.open_steps()] == ["Steps.C"]
    late = replayed(cancels, answer(b, 10), answer(a, 11, b"late"), answer(replay.steps[2], 12, b"c"))
    assert result(late) == "c"


def test_no_clock_fires_a_timer() -> None:
    timer, call = _timer_and_call()
    replay = replayed(call_with_timeout)
    assert replay.outcome is None
    assert [step.number for step in replay.open_steps()] == sorted([timer.number, call.number])


def test_a_timer_that_is_not_needed_any_more_is_no_effect() -> None:
    _, call = _timer_and_call()
    replay = replayed(call_with_timeout, answer(call, 10, b"in time"))
    assert result(replay) == "in time"
    assert replay.take_effects() == []
    assert replay.open_steps() == []


def test_a_timer_is_due_counted_from_the_server_time_of_the_newest_input() -> None:
    first = begin(two_sleeps).steps[0]
    assert first.due_ns == START + 1.5 * SECOND
    second = replayed(two_sleeps, fired(first, 10, at=2.0)).steps[1]
    assert second.due_ns == START + 3.5 * SECOND
    replay = replayed(two_sleeps, fired(first, 10, at=2.0), fired(second, 11, at=3.6))
    assert result(replay) == pytest.approx([2.0, 3.6])


def test_sleeps_wake_in_the_order_of_their_entries() -> None:
    long, middle, short = begin(parallel_sleeps).steps
    entries = [fired(short, 12, at=1), fired(middle, 10, at=2), fired(long, 11, at=3)]
    assert result(replayed(parallel_sleeps, *entries)) == ["middle", "long", "short"]


def test_time_never_goes_back_though_entries_times_do() -> None:
    first = begin(two_sleeps).steps[0]
    second = replayed(two_sleeps, fired(first, 10, at=9.0)).steps[1]
    replay = replayed(two_sleeps, fired(first, 10, at=9.0), fired(second, 11, at=4.0))
    assert result(replay) == pytest.approx([9.0, 9.0])


@pytest.mark.parametrize("seconds", [0, -1])
def test_a_sleep_that_is_over_stores_nothing(seconds: float) -> None:
    async def code(ctx: Context) -> str:
        await asyncio.sleep(seconds)
        return "awake"

    replay = replayed(code)
    assert result(replay) == "awake"
    assert replay.steps == []


def test_a_sleep_of_no_number_is_the_codes_own_error() -> None:
    async def code(ctx: Context) -> str:
        try:
            await asyncio.sleep(float("nan"))
        except ValueError:
            return "refused"
        return "slept"

    assert result(replayed(code)) == "refused"


def _timer_and_call() -> tuple[Step, Step]:
    steps = begin(call_with_timeout).steps
    timer = next(step for step in steps if step.kind == Kind.SLEEP)
    call = next(step for step in steps if step.kind == Kind.CALL)
    return timer, call
