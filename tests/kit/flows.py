"""The workflows that scenarios run: `mesh processor tests.kit.flows`.

Steps are calls to `kit.Steps`, a service that the test plays itself and that sees bytes, and bodies
of `ctx.run`, which write the ledger. Inputs are small JSON values.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

from engine import AwakeableRejectedError, CallFailedError, Context, RetryPolicy, StepFailedError, workflow
from protos.hello_pb2 import HelloRequest
from protos.hello_pb2_grpc import HelloServiceStub
from tests.kit.gates import Gate
from tests.kit.history import value_digest
from tests.kit.ledger import Ledger

PATIENT = RetryPolicy(initial_backoff=0.05, max_backoff=0.2)
"""Retries without a limit, fast enough for tests."""


async def call(ctx: Context, method: str, data: str = "", **options: Any) -> str:
    """A durable call to the test's own service."""
    options.setdefault("retry", PATIENT)
    return (await ctx.call("kit.Steps", method, data.encode(), bytes, **options)).decode()


def note(ctx: Context, step: str) -> str:
    """A side effect that leaves a line in the ledger and returns what nobody could guess."""
    value = secrets.token_hex(4)
    Ledger.of_environment().write("run", invocation=ctx.invocation_id, step=step, note=value)
    return value


async def gated(ctx: Context, step: str) -> str:
    """A side effect that begins, waits at the gate of its name, and ends."""
    ledger = Ledger.of_environment()
    ledger.write("begin", invocation=ctx.invocation_id, step=step)
    await Gate.of_environment(step).wait()
    ledger.write("end", invocation=ctx.invocation_id, step=step)
    return step


@workflow
async def echo(ctx: Context, value: str) -> str:
    """One call."""
    return await call(ctx, "Echo", value)


@workflow
async def other_echo(ctx: Context, value: str) -> str:
    """One call, under another name."""
    return await call(ctx, "Echo", value)


@workflow
async def noted(ctx: Context, value: str) -> str:
    """One side effect, counted."""
    return f"{value} {await ctx.run('note', note, ctx, 'note')}"


@workflow
async def held(ctx: Context, value: str) -> str:
    """A side effect that waits at a gate, between two that are counted."""
    first = await ctx.run("first", note, ctx, "first")
    await ctx.run("hold", gated, ctx, "hold")
    second = await ctx.run("second", note, ctx, "second")
    return f"{value} {first} {second}"


@workflow
async def call_run_sleep(ctx: Context, value: str) -> list[str]:
    """The three kinds of step, one after the other, twice."""
    seen = []
    for turn in ("1", "2"):
        seen.append(await call(ctx, f"Call{turn}", value))
        seen.append(await ctx.run(f"run{turn}", gated, ctx, f"{ctx.invocation_id}-run{turn}"))
        await asyncio.sleep(0.2)
    return seen


@workflow
async def three_calls(ctx: Context, value: str) -> list[str]:
    """Three calls, one after the other."""
    return [await call(ctx, method, value) for method in ("A", "B", "C")]


@workflow
async def ordered_gather(ctx: Context, value: str) -> list[str]:
    """Five calls at once; each continuation appends when it goes on; then one more call."""
    order: list[str] = []

    async def one(name: str) -> None:
        await call(ctx, name, value)
        order.append(name)

    await asyncio.gather(*(one(name) for name in "ABCDE"))
    await call(ctx, "Last", "".join(order))
    return order


@workflow
async def race(ctx: Context, value: str) -> list[str]:
    """Two calls race, and the winner decides what follows."""
    racers = {name: asyncio.ensure_future(call(ctx, name, value)) for name in ("A", "B")}
    done, _ = await asyncio.wait(racers.values(), return_when=asyncio.FIRST_COMPLETED)
    winners = sorted(name for name, task in racers.items() if task in done)
    follow = "Ship" if winners == ["A"] else "Refund"
    return ["".join(winners), await call(ctx, follow, value)]


@workflow
async def race_then_sleep(ctx: Context, seconds: float) -> list[str]:
    """Two calls race, and the run sleeps before anybody asks who lost."""
    racers = [asyncio.ensure_future(call(ctx, name)) for name in ("A", "B")]
    order: list[str] = []

    def arrived(name: str) -> Callable[[object], None]:
        return lambda _task: order.append(name)

    for name, task in zip("AB", racers, strict=True):
        task.add_done_callback(arrived(name))
    await asyncio.wait(racers)
    await asyncio.sleep(seconds)
    return [*order, await call(ctx, "Last", "".join(order))]


