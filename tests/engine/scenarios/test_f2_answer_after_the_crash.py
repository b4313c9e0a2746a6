"""F2: an answer that comes while no processor lives is the journal entry."""

from __future__ import annotations

from tests.kit.agreement import agreement
from tests.kit.ledger import until
from tests.kit.stage import Stage


async def test_an_answer_given_while_nobody_runs_is_taken_from_the_journal(stage: Stage) -> None:
    async with stage.client() as client, stage.foreign("Echo") as service:
        first = await stage.processor()
        handle = await client.start("echo", "x")
        request = (await service.wait_for(1))[0]
        first.kill()
        await request.respond(b"late answer")
        slots = await stage.raw.slots(handle.id)
        assert [slot.stored.data for slot in slots] == [b"late answer"]
        await stage.processor()
        assert await handle.result(timeout=10) == "late answer"
        assert len(service.requests) == 1
        seen = await agreement(client, stage.raw, handle.id)
        assert (seen.status, seen.result) == ("completed", "late answer")
        assert [(entry.step_type, entry.response) for entry in seen.record.journal] == [("Steps.Echo", b"late answer")]


async def test_an_answer_that_comes_after_the_take_over_is_not_asked_for_twice_over(stage: Stage) -> None:
    """The successor may ask once more (same key, higher run number); whoever answers first decides."""
    async with stage.client() as client, stage.foreign("Echo") as service:
        first = await stage.processor()
        handle = await client.start("echo", "x")
        await service.wait_for(1)
        first.kill()
        await stage.processor()
        original, repeated = (await service.wait_for(2))[:2]
        assert repeated.key == original.key
        assert repeated.run > original.run
        await original.respond(b"first")
        await repeated.respond(b"second")
        assert await handle.result(timeout=10) == "first"
        await until(lambda: len(service.requests) == 2)
