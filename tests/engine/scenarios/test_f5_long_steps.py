"""F5: long steps and long bodies on healthy processors are not taken over."""

from __future__ import annotations

import asyncio

import pytest

from tests.kit.stage import Stage

ACK_WAIT = 1.0
LONG = 5 * ACK_WAIT


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_steps_of_five_ack_waits_start_once_on_healthy_processors(stage: Stage) -> None:
    async with stage.client() as client:
        for _ in range(2):
            await stage.processor(ack_wait=ACK_WAIT)
        handle = await client.start("long_steps", LONG)
        assert await handle.result(timeout=60) == "rested"
        assert stage.ledger.count(event="begin", step="burn") == 1
        assert stage.ledger.count(event="begin", step="wait") == 1
        assert (await handle.describe()).attempts == 1


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_body_that_blocks_its_loop_for_five_ack_waits_is_not_taken_over(stage: Stage) -> None:
    async with stage.client() as client:
        processors = [await stage.processor(ack_wait=ACK_WAIT) for _ in range(2)]
        handle = await client.start("blocking_body", LONG)
        assert await handle.result(timeout=60) == "unblocked"
        await asyncio.sleep(0)
        blocked = stage.ledger.entries(event="block")
        assert len({entry.pid for entry in blocked}) == 1, "another processor took the run over"
        assert stage.ledger.count(event="run", step="before") == 1
        assert stage.ledger.count(event="run", step="after") == 1
        warning = "".join(process.stderr for process in processors)
        assert handle.id in warning, "a body that blocks is warned of by the name of its run"
