"""H23: run numbers come from the record and only rise, whatever delivery counts say."""

from __future__ import annotations

from tests.kit.stage import Stage


async def test_run_numbers_rise_with_every_take_over(stage: Stage) -> None:
    async with stage.client() as client, stage.foreign("Echo") as service:
        handle = await client.start("echo", "x")
        for count in (1, 2, 3, 4):
            processor = await stage.processor(ack_wait=1)
            await service.wait_for(count, timeout=15)
            if count < 4:
                processor.kill()
        numbers = [request.run for request in service.requests]
        assert numbers == sorted(set(numbers)), numbers
        await service.requests[-1].respond(b"answer")
        assert await handle.result(timeout=10) == "answer"
        record = await stage.raw.record(handle.id)
        assert record is not None
        assert record.run.number == numbers[-1]
        assert record.run.contested


async def test_a_delivery_count_that_begins_anew_does_not_lower_the_run_number(stage: Stage) -> None:
    """The server is killed right after a delivery and forgets it: the next one has count 1 again."""
    async with stage.client() as client, stage.foreign("Echo") as service:
        first = await stage.processor(ack_wait=1)
        handle = await client.start("echo", "x")
        await service.wait_for(1)
        first.kill()
        stage.server.kill()
        await stage.server.astart()
        await stage.processor(ack_wait=1)
        original, repeated = (await service.wait_for(2, timeout=15))[:2]
        assert repeated.key == original.key
        await repeated.respond(b"answer")
        assert await handle.result(timeout=10) == "answer"
        assert repeated.run >= original.run


async def test_a_run_that_lasts_has_a_record_within_a_second(stage: Stage) -> None:
    async with stage.client() as client, stage.foreign("Echo") as service:
        await stage.processor()
        handle = await client.start("echo", "x")
        await service.wait_for(1)
        record = await stage.raw.wait_for_status(handle.id, "running", timeout=1.2)
        assert (record.run.number, record.run.contested) == (1, False)
        assert (await handle.describe()).status == "running"
        await service.requests[0].respond(b"answer")
        await handle.result(timeout=10)


async def test_a_short_run_stores_its_command_its_steps_and_its_record(stage: Stage) -> None:
    async with stage.client() as client, stage.foreign("Echo") as service:
        await stage.processor()

        async def answer(request) -> None:  # type: ignore[no-untyped-def]
            await request.respond(request.data)

        service.handler = answer
        async with stage.raw.watch("wf.default.cmd.>", "wf.default.j.s.>", "wf.default.done.>") as stored:
            await client.invoke("echo", "x", timeout=10)
            kinds = [subject.split(".")[2] for subject in stored.subjects]
        assert kinds == ["cmd", "j", "done"]
