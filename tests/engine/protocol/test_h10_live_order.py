"""H10, live: a copy that never came does not change the order in which answers are fed."""

from __future__ import annotations

from tests.kit.foreign import echo
from tests.kit.proxy import delivers
from tests.kit.stage import Stage


async def test_an_answer_whose_copy_was_lost_still_wins_the_race(stage: Stage) -> None:
    async with (
        stage.link() as proxy,
        stage.client() as client,
        stage.foreign("A") as a,
        stage.foreign("B") as b,
        stage.foreign("Ship", echo(b"shipped ")) as ship,
        stage.foreign("Refund", echo(b"refunded ")) as refund,
    ):
        first = await stage.processor(url=proxy.url)
        handle = await client.start("race", "x")
        await a.wait_for(1)
        await b.wait_for(1)
        proxy.lose(delivers(f"wf.default.j.s.*.*.{handle.id}.*.0.>"))
        await a.requests[0].respond(b"a")
        await b.requests[0].respond(b"b")
        await ship.wait_for(1)
        first.kill()
        await stage.processor()
        assert await handle.result(timeout=15) == ["A", "shipped x"]
        assert refund.requests == []


async def test_two_answers_that_come_in_one_read_are_fed_in_their_order(stage: Stage) -> None:
    """The processor is stopped while both are stored: it finds both copies at once, in the order of the stream."""
    async with (
        stage.client() as client,
        stage.foreign("A") as a,
        stage.foreign("B") as b,
        stage.foreign("Ship", echo(b"shipped ")) as ship,
        stage.foreign("Refund", echo(b"refunded ")) as refund,
    ):
        processor = await stage.processor(ack_wait=10)
        handle = await client.start("race", "x")
        await a.wait_for(1)
        await b.wait_for(1)
        await processor.freeze()
        await b.requests[0].respond(b"b")
        await a.requests[0].respond(b"a")
        processor.thaw()
        assert await handle.result(timeout=15) == ["B", "refunded x"]
        assert (len(ship.requests), len(refund.requests)) == (0, 1)


async def test_an_answer_that_was_sent_and_not_stored_is_stored_by_the_processor(stage: Stage) -> None:
    """A reply header that JetStream obeys keeps the entry out of the journal; the direct copy repairs it."""
    async with stage.client() as client, stage.foreign("Echo") as service:
        await stage.processor()
        handle = await client.start("echo", "x")
        request = (await service.wait_for(1))[0]
        await request.respond(b"answer", {"Nats-Expected-Last-Sequence": "123456789", "Content-Type": "text/plain"})
        assert await handle.result(timeout=15) == "answer"
        assert len(service.requests) == 1
