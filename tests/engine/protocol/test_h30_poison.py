"""H30: a run that takes its processors down is parked by its own record; nothing else counts as a strike."""

from __future__ import annotations

import pytest

from engine import WorkflowFailedError
from tests.kit.agreement import agreement
from tests.kit.process import Process
from tests.kit.stage import Stage

LIMIT = "3"


async def until_settled(stage: Stage, invocation: str, most: int) -> list[Process]:
    """Play the supervisor: start a processor whenever the last one died, until the run is final."""
    started: list[Process] = []
    for _ in range(most):
        processor = stage.spawn("processor", "tests.kit.flows", "--ack-wait", "500ms", "--max-attempts", LIMIT)
        started.append(processor)
        while processor.exit_code is None:
            record = await stage.raw.record(invocation)
            if record is not None and record.status in {"completed", "failed"}:
                return started
            try:
                await processor.exited(timeout=0.1)
            except AssertionError:
                continue
    raise AssertionError(f"{invocation} is not settled after {most} processors")


async def test_a_run_that_kills_its_processor_again_and_again_is_parked(stage: Stage) -> None:
    async with stage.client() as client:
        poison = await client.start("crashes", "x")
        await until_settled(stage, poison.id, most=8)
        with pytest.raises(WorkflowFailedError) as failed:
            await poison.result(timeout=5)
        assert failed.value.type == "PoisonError"
        assert LIMIT in failed.value.message
        assert stage.ledger.count(event="crash", invocation=poison.id) == int(LIMIT)
        seen = await agreement(client, stage.raw, poison.id)
        assert (seen.status, seen.error_type) == ("failed", "PoisonError")
        assert seen.record.attempts == int(LIMIT)
        assert await stage.raw.command(poison.id) is None
        assert (await client.invoke("noted", "good", timeout=10)).startswith("good ")


async def test_a_run_that_makes_progress_between_crashes_is_not_parked(stage: Stage) -> None:
    async with stage.client() as client:
        handle = await client.start("crashes_after_progress", 6)
        await until_settled(stage, handle.id, most=12)
        assert await handle.result(timeout=5) == 6
        for number in range(6):
            assert stage.ledger.count(event="run", step=f"step {number}") == 1
        record = await stage.raw.record(handle.id)
        assert record is not None
        assert record.attempts == 7


async def test_orderly_hand_overs_are_no_strikes(stage: Stage) -> None:
    """More restarts than the limit allows crashes: every one of them hands its run over."""
    async with stage.client() as client:
        handle = await client.start("sleeper", 8.0)
        for number in range(int(LIMIT) + 2):
            processor = await stage.processor("--max-attempts", LIMIT, "--suspend-after", "1h")
            if number == 0:
                await stage.ledger.wait_for(event="run", step="before")
            else:
                await stage.raw.wait_for_status(handle.id, "running")
            processor.terminate()
            assert await processor.exited() == 0
        await stage.processor("--max-attempts", LIMIT)
        assert await handle.result(timeout=20) >= 8.0
        assert stage.ledger.count(event="run", step="before") == 1
        assert (await handle.describe()).attempts == 1
