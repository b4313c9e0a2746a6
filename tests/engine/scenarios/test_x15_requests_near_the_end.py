"""X15, and requests to a zombie's run: whatever arrives together, each run has one legal end and none hangs."""

from __future__ import annotations

import asyncio
import contextlib
import random

from engine import Client, InvocationStateError, WorkflowCancelledError
from tests.kit.foreign import echo
from tests.kit.stage import ACK_WAIT, Stage

RUNS = 60


async def test_requests_at_random_near_the_end_leave_one_end_each(stage: Stage) -> None:
    chance = random.Random(15)
    async with stage.client() as client, stage.raw.watch("wf.default.done.>") as records:
        async with stage.foreign("A", echo()), stage.foreign("B", echo()), stage.foreign("C", echo()):
            await stage.processor()
            await stage.processor()
            seen = await asyncio.gather(*(_disturbed(client, chance.random(), n) for n in range(RUNS)))
        assert {status for _, status in seen} <= {"completed", "cancelled"}
        for invocation, status in seen:
            stored = await stage.raw.record(invocation)
            assert stored is not None
            assert stored.status == status
            finals = {
                bytes(message.data)
                for message in records.messages
                if message.subject.endswith(invocation)
                and (message.headers or {})["Mesh-Status"] in {"completed", "failed", "cancelled"}
            }
            assert len(finals) == 1, "never from one end to another"


async def _disturbed(client: Client, chance: float, number: int) -> tuple[str, str]:
    """Start a run, ask for two things at a random moment, have it go on, and tell how it ended."""
    handle = await client.start("three_calls", str(number))
    await asyncio.sleep(chance * 0.1)
    pairs = ((handle.cancel, handle.pause), (handle.pause, handle.resume), (handle.pause, handle.cancel))
    first, second = pairs[number % 3]
    answers = await asyncio.gather(first(), second(), return_exceptions=True)
    assert all(answer is None or isinstance(answer, InvocationStateError) for answer in answers), answers
    with contextlib.suppress(InvocationStateError):
        await handle.resume()
    try:
        await handle.result(timeout=25)
    except WorkflowCancelledError:
        return handle.id, "cancelled"
    return handle.id, "completed"


async def test_a_zombie_that_comes_back_finds_the_cancellation_delivered_by_its_successor(stage: Stage) -> None:
    async with stage.client() as client, stage.foreign("Blocked") as blocked, stage.foreign("Undo", echo()) as undo:
        zombie = await stage.processor()
        handle = await client.start("cancellable", "call")
        await blocked.wait_for(1)
        await stage.raw.wait_for_status(handle.id, "running")
        await zombie.freeze()
        await handle.cancel()
        await stage.processor()
        await stage.raw.wait_for_status(handle.id, "cancelled", timeout=ACK_WAIT + 15)
        before = await stage.raw.stored_record(handle.id)
        zombie.thaw()
        other = await client.start("three_calls", "y")
        async with stage.foreign("A", echo()), stage.foreign("B", echo()), stage.foreign("C", echo()):
            assert await other.result(timeout=20) == ["y", "y", "y"]
        await asyncio.sleep(1)
        assert await stage.raw.stored_record(handle.id) == before
        assert stage.ledger.count(event="run", step="undo") == 1
        assert len(undo.requests) == 1
