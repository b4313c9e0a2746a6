"""H12, live: a sleep that fired is an entry in its slot, one that was not needed stores nothing."""

from __future__ import annotations

import asyncio

import pytest

from tests.kit.foreign import echo
from tests.kit.stage import M1, M2, Mode, Stage


@pytest.fixture(params=[M1, M2], ids=lambda mode: mode.name, autouse=True)
def mode(request: pytest.FixtureRequest) -> Mode:
    found: Mode = request.param
    return found


async def test_a_fired_sleep_lies_in_its_slot(stage: Stage) -> None:
    async with stage.client() as client:
        await stage.processor()
        async with stage.raw.watch("wf.default.j.s.>") as entries:
            handle = await client.start("sleeper", 0.3)
            await handle.result(timeout=10)
        kinds = [(subject.split(".")[8], subject.split(".")[10].split("-")[0]) for subject in entries.subjects]
        assert kinds == [("0", "run"), ("1", "sleep"), ("2", "run")]


async def test_a_time_out_that_is_not_reached_leaves_no_entry(stage: Stage) -> None:
    async with (
        stage.client() as client,
        stage.foreign("Slow", echo(b"in time")),
        stage.foreign("Last", echo()),
    ):
        await stage.processor()
        async with stage.raw.watch("wf.default.j.s.>") as entries:
            assert await client.invoke("call_within", 30.0, timeout=15) == "in time, in time"
        steps = {subject.split(".")[8] for subject in entries.subjects}
        assert len(entries.subjects) == 3, entries.subjects
        assert len(steps) == 3


async def test_a_time_out_stays_what_it_was_in_every_pass(stage: Stage) -> None:
    """The answer comes after the time-out, and the processor is killed afterwards: the replay sees the same."""
    async with stage.client() as client, stage.foreign("Slow") as slow, stage.foreign("Last") as last:
        first = await stage.processor()
        handle = await client.start("call_within", 0.5)
        request = (await slow.wait_for(1))[0]
        await last.wait_for(1)
        await request.respond(b"in time after all")
        first.kill()
        await stage.processor()
        answer = await last.wait_for(2)
        assert {request.data for request in answer} == {b"too late"}
        await answer[-1].respond(b"end")
        assert await handle.result(timeout=15) == "too late, end"


async def test_sleeps_are_never_early(stage: Stage) -> None:
    async with stage.client() as client:
        await stage.processor()
        handles = [await client.start("sleeper", 0.2 + n / 50) for n in range(10)]
        slept = await asyncio.gather(*(handle.result(timeout=15) for handle in handles))
        for n, seconds in enumerate(slept):
            assert seconds >= 0.2 + n / 50
        for n, handle in enumerate(handles):
            before, after = stage.ledger.entries(event="run", invocation=handle.id)
            assert after.at - before.at >= 0.2 + n / 50 - 0.005
