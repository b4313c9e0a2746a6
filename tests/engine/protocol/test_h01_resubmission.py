"""H1: a command of an id that has a record is a duplicate; nothing of it is executed again."""

from __future__ import annotations

import asyncio
import secrets

import pytest

from tests.kit.agreement import agreement
from tests.kit.raw import Raw
from tests.kit.stage import Stage


async def submit(raw: Raw, workflow: str, invocation: str, data: bytes) -> str:
    """What another client publishes that read no record before; its incarnation."""
    incarnation = secrets.token_urlsafe(18)
    headers = {
        "Mesh-Incarnation": incarnation,
        "Mesh-Input-Type": "application/json",
        "Mesh-Kind": "start",
        "Nats-Msg-Id": incarnation,
        "Nats-Expected-Last-Subject-Sequence": "0",
        "Nats-Expected-Last-Subject-Sequence-Subject": f"wf.default.cmd.*.*.{invocation}",
    }
    await raw.publish(f"wf.default.cmd.3.{workflow}.{invocation}", data, headers)
    return incarnation


async def test_a_command_of_a_completed_run_is_taken_away_and_not_run(stage: Stage) -> None:
    async with stage.client() as client:
        await stage.processor()
        result = await client.invoke("noted", "x", id="again", timeout=10)
        before = await stage.raw.stored_record("again")
        await _until_no_command(stage, "again")  # the result is known before the command is acknowledged
        await submit(stage.raw, "noted", "again", b'"x"')
        await _until_no_command(stage, "again")
        assert stage.ledger.count(event="run", invocation="again") == 1
        assert await stage.raw.stored_record("again") == before
        assert await client.invoke("noted", "x", id="again", timeout=5) == result


async def test_a_command_of_a_suspended_run_is_taken_away_and_not_run(stage: Stage) -> None:
    async with stage.client() as client:
        await stage.processor("--suspend-after", "0")
        handle = await client.start("sleeper", 3.0, id="asleep")
        record = await stage.raw.wait_for_status("asleep", "suspended")
        await _until_no_command(stage, "asleep")
        await submit(stage.raw, "sleeper", "asleep", b"3.0")
        await _until_no_command(stage, "asleep")
        still = await stage.raw.record("asleep")
        assert still is not None
        assert (still.status, still.run.incarnation) == ("suspended", record.run.incarnation)
        assert await handle.result(timeout=10) >= 3.0
        assert stage.ledger.count(event="run", step="before") == 1
        assert stage.ledger.count(event="run", step="after") == 1


@pytest.mark.parametrize("count", [1, 20])
async def test_a_command_of_a_running_run_waits_until_it_is_needless(stage: Stage, count: int) -> None:
    """The stream refuses a second one while the first is held; whoever comes in its last moment changes nothing."""
    async with stage.client() as client:
        await stage.processor()
        handles = [await client.start("noted", str(n), id=f"busy-{n}") for n in range(count)]
        for n, handle in enumerate(handles):
            await handle.result(timeout=10)
            await _until_no_command(stage, handle.id)
            await submit(stage.raw, "noted", handle.id, f'"{n}"'.encode())
        for handle in handles:
            await _until_no_command(stage, handle.id)
            seen = await agreement(client, stage.raw, handle.id)
            assert seen.status == "completed"
        assert stage.ledger.count(event="run", step="note") == count


async def _until_no_command(stage: Stage, invocation: str) -> None:
    async with asyncio.timeout(20):
        while await stage.raw.command(invocation) is not None:
            await asyncio.sleep(0.02)
