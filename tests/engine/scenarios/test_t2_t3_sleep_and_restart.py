"""T2, T3: sleeps survive their processors, and are neither begun anew nor forgotten."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.kit.process import Process
from tests.kit.stage import Stage

SLEEP = 4.0


def kill(process: Process) -> None:
    process.kill()


def terminate(process: Process) -> None:
    process.terminate()


@pytest.mark.parametrize("end", [kill, terminate])
async def test_a_restart_during_a_sleep_neither_shortens_nor_restarts_it(stage: Stage, end) -> None:  # type: ignore[no-untyped-def]
    async with stage.client() as client:
        first = await stage.processor(ack_wait=1)
        handle = await client.start("sleeper", SLEEP)
        started = (await stage.ledger.wait_for(event="run", step="before"))[0].at
        await asyncio.sleep(max(0.0, started + 1.0 - time.monotonic()))
        end(first)
        await first.exited()
        await stage.processor(ack_wait=1)
        slept = await handle.result(timeout=20)
        woke = stage.ledger.entries(event="run", step="after")[0].at
        assert slept >= SLEEP, "by the run's own clock"
        assert woke - started + 0.05 >= SLEEP, "by this machine's clock"
        assert woke - started < SLEEP + 2
        assert stage.ledger.count(event="run", step="before") == 1
        assert stage.ledger.count(event="run", step="after") == 1


@pytest.mark.parametrize("killed_after", [0.3, 1.7], ids=["held", "suspended"])
async def test_a_sleep_that_came_due_while_nobody_lived_ends_at_once_after_the_start(
    stage: Stage, killed_after: float
) -> None:
    async with stage.client() as client:
        only = await stage.processor()
        handle = await client.start("sleeper", 2.5)
        started = (await stage.ledger.wait_for(event="run", step="before"))[0].at
        await asyncio.sleep(max(0.0, started + killed_after - time.monotonic()))
        only.kill()
        await asyncio.sleep(max(0.0, started + 4.5 - time.monotonic()))
        await stage.processor()
        ready = time.monotonic()
        assert await handle.result(timeout=10) >= 2.5
        woke = stage.ledger.entries(event="run", step="after")[0].at
        assert woke - ready < 1.0, f"{woke - ready:.2f} s after the start"
        assert stage.ledger.count(event="run", step="before") == 1