@workflow
async def sleeper(ctx: Context, seconds: float) -> float:
    """Sleep, and say how long it was by the run's own clock."""
    start = ctx.now().timestamp()
    await ctx.run("before", note, ctx, "before")
    await asyncio.sleep(seconds)
    await ctx.run("after", note, ctx, "after")
    return ctx.now().timestamp() - start


@workflow
async def sleep_then_call(ctx: Context, seconds: float) -> str:
    """A sleep that puts the run away, then a call that keeps it."""
    await asyncio.sleep(seconds)
    return await call(ctx, "Last", "awake")


@workflow
async def call_within(ctx: Context, seconds: float) -> str:
    """A call under a time-out of the code's own, then a sleep: the time-out stays what it was."""
    try:
        async with asyncio.timeout(seconds):
            seen = await call(ctx, "Slow")
    except TimeoutError:
        seen = "too late"
    await asyncio.sleep(0.3)
    return f"{seen}, {await call(ctx, 'Last', seen)}"


@workflow
async def impatient(ctx: Context, seconds: float) -> str:
    """A call whose attempts may take a given time each."""
    return await call(ctx, "Slow", timeout=seconds)


@workflow
async def tries(ctx: Context, attempts: int) -> str:
    """A call that is tried a limited number of times; what it said when it failed for good."""
    policy = RetryPolicy(max_attempts=attempts, initial_backoff=0.05)
    try:
        return await call(ctx, "Flaky", retry=policy)
    except CallFailedError as error:
        return f"{error.code().name}/{error.attempts}/{error.details()}"


@workflow
async def stubborn_run(ctx: Context, attempts: int) -> str:
    """A side effect that always fails, tried a limited number of times."""
    tried: list[int] = []
    policy = RetryPolicy(max_attempts=attempts, initial_backoff=0.05)

    def fail() -> None:
        ledger = Ledger.of_environment()
        ledger.write("run", invocation=ctx.invocation_id, step="fail")
        tried.append(0)
        raise RuntimeError(f"attempt {ledger.count(invocation=ctx.invocation_id, step='fail')}")

    try:
        await ctx.run("fail", fail, retry=policy)
    except StepFailedError as error:
        return f"{error.type}/{error.attempts}/{error.message}"
    return "succeeded"


@workflow
async def flaky_run(ctx: Context, failures: int) -> str:
    """A side effect that fails a number of times and then works."""
    policy = RetryPolicy(initial_backoff=0.05)

    def fail_at_first() -> str:
        ledger = Ledger.of_environment()
        ledger.write("run", invocation=ctx.invocation_id, step="flaky")
        count = ledger.count(invocation=ctx.invocation_id, step="flaky")
        if count <= failures:
            raise RuntimeError(f"attempt {count} failed")
        return f"worked at {count}"

    return await ctx.run("flaky", fail_at_first, retry=policy)


@workflow
async def slow_retry(ctx: Context, seconds: float) -> int:
    """A side effect whose first attempt fails at once and whose second one takes its time."""

    async def fail_then_wait() -> int:
        ledger = Ledger.of_environment()
        ledger.write("begin", invocation=ctx.invocation_id, step="slow")
        attempts = ledger.count(event="begin", invocation=ctx.invocation_id, step="slow")
        if attempts == 1:
            raise RuntimeError("the first attempt fails")
        await asyncio.sleep(seconds)
        ledger.write("end", invocation=ctx.invocation_id, step="slow")
        return attempts

    return await ctx.run("slow", fail_then_wait, retry=RetryPolicy(initial_backoff=0.05))


@workflow
async def long_steps(ctx: Context, seconds: float) -> str:
    """A side effect that burns a processor for a time, then one that waits as long."""

    def burn() -> None:
        Ledger.of_environment().write("begin", invocation=ctx.invocation_id, step="burn")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass

    async def wait() -> None:
        Ledger.of_environment().write("begin", invocation=ctx.invocation_id, step="wait")
        await asyncio.sleep(seconds)

    Ledger.of_environment().write("body", invocation=ctx.invocation_id, note=str(ctx.is_replaying))
    await ctx.run("burn", burn)
    await ctx.run("wait", wait)
    return "rested"


@workflow
async def blocking_body(ctx: Context, seconds: float) -> str:
    """A body that blocks its processor's loop between two steps."""
    await ctx.run("before", note, ctx, "before")
    Ledger.of_environment().write("block", invocation=ctx.invocation_id)
    time.sleep(seconds)  # noqa: ASYNC251 - what the scenario is about
    await ctx.run("after", note, ctx, "after")
    return "unblocked"


