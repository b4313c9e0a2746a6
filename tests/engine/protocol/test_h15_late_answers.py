"""H15, live: the late answer of a closed attempt is refused by the server, and no pass ever sees it."""

from __future__ import annotations

from tests.kit.stage import Stage


async def test_a_late_answer_of_a_timed_out_attempt_is_refused(stage: Stage) -> None:
    async with stage.client() as client, stage.foreign("Slow") as service:
        first = await stage.processor()
        handle = await client.start("impatient", 0.5)
        early, second = (await service.wait_for(2))[:2]
        assert early.key == second.key
        assert early.reply != second.reply
        await early.respond(b"first")
        slots = await stage.raw.slots(handle.id)
        assert [(slot.attempt, slot.stored.headers.get("Mesh-Entry")) for slot in slots] == [(1, "timeout")]
        await second.respond(b"second")
        assert await handle.result(timeout=10) == "second"
        record = await stage.raw.wait_for_status(handle.id, "completed")
        entry = record.journal[0]
        assert (entry.attempt_count, entry.response) == (2, b"second")
        assert [attempt.error.code for attempt in entry.attempts] == ["DEADLINE_EXCEEDED"]
        first.kill()


async def test_an_attempt_is_closed_before_the_next_is_sent(stage: Stage) -> None:
    """Seen from outside: when the second request arrives, the first slot is filled already."""
    async with stage.client() as client, stage.foreign("Slow") as service:
        await stage.processor()
        async with stage.raw.watch("wf.default.j.s.>", "svc.kit.Steps.Slow") as seen:
            handle = await client.start("impatient", 0.3)
            await service.wait_for(3)
            await service.requests[2].respond(b"third")
            assert await handle.result(timeout=10) == "third"
            kinds = ["request" if m.subject.startswith("svc") else "entry" for m in seen.messages]
            assert kinds == ["request", "entry", "request", "entry", "request", "entry"]


async def test_a_crash_after_a_closed_attempt_keeps_it_closed(stage: Stage) -> None:
    async with stage.client() as client, stage.foreign("Slow") as service:
        first = await stage.processor()
        handle = await client.start("impatient", 0.5)
        requests = await service.wait_for(2)
        first.kill()
        await requests[0].respond(b"first")
        await stage.processor()
        requests = await service.wait_for(3, timeout=15)
        assert requests[2].reply == requests[1].reply, "the second attempt is sent again, no other"
        await requests[2].respond(b"second")
        assert await handle.result(timeout=10) == "second"
