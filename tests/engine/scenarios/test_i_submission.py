"""I1, I2, I4, I5: an id is executed once, whoever submits it, however often, over whatever link."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest

from engine import InvocationConflictError, UnavailableError
from tests.kit.agreement import agreement
from tests.kit.process import Process
from tests.kit.proxy import publishes
from tests.kit.stage import M1, ROOT, Stage

COMMANDS = "wf.default.cmd.>"


async def test_the_same_submission_attaches_while_queued_running_and_done(stage: Stage) -> None:
    async with stage.client() as client, stage.client() as other:
        queued = [await c.start("held", "x", id="greet-42") for c in (client, other)]
        assert (await queued[0].describe()).status == "pending"
        await stage.processor()
        await stage.ledger.wait_for(event="begin", step="hold")
        running = await other.start("held", "x", id="greet-42")
        stage.gate("hold").open()
        results = [await handle.result(timeout=10) for handle in (*queued, running)]
        done = await other.start("held", "x", id="greet-42")
        results.append(await done.result(timeout=5))
        results.append(await client.invoke("held", "x", id="greet-42", timeout=5))
        assert len(set(results)) == 1
        assert stage.ledger.count(event="run", step="first") == 1
        seen = await agreement(client, stage.raw, "greet-42")
        assert (seen.status, seen.result) == ("completed", results[0])
        assert await stage.raw.command("greet-42") is None


async def test_fifty_submissions_from_five_processes_are_one_execution(stage: Stage) -> None:
    await stage.processor()
    submitters = [
        Process(
            [sys.executable, "-m", "tests.kit.submitter", stage.server.url, "noted", "x", "one-id", "10"],
            folder=stage.folder,
            name=f"submitter-{number}",
            cwd=ROOT,
        )
        for number in range(5)
    ]
    try:
        lines = [await submitter.line("results ", timeout=30) for submitter in submitters]
    finally:
        for submitter in submitters:
            submitter.kill()
    results = [result for line in lines for result in json.loads(line.removeprefix("results "))]
    assert len(results) == 50
    assert len(set(results)) == 1, set(results)
    assert stage.ledger.count(event="run", invocation="one-id") == 1


@pytest.mark.parametrize("state", ["queued", "running", "done"])
async def test_another_submission_of_the_same_id_is_a_conflict(stage: Stage, state: str) -> None:
    async with stage.client() as client, stage.client() as other:
        handle = await client.start("held", "x", id="taken")
        if state != "queued":
            await stage.processor()
            await stage.ledger.wait_for(event="begin", step="hold")
        if state == "done":
            stage.gate("hold").open()
            await handle.result(timeout=10)
        for workflow, value, key in (("held", "y", None), ("noted", "x", None), ("held", "x", "key")):
            with pytest.raises(InvocationConflictError, match="taken"):
                await other.start(workflow, value, id="taken", partition_key=key)
        if state == "queued":
            assert await stage.raw.messages("COMMANDS") == 1
            await stage.processor()
        stage.gate("hold").open()
        assert (await handle.result(timeout=10)).startswith("x ")
        assert stage.ledger.count(event="run", step="first") == 1
        assert stage.ledger.count(event="run", step="note") == 0
        seen = await agreement(client, stage.raw, "taken")
        assert (seen.status, seen.record.handler) == ("completed", "held")


@pytest.mark.parametrize("named", [True, False], ids=["own-id", "drawn-id"])
async def test_a_submission_whose_acknowledgement_is_lost_is_executed_once(stage: Stage, named: bool) -> None:
    await stage.processor()
    async with stage.link() as proxy, stage.client(proxy.url) as client:
        found_again = proxy.lose_answers(COMMANDS)
        starting = asyncio.create_task(client.start("noted", "x", id="lost-ack" if named else None))
        await stage.ledger.wait_for(event="run", step="note")
        found_again()
        handle = await starting
        result = await handle.result(timeout=15)
        assert result.startswith("x ")
        assert stage.ledger.count(event="run", step="note") == 1


@pytest.mark.parametrize("named", [True, False], ids=["own-id", "drawn-id"])
async def test_a_link_cut_just_after_the_submission_arrived_ends_in_one_execution(stage: Stage, named: bool) -> None:
    await stage.processor()
    async with stage.link() as proxy, stage.client(proxy.url) as client:
        trap = proxy.trap(publishes(COMMANDS))
        starting = asyncio.create_task(client.start("noted", "x", id="cut" if named else None))
        await trap.wait()
        proxy.blackhole("down")
        trap.release()
        await stage.ledger.wait_for(event="run", step="note")
        proxy.flow()
        proxy.cut()
        handle = await starting
        assert (await handle.result(timeout=15)).startswith("x ")
        assert stage.ledger.count(event="run", step="note") == 1


@pytest.mark.parametrize("mode", [M1], indirect=True)
@pytest.mark.timeout(90)
async def test_a_client_that_never_hears_again_says_that_repeating_is_safe(stage: Stage) -> None:
    async with stage.link() as proxy, stage.client(proxy.url) as client, stage.client() as healthy:
        trap = proxy.trap(publishes(COMMANDS))
        starting = asyncio.create_task(client.start("noted", "x", id="unheard"))
        await trap.wait()
        proxy.refuse = True
        proxy.blackhole("down")
        trap.release()
        with pytest.raises(UnavailableError) as unknown:
            await starting
        assert unknown.value.invocation_id == "unheard"
        await stage.processor()
        assert (await healthy.invoke("noted", "x", id="unheard", timeout=10)).startswith("x ")
        assert stage.ledger.count(event="run", step="note") == 1
