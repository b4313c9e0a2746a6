"""H19: a run that waits for a call may lose its frames, and keeps its command, its subscription and its deadlines."""

from __future__ import annotations

import asyncio

from tests.kit.stage import ACK_WAIT, Stage


async def test_a_run_with_a_call_open_is_never_suspended(stage: Stage) -> None:
    async with stage.client() as client, stage.foreign("Echo") as service:
        await stage.processor("--suspend-after", "0")
        handle = await client.start("echo", "x")
        request = (await service.wait_for(1))[0]
        record = await stage.raw.wait_for_status(handle.id, "running")
        assert record.status == "running"
        assert await stage.raw.command(handle.id) is not None
        await asyncio.sleep(1.5 * ACK_WAIT)
        assert len(service.requests) == 1, "the command was given to somebody else"
        await request.respond(b"answer")
        assert await handle.result(timeout=10) == "answer"


async def test_an_evicted_runs_attempt_still_times_out(stage: Stage) -> None:
    async with stage.client() as client, stage.foreign("Slow") as service:
        await stage.processor("--suspend-after", "0")
        handle = await client.start("impatient", 0.5)
        requests = await service.wait_for(2)
        await requests[1].respond(b"second")
        assert await handle.result(timeout=10) == "second"


async def test_an_evicted_runs_answer_is_repaired_when_it_was_not_stored(stage: Stage) -> None:
    async with stage.client() as client, stage.foreign("Echo") as service:
        await stage.processor("--suspend-after", "0")
        handle = await client.start("echo", "x")
        request = (await service.wait_for(1))[0]
        await request.respond(b"answer", {"Nats-Expected-Last-Sequence": "123456789"})
        assert await handle.result(timeout=15) == "answer"
        assert len(service.requests) == 1
