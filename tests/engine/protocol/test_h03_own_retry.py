"""H3: a client whose acknowledgement was lost recognises its own submission by the incarnation that it drew."""

from __future__ import annotations

import asyncio

import pytest

from engine import InvocationConflictError
from tests.kit.stage import Stage

COMMANDS = "wf.default.cmd.>"


async def test_a_retry_that_is_refused_finds_its_own_command(stage: Stage) -> None:
    async with stage.link() as proxy, stage.client(proxy.url) as client:
        stop_losing = proxy.lose_answers(COMMANDS)
        async with stage.raw.watch(COMMANDS) as commands:
            starting = asyncio.create_task(client.start("noted", "x", id="mine"))
            await commands.wait_for()
            stop_losing()
            handle = await starting
            incarnations = {(m.headers or {})["Mesh-Incarnation"] for m in commands.messages}
            assert len(incarnations) == 1, "an incarnation is drawn once for each submission"
        await stage.processor()
        assert (await handle.result(timeout=10)).startswith("x ")
        assert stage.ledger.count(event="run", step="note") == 1


async def test_a_retry_after_the_run_completed_finds_its_own_record(stage: Stage) -> None:
    await stage.processor()
    async with stage.link() as proxy, stage.client(proxy.url) as client:
        stop_losing = proxy.lose_answers(COMMANDS)
        starting = asyncio.create_task(client.start("noted", "x", id="mine"))
        await stage.raw.wait_for_status("mine", "completed")
        stop_losing()
        handle = await starting
        assert (await handle.result(timeout=10)).startswith("x ")
        assert stage.ledger.count(event="run", step="note") == 1


async def test_somebody_elses_command_is_a_conflict_for_the_retry_too(stage: Stage) -> None:
    async with stage.client() as first, stage.link() as proxy, stage.client(proxy.url) as second:
        await first.start("noted", "x", id="taken")
        stop_losing = proxy.lose_answers(COMMANDS)
        async with stage.raw.watch(COMMANDS):
            starting = asyncio.create_task(second.start("noted", "y", id="taken"))
            await asyncio.sleep(0.2)
            stop_losing()
            with pytest.raises(InvocationConflictError):
                await starting
