"""A timer that nobody needs any more is taken away with its run."""

from __future__ import annotations

import asyncio

import pytest

from tests.kit.foreign import echo
from tests.kit.stage import M2, Stage


@pytest.mark.parametrize("mode", [M2], indirect=True)
async def test_the_schedules_of_a_run_that_ended_are_gone(stage: Stage) -> None:
    async with stage.client() as client:
        await stage.processor()
        await client.invoke("gives_up_waiting", 60.0, id="done", timeout=15)
        async with asyncio.timeout(5):
            while await stage.raw.subjects("TIMERS"):
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("mode", [M2], indirect=True)
async def test_a_late_timer_of_a_run_that_ended_is_dropped(stage: Stage) -> None:
    """Whatever fires for a run that is over is acknowledged and stores nothing."""
    async with stage.client() as client, stage.foreign("Slow", echo()), stage.foreign("Last", echo()):
        await stage.processor()
        await client.invoke("gives_up_waiting", 2.0, id="done", timeout=15)
        record = await stage.raw.stored_record("done")
        await asyncio.sleep(2.5)
        assert await stage.raw.messages("TIMERS") == 0
        assert await stage.raw.messages("COMMANDS") == 0
        assert await stage.raw.stored_record("done") == record
        assert await stage.raw.slots("done") == []