@workflow
async def greetings(ctx: Context, names: list[str]) -> list[str]:
    """One durable call a name, by the generated stub, to a service of the mesh."""
    stub = HelloServiceStub(ctx.channel)
    return [(await stub.SayHello(HelloRequest(name=name), timeout=5)).message for name in names]


@workflow
async def three_greetings(ctx: Context, delay: float) -> list[str]:
    """Three calls that take a time each; every pass writes down what it saw."""
    stub = HelloServiceStub(ctx.channel.with_options(retry=PATIENT))
    seen = []
    for step in range(3):
        reply = await stub.SayHello(HelloRequest(name=f"slow:{delay:g}:{ctx.invocation_id}-{step}"), timeout=5)
        Ledger.of_environment().write(
            "saw", invocation=ctx.invocation_id, step=str(step), run=str(ctx.attempt), note=value_digest(reply)
        )
        seen.append(reply.message)
    return seen


@workflow
async def oversized(ctx: Context, what: str) -> str:
    """Something that does not fit into a message of a mebibyte, or into any."""
    large = "x" * 3_145_728

    def produce() -> str:
        Ledger.of_environment().write("run", invocation=ctx.invocation_id, step="large")
        return large

    match what:
        case "request":
            await call(ctx, "Echo", large)
        case "value":
            await ctx.run("large", produce)
        case "result":
            return large
        case "unstorable":
            await ctx.run("unstorable", lambda: (number for number in range(3)))
    return "fitted"


@workflow
async def gives_up_waiting(ctx: Context, seconds: float) -> str:
    """A long sleep that a short time-out ends."""
    try:
        async with asyncio.timeout(0.3):
            await asyncio.sleep(seconds)
    except TimeoutError:
        return "gave up"
    return "slept"


@workflow
async def mixed(ctx: Context, number: int) -> list[str]:
    """Everything at once: parallel calls, side effects, short and long sleeps, a time-out that is reached."""
    stub = HelloServiceStub(ctx.channel.with_options(retry=PATIENT))
    seen: list[str] = []

    async def greet(step: int, delay: float) -> None:
        request = HelloRequest(name=f"slow:{delay:g}:{ctx.invocation_id}-{step}")
        seen.append((await stub.SayHello(request, timeout=4)).message)

    async with asyncio.TaskGroup() as group:
        group.create_task(greet(0, 0.1))
        group.create_task(greet(1, 0.1))
        group.create_task(asyncio.sleep(0.2 + number % 5 / 4))
    seen.append(await ctx.run("note", note, ctx, "note"))
    try:
        async with asyncio.timeout(0.3):
            await asyncio.sleep(60)
    except TimeoutError:
        seen.append("timed out")
    await asyncio.sleep(number % 3)
    await greet(2, 0.05)
    return seen


@workflow
async def crashes(ctx: Context, value: str) -> str:
    """Takes its processor down before it made any progress, until the gate is open."""
    Ledger.of_environment().write("crash", invocation=ctx.invocation_id)
    if not Gate.of_environment("mended").is_open:
        os._exit(1)
    return value


@workflow
async def crashes_after_progress(ctx: Context, steps: int) -> int:
    """Takes its processor down after each new step."""
    for number in range(steps):
        done = Gate.of_environment(f"{ctx.invocation_id}-{number}")
        await ctx.run(f"step {number}", note, ctx, f"step {number}")
        if not done.is_open:
            done.open()
            os._exit(1)
    return steps


@workflow
async def mind_changer(ctx: Context, change: str) -> str:
    """Does one thing in its first pass and another one in the next: what `change` says."""
    first_pass = not Gate.of_environment(f"changed-{change}").is_open
    match change, first_pass:
        case ("sleep-or-call", True):
            await asyncio.sleep(0.4)
        case ("sleep-or-call", False):
            await call(ctx, "Effect")
        case ("call-or-sleep", True):
            await call(ctx, "Recorded")
        case ("call-or-sleep", False):
            await asyncio.sleep(0.4)
        case ("method", True):
            await call(ctx, "Recorded")
        case ("method", False):
            await call(ctx, "Effect")
        case ("arguments", True):
            await call(ctx, "Recorded", "one")
        case ("arguments", False):
            await call(ctx, "Recorded", "two")
        case _:
            raise ValueError(change)
    await ctx.run("hold", gated, ctx, f"hold-{change}")
    return "done"


@workflow
async def does_foreign_things(ctx: Context, what: str) -> str:
    """Real I/O outside `ctx.run`, which no replay can repeat."""
    match what:
        case "connection":
            await asyncio.open_connection("127.0.0.1", 1)
        case "thread":
            await asyncio.to_thread(time.sleep, 0)
        case "executor":
            await asyncio.get_running_loop().run_in_executor(None, time.sleep, 0)
        case "subprocess":
            await asyncio.create_subprocess_exec("true")
        case _:
            raise ValueError(what)
    return "nobody noticed"


