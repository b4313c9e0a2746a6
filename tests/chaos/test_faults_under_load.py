"""Many runs in flight, one fault at a random moment: everything completes, and nothing that was recorded runs again.

`CHAOS_RUNS`, `CHAOS_ROUNDS` and `CHAOS_SEED` say how many runs, how often and with which random
numbers (`make chaos`: 1,000 runs, ten rounds, a new seed each time). A failing round names its seed.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from engine import Client
from engine.durable_pb2 import ExecutionState
from tests.kit.history import Checker, Expectation, observed
from tests.kit.process import Process
from tests.kit.stage import ACK_WAIT, Stage

RUNS = int(os.environ.get("CHAOS_RUNS", "200"))
ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "1"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))
DELAY = 0.3
"""Seconds that each step takes: long enough for all runs to be in flight at once."""
STEPS = 3
SUBMITTERS = 64

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(240)]


@dataclass(slots=True)
class Cast:
    """Who plays in a round."""

    stage: Stage
    random: random.Random
    processors: list[Process]
    service: Process


Fault = Callable[[Cast], Awaitable[None]]


async def kill_a_processor(cast: Cast) -> None:
    cast.random.choice(cast.processors).kill()


async def stop_a_processor_past_ack_wait(cast: Cast) -> None:
    zombie = cast.random.choice(cast.processors)
    await zombie.freeze()
    await asyncio.sleep(1.5 * ACK_WAIT)
    zombie.thaw()


async def kill_the_service(cast: Cast) -> None:
    cast.service.kill()
    cast.service = await cast.stage.service("tests.kit.services")


async def kill_the_server(cast: Cast) -> None:
    cast.stage.server.kill()
    await cast.stage.server.astart()


EXECUTIONS: dict[Fault, int] = {
    # A service that lives answers a repeated request from memory; a new one has to execute it again.
    kill_a_processor: 1,
    stop_a_processor_past_ack_wait: 1,
    kill_the_service: 2,
    kill_the_server: 1,
}


@pytest.mark.parametrize("round_number", range(ROUNDS))
@pytest.mark.parametrize("fault", EXECUTIONS, ids=lambda fault: fault.__name__)
async def test_all_runs_complete_and_no_recorded_step_runs_again(stage: Stage, fault: Fault, round_number: int) -> None:
    seed = SEED * 1_000 + round_number
    dice = random.Random(seed)
    flags = ("--max-concurrent", str(RUNS))
    processors = [await stage.processor(*flags) for _ in range(2)]
    cast = Cast(stage, dice, processors, await stage.service("tests.kit.services"))
    async with stage.client() as client, observed(stage.raw) as history:
        await client.invoke("three_greetings", 0.0, id="warm-up", timeout=20)
        running = asyncio.create_task(run_all(client, RUNS))
        await stage.ledger.wait_for(dice.randrange(1, 2 * RUNS), event="begin")
        await asyncio.sleep(dice.uniform(0, DELAY))
        await fault(cast)
        results = await running
        assert results == {f"run-{n}": undisturbed(f"run-{n}") for n in range(RUNS)}, f"seed {seed}"
        records = {invocation: await record_of(stage, invocation) for invocation in results}
        await calm(stage)
    contradictions = Checker(history, stage.ledger, records).check(Expectation(EXECUTIONS[fault], STEPS))
    assert not contradictions, f"seed {seed}: {len(contradictions)} contradictions\n" + "\n".join(contradictions[:20])


async def run_all(client: Client, count: int) -> dict[str, object]:
    """Start so many runs, as fast as the client can, and wait for all their results."""
    numbers = iter(range(count))
    handles = {}

    async def submit() -> None:
        for number in numbers:
            invocation = f"run-{number}"
            handles[invocation] = await client.start("three_greetings", DELAY, id=invocation)

    await asyncio.gather(*(submit() for _ in range(SUBMITTERS)))
    results = await asyncio.gather(*(handle.result(timeout=120) for handle in handles.values()))
    return dict(zip(handles, results, strict=True))


def undisturbed(invocation: str) -> list[str]:
    """What a run without any fault returns."""
    return [f"Hello, slow:{DELAY:g}:{invocation}-{step}!" for step in range(STEPS)]


async def record_of(stage: Stage, invocation: str) -> ExecutionState:
    record = await stage.raw.record(invocation)
    assert record is not None, f"{invocation} has no record"
    assert record.status == "completed"
    assert [entry.step_number for entry in record.journal] == list(range(STEPS))
    return record


async def calm(stage: Stage) -> None:
    """No command is left, none is held, no timer is orphaned."""
    await stage.no_commands_left(30)
    info = await stage.raw.consumer("three_greetings")
    assert (info["num_pending"], info["num_ack_pending"]) == (0, 0)
    assert await stage.raw.messages("TIMERS") == 0
