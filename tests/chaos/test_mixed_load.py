"""Runs of every shape while processors, service and server are killed again and again: all end as they should."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from typing import Any

import pytest

from engine import Client, Handle
from tests.chaos.test_faults_under_load import SEED
from tests.kit.history import Checker, Expectation, observed
from tests.kit.process import Process
from tests.kit.stage import M1, M2, Mode, Stage

RUNS = int(os.environ.get("CHAOS_MIXED_RUNS", "100"))
SECONDS = float(os.environ.get("CHAOS_SECONDS", "8"))
STEPS = 3
PATIENCE = 60.0

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(params=[M1, M2], ids=lambda mode: mode.name, autouse=True)
def mode(request: pytest.FixtureRequest) -> Mode:
    found: Mode = request.param
    return found


async def test_every_shape_of_run_ends_as_it_should_under_continuous_faults(stage: Stage) -> None:
    dice = random.Random(SEED)
    async with stage.client() as client, observed(stage.raw) as history:
        nemesis = Nemesis(stage, dice)
        await nemesis.begin()
        raging = asyncio.create_task(nemesis.rage(SECONDS))
        handles = {f"mixed-{n}": await start_later(client, n) for n in range(RUNS)}
        faults = await raging
        waits = (handle.result(timeout=PATIENCE) for handle in handles.values())
        found = await asyncio.gather(*waits, return_exceptions=True)
        results = dict(zip(handles, found, strict=True))
        stuck = [invocation for invocation, result in results.items() if isinstance(result, BaseException)]
        if stuck:
            story = await stage.story(stuck[0])
            pytest.fail(f"seed {SEED}: {len(stuck)} runs end badly: {results[stuck[0]]}\n{story}")
        records = {}
        for invocation in handles:
            record = await stage.raw.record(invocation)
            assert record is not None
            records[invocation] = record
        await stage.no_commands_left(30)
    for invocation, result in results.items():
        check_result(stage, invocation, result)
    executions = Expectation(executions=1 + faults, steps=STEPS)
    contradictions = Checker(history, stage.ledger, records).check_executions(executions)
    assert not contradictions, f"seed {SEED}:\n" + "\n".join(contradictions[:20])


async def start_later(client: Client, number: int) -> Handle[Any]:
    """Submissions are spread over the time of the faults, and survive them."""
    await asyncio.sleep(SECONDS / RUNS)
    return await client.start("mixed", number, id=f"mixed-{number}")


def check_result(stage: Stage, invocation: str, result: Any) -> None:
    """What the code returned is what its steps gave, in an order that they can have had."""
    noted = [entry.note for entry in stage.ledger.entries(event="run", invocation=invocation)]
    first_two = {f"Hello, slow:0.1:{invocation}-{step}!" for step in (0, 1)}
    assert set(result[:2]) == first_two, f"{invocation}: {result}"
    assert result[2] in noted, f"{invocation}: {result[2]} was never noted: {noted}"
    assert result[3:] == ["timed out", f"Hello, slow:0.05:{invocation}-2!"]


class Nemesis:
    """Kills, stops and starts, for a time; then it leaves everything running."""

    def __init__(self, stage: Stage, dice: random.Random) -> None:
        self._stage, self._dice = stage, dice
        self._processors: list[Process] = []
        self._service: Process | None = None
        self.done: Counter[str] = Counter()

    async def begin(self) -> None:
        """Two processors and a service."""
        self._processors = [await self._stage.processor() for _ in range(2)]
        self._service = await self._stage.service("tests.kit.services")

    async def rage(self, seconds: float) -> int:
        """How many faults there were."""
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            await asyncio.sleep(self._dice.uniform(0.2, 1.0))
            fault = self._dice.choice(
                [self._kill_processor, self._kill_processor, self._stop, self._kill_service, self._kill_server]
            )
            await fault()
            self.done[fault.__name__] += 1
        return self.done.total()

    async def _kill_processor(self) -> None:
        victim = self._dice.randrange(len(self._processors))
        self._processors[victim].kill()
        self._processors[victim] = await self._stage.processor()

    async def _stop(self) -> None:
        victim = self._dice.choice(self._processors)
        await victim.freeze()
        await asyncio.sleep(self._dice.uniform(0.5, 4.0))
        victim.thaw()

    async def _kill_service(self) -> None:
        assert self._service is not None
        self._service.kill()
        self._service = await self._stage.service("tests.kit.services")

    async def _kill_server(self) -> None:
        self._stage.server.kill()
        await asyncio.sleep(self._dice.uniform(0, 0.5))
        await self._stage.server.astart()