@workflow
async def cancellable(ctx: Context, where: str) -> str:
    """Blocked at what the input says; whatever ends that, a durable step and a call clean up."""
    await ctx.run("before", note, ctx, "before")
    try:
        match where:
            case "sleep":
                await asyncio.sleep(60)
            case "call":
                await call(ctx, "Blocked")
            case "run":
                await ctx.run("hold", gated, ctx, "hold")
            case "backoff":
                await call(ctx, "Failing", retry=RetryPolicy(initial_backoff=60, max_backoff=60))
            case "gather":
                await asyncio.gather(call(ctx, "Blocked"), asyncio.sleep(60))
            case _:
                raise ValueError(where)
    finally:
        await ctx.run("undo", note, ctx, "undo")
        await call(ctx, "Undo")
    return "undisturbed"


@workflow
async def approval(ctx: Context, order: str) -> list[Any]:
    """Two awakeables, handed out and awaited in the order that the input says; "t" awaits one for half a second."""
    waits: dict[str, Awaitable[Any]] = {}
    for name in ("a", "b"):
        waits[name] = issued = ctx.awakeable(dict[str, int])
        await ctx.run(f"hand out {name}", hand_out, ctx, name, issued.id, issued.subject)
    await ctx.run("hold", gated, ctx, "hold")
    seen: list[Any] = []
    for name in order:
        try:
            async with asyncio.timeout(0.5 if name == "t" else None):
                seen.append(await waits["a" if name == "t" else name])
        except TimeoutError:
            seen.append("too late")
        except AwakeableRejectedError as error:
            seen.append(error.reason)
    return seen


@workflow
async def first_approval(ctx: Context, count: int) -> list[Any]:
    """Several awakeables: the first that comes, then all, rejected ones as their reasons."""
    issued = []
    for number in range(count):
        awakeable = ctx.awakeable(int)
        issued.append(asyncio.ensure_future(awakeable))
        await ctx.run(f"hand out {number}", hand_out, ctx, str(number), awakeable.id, awakeable.subject)
    done, _ = await asyncio.wait(issued, return_when=asyncio.FIRST_COMPLETED)
    first = [issued.index(task) for task in done]
    await asyncio.sleep(0.1)
    found = await asyncio.gather(*issued, return_exceptions=True)
    return [first, [str(value) if isinstance(value, Exception) else value for value in found]]


def hand_out(ctx: Context, name: str, awakeable: str, subject: str) -> None:
    """Tell the test an awakeable's id and subject."""
    Ledger.of_environment().write("issued", invocation=ctx.invocation_id, step=name, note=f"{awakeable} {subject}")


@workflow
async def adds_up(ctx: Context, count: int) -> list[int]:
    """As many numbers as the input says, as they come; a durable step in between; "stop" ends it early."""
    numbers, stop = ctx.signals("number", int), ctx.signals("stop")
    stopped = asyncio.ensure_future(stop.get())
    seen: list[int] = []
    while len(seen) < count:
        coming = asyncio.ensure_future(numbers.get())
        await asyncio.wait([coming, stopped], return_when=asyncio.FIRST_COMPLETED)
        if not coming.done():
            return [*seen, -1]
        seen.append(coming.result())
        if len(seen) % 10 == 1:
            await ctx.run(f"note {len(seen)}", note, ctx, str(len(seen)))
    return seen


@workflow
async def sleeps_and_waits(ctx: Context, seconds: float) -> list[Any]:
    """A sleep and an awakeable at once, then a step."""
    awakeable = ctx.awakeable(int)
    await ctx.run("hand out a", hand_out, ctx, "a", awakeable.id, awakeable.subject)
    _, value = await asyncio.gather(asyncio.sleep(seconds), awakeable)
    await ctx.run("after", note, ctx, "after")
    return [value]


@workflow
async def swallows_cancel(ctx: Context, value: str) -> str:
    """Catches its cancellation, goes on and returns; one call is shielded from it."""
    shielded = asyncio.ensure_future(call(ctx, "Shielded", value))
    try:
        await asyncio.shield(shielded)
    except asyncio.CancelledError:
        return f"caught, {await shielded}"
    return "undisturbed"


@workflow
async def slow_cleanup(ctx: Context, value: str) -> str:
    """Its clean-up takes as long as the gate says."""
    try:
        await asyncio.sleep(60)
    finally:
        await ctx.run("hold", gated, ctx, "hold")
        await ctx.run("undo", note, ctx, "undo")
    return value
