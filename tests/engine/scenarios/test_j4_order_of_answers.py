"""J4: continuations run in the order in which answers were stored, in the replay as live."""

from __future__ import annotations

from contextlib import AsyncExitStack

from tests.kit.foreign import Foreign, echo
from tests.kit.ledger import until
from tests.kit.stage import Stage

ANSWERS = "EDCBA"


async def test_a_replay_continues_in_the_order_of_the_recorded_answers(stage: Stage) -> None:
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(stage.client())
        services = {name: await stack.enter_async_context(stage.foreign(name)) for name in sorted(ANSWERS)}
        last = await stack.enter_async_context(stage.foreign("Last", echo()))
        first = await stage.processor()

        undisturbed = await client.start("ordered_gather", "x")
        await answer_in_order(services, ANSWERS)
        assert await undisturbed.result(timeout=10) == list(ANSWERS)

        for service in services.values():
            service.requests.clear()
        disturbed = await client.start("ordered_gather", "x")
        await answer_in_order(services, ANSWERS[:3])
        first.kill()
        assert [slot.name[-1] for slot in await stage.raw.slots(disturbed.id)] == list(ANSWERS[:3])
        await stage.processor()
        for name in ANSWERS[3:]:
            await (await services[name].wait_for(2))[-1].respond(name.encode())
        assert await disturbed.result(timeout=20) == list(ANSWERS)
        assert [len(services[name].requests) for name in ANSWERS] == [1, 1, 1, 2, 2]
        assert [request.data for request in last.requests] == [ANSWERS.encode()] * 2


async def answer_in_order(services: dict[str, Foreign], names: str) -> None:
    """All five have been asked; answer some of them one after the other."""
    for service in services.values():
        await service.wait_for(1)
    for name in names:
        await services[name].requests[-1].respond(name.encode())


async def test_step_numbers_are_those_of_issue_in_every_journal(stage: Stage) -> None:
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(stage.client())
        services = {name: await stack.enter_async_context(stage.foreign(name)) for name in sorted(ANSWERS)}
        await stack.enter_async_context(stage.foreign("Last", echo()))
        await stage.processor()
        handle = await client.start("ordered_gather", "x")
        await answer_in_order(services, "CAEBD")
        assert await handle.result(timeout=10) == list("CAEBD")
        record = await stage.raw.wait_for_status(handle.id, "completed")
        named = [(entry.step_number, entry.step_type) for entry in record.journal]
        assert named == [(n, f"Steps.{name}") for n, name in enumerate([*"ABCDE", "Last"])]
        sequences = {entry.step_type[-1]: entry.sequence for entry in record.journal[:5]}
        assert sorted(sequences, key=lambda name: sequences[name]) == list("CAEBD")
        await until(lambda: True)
