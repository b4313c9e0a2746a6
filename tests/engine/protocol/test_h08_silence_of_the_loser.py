"""H8: who lost a run says nothing about its command any more, so its successor stays protected."""

from __future__ import annotations

import asyncio

from tests.engine.protocol.test_h07_duties import is_final_ack
from tests.kit.ledger import until
from tests.kit.stage import ACK_WAIT, Stage


async def test_a_zombie_does_not_take_its_successors_command_away(stage: Stage) -> None:
    async with stage.client() as client, stage.foreign("Echo") as service:
        zombie = await stage.processor()
        handle = await client.start("echo", "x")
        await service.wait_for(1)
        await stage.raw.wait_for_status(handle.id, "running")
        await zombie.freeze()
        successor = await stage.processor()
        await service.wait_for(2)

        async with stage.raw.watch("$JS.ACK.COMMANDS.>") as acks:
            zombie.thaw()
            await until(lambda: "dropped" in zombie.stderr, what="the zombie to notice", timeout=3 * ACK_WAIT)
            said = {message.data[:4] for message in acks.messages}
            assert said <= {b"+WPI"}, f"somebody said {said}"
        assert await stage.raw.command(handle.id) is not None

        # The successor dies as well: its protection must still be there.
        await zombie.freeze()
        successor.kill()
        third = await stage.processor()
        requests = await service.wait_for(3, timeout=15)
        await requests[2].respond(b"third")
        assert await handle.result(timeout=10) == "third"
        assert [request.run for request in requests] == sorted({request.run for request in requests})
        third.kill()
        zombie.thaw()


async def test_a_zombie_that_would_finish_is_refused_and_silent(stage: Stage) -> None:
    async with stage.client() as client, stage.foreign("Echo") as service:
        zombie = await stage.processor()
        handle = await client.start("echo", "x")
        first = (await service.wait_for(1))[0]
        await stage.raw.wait_for_status(handle.id, "running")
        await zombie.freeze()
        await first.respond(b"answer")  # lies in the zombie's socket: all that it needs to finish
        successor = await stage.processor()
        assert await handle.result(timeout=15) == "answer"
        await command_gone(stage, handle.id)
        before = await stage.raw.stored_record(handle.id)
        async with stage.raw.watch("$JS.ACK.COMMANDS.>", "$KV.EXECUTION_STATE.>") as seen:
            zombie.thaw()
            await until(lambda: "dropped" in zombie.stderr, what="the zombie to notice", timeout=3 * ACK_WAIT)
            assert not [m for m in seen.messages if m.data[:4] in (b"+ACK", b"-NAK", b"+TER")]
        assert await stage.raw.stored_record(handle.id) == before
        assert len(service.requests) == 1
        successor.kill()


async def test_the_late_ack_of_a_suspension_does_not_take_the_next_owners_command_away(stage: Stage) -> None:
    """The suspender's ack is under way when its command is delivered again: whoever gets that must not live on it."""
    async with stage.link() as proxy, stage.client() as client, stage.foreign("Last") as last:
        suspender = await stage.processor("--suspend-after", "0", url=proxy.url)
        trap = proxy.trap(is_final_ack)
        handle = await client.start("sleep_then_call", 0.5)
        under_way = await trap.wait()
        suspender.kill()
        second = await stage.processor("--suspend-after", "0")
        await last.wait_for(1, timeout=30)
        await stage.raw.client.publish(under_way.subject, under_way.payload)
        await stage.raw.client.flush()
        assert await stage.raw.command(handle.id) is not None, "the run has lost its protection"
        second.kill()
        await stage.processor("--suspend-after", "0")
        requests = await last.wait_for(2, timeout=15)
        await requests[1].respond(b"safe")
        assert await handle.result(timeout=10) == "safe"


async def command_gone(stage: Stage, invocation: str) -> None:
    """The successor's own acknowledgement follows the notice of its result."""
    async with asyncio.timeout(10):
        while await stage.raw.command(invocation) is not None:
            await asyncio.sleep(0.01)
