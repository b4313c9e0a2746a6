"""X7, X10 to X13: pausing runs in every state, and having them go on."""

from __future__ import annotations

import asyncio

import pytest

from engine import InvocationNotFoundError, InvocationStateError, WorkflowCancelledError
from tests.engine.scenarios.test_a_awakeables import issued
from tests.kit.agreement import agreement
from tests.kit.foreign import echo
from tests.kit.proxy import publishes
from tests.kit.stage import Stage


async def test_the_answer_of_the_step_under_way_is_kept_and_no_step_begins(stage: Stage) -> None:
    async with stage.client() as client, stage.foreign("A", echo()), stage.foreign("B") as b:
        async with stage.foreign("C", echo()) as c:
            await stage.processor()
            handle = await client.start("three_calls", "x")
            await b.wait_for(1)
            await handle.pause()
            await stage.raw.wait_for_status(handle.id, "paused")
            await b.requests[0].respond(b"answered")
            await asyncio.sleep(0.5)
            assert not c.requests
            assert (await agreement(client, stage.raw, handle.id)).status == "paused"
            assert await stage.raw.command(handle.id) is None
            await handle.resume()
            assert await handle.result(timeout=10) == ["x", "answered", "x"]
            assert len(b.requests) == 1


async def test_a_side_effect_under_way_ends_before_the_run_is_paused(stage: Stage) -> None:
    async with stage.client() as client:
        await stage.processor()
        handle = await client.start("held", "x")
        await stage.ledger.wait_for(event="begin", step="hold")
        await handle.pause()
        await asyncio.sleep(0.3)
        stage.gate("hold").open()
        await stage.raw.wait_for_status(handle.id, "paused")
        assert stage.ledger.count(event="run", step="second") == 0
        await handle.resume()
        await handle.result(timeout=10)
        assert stage.ledger.count(event="begin", step="hold") == 1
        assert stage.ledger.count(event="run", step="second") == 1


async def test_a_queued_run_that_is_paused_does_not_begin(stage: Stage) -> None:
    async with stage.client() as client:
        handle = await client.start("noted", "x")
        await handle.pause()
        await stage.processor()
        await stage.raw.wait_for_status(handle.id, "paused")
        assert stage.ledger.text() == ""
        await handle.resume()
        await handle.result(timeout=10)
        assert (await agreement(client, stage.raw, handle.id)).status == "completed"
        assert (await handle.describe()).attempts == 1


async def test_a_pause_outlives_processors_and_the_server(stage: Stage) -> None:
    async with (
        stage.client() as client,
        stage.foreign("A", echo()),
        stage.foreign("B") as b,
        stage.foreign("C", echo()),
    ):
        first = await stage.processor()
        handle = await client.start("three_calls", "x")
        await b.wait_for(1)
        await handle.pause()
        await stage.raw.wait_for_status(handle.id, "paused")
        first.kill()
        stage.server.kill()
        stage.server.start()
        await stage.processor()
        await asyncio.sleep(0.5)
        assert (await handle.describe()).status == "paused"
        b.handler = echo()
        await handle.resume()
        assert await handle.result(timeout=20) == ["x", "x", "x"]


async def test_what_comes_during_a_pause_is_there_when_it_ends(stage: Stage) -> None:
    async with stage.client() as client:
        await stage.processor()
        handle = await client.start("sleeps_and_waits", 1.5)
        awakeable, _ = await issued(stage, handle.id)
        await stage.raw.wait_for_status(handle.id, "suspended", "running")
        await handle.pause()
        await stage.raw.wait_for_status(handle.id, "paused")
        await client.resolve_awakeable(awakeable, 7)
        await asyncio.sleep(2)
        assert stage.ledger.count(event="run", step="after") == 0
        assert (await handle.describe()).status == "paused"
        await handle.resume()
        assert await handle.result(timeout=5) == [7]


async def test_pauses_and_resumes_are_idempotent_and_a_paused_run_can_be_cancelled(stage: Stage) -> None:
    async with stage.client() as client, stage.foreign("Blocked") as blocked, stage.foreign("Undo", echo()):
        await stage.processor()
        handle = await client.start("cancellable", "call")
        await blocked.wait_for(1)
        await handle.resume()
        for _ in range(2):
            await handle.pause()
        await stage.raw.wait_for_status(handle.id, "paused")
        await handle.cancel()
        with pytest.raises(WorkflowCancelledError):
            await handle.result(timeout=15)
        assert stage.ledger.count(event="run", step="undo") == 1
        for request in (handle.pause, handle.resume):
            with pytest.raises(InvocationStateError):
                await request()
        with pytest.raises(InvocationNotFoundError):
            await client.pause("nobody")


async def test_a_waker_that_dies_between_the_record_and_the_command_loses_no_resume(stage: Stage) -> None:
    async with stage.link() as proxy, stage.client() as client:
        first = await stage.processor(url=proxy.url)
        handle = await client.start("sleeper", 0.5)
        await handle.pause()
        await stage.raw.wait_for_status(handle.id, "paused")
        trap = proxy.trap(publishes("wf.default.cmd.>"))
        await handle.resume()
        await trap.wait()
        first.kill()
        await stage.processor()
        assert await handle.result(timeout=20) >= 0.5
