"""F4: SIGTERM lets a step end, hands everything else over at once, and counts as no failure."""

from __future__ import annotations

import time

from tests.kit.stage import M1, Stage


async def test_a_step_in_flight_ends_where_it_began_and_queued_work_moves_at_once(stage: Stage) -> None:
    async with stage.client() as client:
        draining = await stage.processor("--max-concurrent", "1", ack_wait=10)
        busy = await client.start("held", "busy")
        await stage.ledger.wait_for(event="begin", step="hold")
        other = await stage.processor(ack_wait=10)
        draining.terminate()
        began = time.monotonic()
        assert (await client.invoke("noted", "queued", timeout=5)).startswith("queued ")
        assert time.monotonic() - began < 3
        assert draining.exit_code is None, "it ended with a step in flight"
        stage.gate("hold").open()
        assert (await busy.result(timeout=5)).startswith("busy ")
        assert await draining.exited(timeout=10) == 0
        assert stage.ledger.count(event="begin", step="hold") == 1
        assert stage.ledger.count(event="end", step="hold") == 1
        described = await busy.describe()
        assert described.attempts == 1
        assert other.exit_code is None


async def test_runs_that_wait_for_an_answer_are_handed_over_with_their_request(stage: Stage) -> None:
    """The answer is the journal entry, wherever the run is by then."""
    async with stage.client() as client, stage.foreign("Echo") as service:
        draining = await stage.processor("--grace", "500ms", ack_wait=10)
        handle = await client.start("echo", "x")
        await service.wait_for(1)
        await stage.processor(ack_wait=10)
        draining.terminate()
        assert await draining.exited(timeout=10) == 0
        await service.requests[0].respond(b"answer")
        assert await handle.result(timeout=5) == "answer"


async def test_sleepers_are_handed_over_at_once(stage: Stage) -> None:
    async with stage.client() as client:
        draining = await stage.processor(ack_wait=10)
        handles = [await client.start("sleeper", 1.5) for _ in range(5)]
        await stage.ledger.wait_for(5, event="run", step="before")
        await stage.processor(ack_wait=10)
        draining.terminate()
        assert await draining.exited(timeout=5) == 0
        for handle in handles:
            assert await handle.result(timeout=6) >= 1.5
            assert (await handle.describe()).attempts == 1
        assert stage.ledger.count(event="run", step="before") == 5
        assert stage.ledger.count(event="run", step="after") == 5
        assert stage.mode is M1 or await stage.raw.messages("TIMERS") == 0
