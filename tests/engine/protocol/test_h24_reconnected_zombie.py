"""H24: who was cut off claims its runs again and reads everything before it goes on."""

from __future__ import annotations

import asyncio

from engine.durable_pb2 import ExecutionState
from tests.kit.foreign import echo
from tests.kit.ledger import until
from tests.kit.stage import Stage


async def running(stage: Stage, invocation: str) -> ExecutionState:
    """The record of a run that has one."""
    record = await stage.raw.record(invocation)
    assert record is not None
    return record


async def test_a_reconnected_processor_does_not_go_on_from_the_second_of_two_answers(stage: Stage) -> None:
    async with (
        stage.link() as proxy,
        stage.client() as client,
        stage.foreign("A") as a,
        stage.foreign("B") as b,
        stage.foreign("Ship", echo(b"shipped ")) as ship,
        stage.foreign("Refund", echo(b"refunded ")) as refund,
    ):
        await stage.processor(url=proxy.url)
        handle = await client.start("race", "x")
        await a.wait_for(1)
        await b.wait_for(1)
        before = await stage.raw.wait_for_status(handle.id, "running", timeout=10)
        proxy.refuse = True
        proxy.cut()
        await a.requests[0].respond(b"a")
        proxy.refuse = False
        async with asyncio.timeout(10):
            while (await running(stage, handle.id)).run.number == before.run.number:
                await asyncio.sleep(0.02)
        await b.requests[0].respond(b"b")
        assert await handle.result(timeout=15) == ["A", "shipped x"]
        assert (len(ship.requests), len(refund.requests)) == (1, 0)


async def test_a_processor_that_was_cut_off_and_lost_its_run_sends_nothing_for_it(stage: Stage) -> None:
    async with (
        stage.link() as proxy,
        stage.client() as client,
        stage.foreign("A", echo(b"a")) as a,
        stage.foreign("B") as b,
        stage.foreign("C", echo(b"c")) as c,
        stage.foreign("Echo", echo()),
    ):
        cut_off = await stage.processor(url=proxy.url)
        handle = await client.start("three_calls", "x")
        first = (await b.wait_for(1))[0]
        await stage.raw.wait_for_status(handle.id, "running")
        proxy.refuse = True
        proxy.cut()
        successor = await stage.processor()
        second = (await b.wait_for(2, timeout=15))[1]
        assert second.run > first.run
        await second.respond(b"bx")
        assert await handle.result(timeout=10) == ["ax", "bx", "cx"]
        successor.kill()
        proxy.refuse = False
        assert await client.invoke("echo", "still at work", timeout=15) == "still at work"
        assert [len(service.requests) for service in (a, b, c)] == [1, 2, 1]
        assert cut_off.exit_code is None


async def test_a_stalled_link_is_silence(stage: Stage) -> None:
    """Nothing is cut: the link just carries nothing for longer than ack-wait."""
    async with (
        stage.link() as proxy,
        stage.client() as client,
        stage.foreign("A", echo(b"a")) as a,
        stage.foreign("B") as b,
        stage.foreign("C", echo(b"c")) as c,
    ):
        await stage.processor(url=proxy.url)
        handle = await client.start("three_calls", "x")
        await b.wait_for(1)
        await stage.raw.wait_for_status(handle.id, "running")
        proxy.stall()
        await b.requests[0].respond(b"bx")
        successor = await stage.processor()
        assert await handle.result(timeout=15) == ["ax", "bx", "cx"]
        final = await stage.raw.stored_record(handle.id)
        successor.kill()
        proxy.flow()
        async with stage.foreign("Echo", echo()):
            assert await client.invoke("echo", "still at work", timeout=30) == "still at work"
        assert [len(service.requests) for service in (a, b, c)] == [1, 1, 1]
        assert await stage.raw.stored_record(handle.id) == final


async def test_a_stopped_processor_with_nothing_due_but_an_answer_does_not_act_on_it(stage: Stage) -> None:
    """No look for a late answer falls into the stop, so only the lease can tell that time has passed."""
    async with (
        stage.client() as client,
        stage.foreign("A", echo(b"a")) as a,
        stage.foreign("B") as b,
        stage.foreign("C") as c,
    ):
        zombie = await stage.processor(ack_wait=1)
        handle = await client.start("three_calls", "x")
        await b.wait_for(1)
        await asyncio.sleep(3.3)  # looks come 1 s, 3 s and 7 s after the request
        await zombie.freeze()
        await b.requests[0].respond(b"bx")
        successor = await stage.processor(ack_wait=1)
        await c.wait_for(1)
        zombie.thaw()
        await until(lambda: "dropped" in zombie.stderr, what="the zombie to notice")
        assert [len(service.requests) for service in (a, b, c)] == [1, 1, 1]
        await c.requests[0].respond(b"cx")
        assert await handle.result(timeout=10) == ["ax", "bx", "cx"]
        assert c.requests[0].run == 2
        assert successor.exit_code is None
