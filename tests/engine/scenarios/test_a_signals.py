"""A11, A13: signals are read in order, each once, whoever lives when they are sent."""

from __future__ import annotations

import asyncio

import pytest

from engine import InvalidNameError, InvocationNotFoundError, InvocationStateError
from tests.kit.agreement import agreement
from tests.kit.stage import Stage


async def test_signals_sent_before_anybody_lived_are_read_in_order(stage: Stage) -> None:
    async with stage.client() as client:
        handle = await client.start("adds_up", 5)
        for number in range(5):
            await handle.signal("number", number)
        await stage.processor()
        assert await handle.result(timeout=15) == [0, 1, 2, 3, 4]
        assert (await agreement(client, stage.raw, handle.id)).status == "completed"


async def test_a_run_that_waits_for_signals_is_suspended_and_woken(stage: Stage) -> None:
    async with stage.client() as client:
        await stage.processor()
        handle = await client.start("adds_up", 3)
        record = await stage.raw.wait_for_status(handle.id, "suspended")
        assert {(wait.kind, wait.name) for wait in record.waiting_on} == {("signal", "number"), ("signal", "stop")}
        await handle.signal("number", 7)
        await stage.ledger.wait_for(event="run", step="1")
        await stage.raw.wait_for_status(handle.id, "suspended")
        await handle.signal("stop")
        assert await handle.result(timeout=15) == [7, -1]


async def test_numbered_signals_with_a_killed_processor_between_are_read_in_order_and_once(stage: Stage) -> None:
    async with stage.client() as client:
        first = await stage.processor()
        await stage.processor()
        handle = await client.start("adds_up", 60)
        for number in range(60):
            await handle.signal("number", number)
            if number == 20:
                first.kill()
            if number == 40:
                await stage.processor()
        assert await handle.result(timeout=25) == list(range(60))
        for step in range(1, 60, 10):
            assert stage.ledger.count(event="run", step=str(step)) in {1, 2}, "a killed step may run again"


async def test_signals_at_once_are_each_read_once(stage: Stage) -> None:
    async with stage.client() as client:
        await stage.processor()
        handle = await client.start("adds_up", 30)
        await asyncio.gather(*(handle.signal("number", number) for number in range(30)))
        assert sorted(await handle.result(timeout=20)) == list(range(30))


async def test_a_run_that_has_ended_takes_no_signal(stage: Stage) -> None:
    async with stage.client() as client:
        await stage.processor()
        handle = await client.start("noted", "x")
        await handle.result(timeout=10)
        with pytest.raises(InvocationStateError):
            await handle.signal("number", 1)
        with pytest.raises(InvocationNotFoundError):
            await client.signal("nobody", "number", 1)
        with pytest.raises(InvalidNameError):
            await handle.signal("a.b", 1)
        assert not await stage.raw.controls(handle.id)
