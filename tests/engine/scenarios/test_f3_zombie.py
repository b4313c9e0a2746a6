"""F3: a processor that was stopped past ack-wait comes back when another one has finished its run."""

from __future__ import annotations

import pytest

from tests.kit.agreement import agreement
from tests.kit.foreign import Foreign, echo
from tests.kit.stage import Stage


@pytest.mark.parametrize("recorded", [False, True], ids=["first-second", "recorded"])
@pytest.mark.parametrize("answered", [False, True], ids=["waiting", "answer-in-its-socket"])
async def test_a_zombie_repeats_no_recorded_step_and_goes_on_with_other_work(
    stage: Stage, answered: bool, recorded: bool
) -> None:
    async with (
        stage.client() as client,
        stage.foreign("A", echo(b"A")) as a,
        stage.foreign("B") as b,
        stage.foreign("C", echo(b"C")) as c,
        stage.foreign("Echo", echo()),
    ):
        zombie = await stage.processor()
        handle = await client.start("three_calls", "x")
        first_request = (await b.wait_for(1))[0]
        if recorded:
            await stage.raw.wait_for_status(handle.id, "running")
        await zombie.freeze()
        if answered:
            await first_request.respond(b"Bx")
        successor = await stage.processor()
        if not answered:
            await (await b.wait_for(2))[1].respond(b"Bx")
        assert await handle.result(timeout=20) == ["Ax", "Bx", "Cx"]
        final = await stage.raw.stored_record(handle.id)
        assert final is not None
        requests_before = {service: len(service.requests) for service in (a, b, c)}

        zombie.thaw()
        successor.kill()
        assert await client.invoke("echo", "other work", timeout=20) == "other work"

        # It was stopped while it waited, not between its check and the socket: so not even the one
        # late request, with a lower run number, that a zombie may send.
        assert [len(service.requests) for service in requests_before] == list(requests_before.values())
        after = await stage.raw.stored_record(handle.id)
        assert after == final
        seen = await agreement(client, stage.raw, handle.id)
        assert (seen.status, seen.result) == ("completed", ["Ax", "Bx", "Cx"])


async def test_the_successor_asks_with_the_same_key_and_a_higher_run_number(stage: Stage) -> None:
    async with stage.client() as client, stage.foreign("Echo") as service:
        zombie = await stage.processor()
        handle = await client.start("echo", "x")
        await service.wait_for(1)
        await zombie.freeze()
        await stage.processor()
        first, second = (await service.wait_for(2))[:2]
        assert first.key == second.key != ""
        assert first.run < second.run
        await second.respond(b"done")
        assert await handle.result(timeout=10) == "done"
        record = await stage.raw.record(handle.id)
        assert record is not None
        assert record.run.number == second.run


async def test_keys_differ_between_steps_and_between_invocations(stage: Stage) -> None:
    services: list[Foreign] = []
    async with (
        stage.client() as client,
        stage.foreign("A", echo()) as a,
        stage.foreign("B", echo()) as b,
        stage.foreign("C", echo()) as c,
    ):
        services += [a, b, c]
        await stage.processor()
        for number in range(3):
            await client.invoke("three_calls", str(number), timeout=10)
        keys = [request.key for service in services for request in service.requests]
        assert len(keys) == 9
        assert len(set(keys)) == 9
        assert {request.run for service in services for request in service.requests} == {1}
