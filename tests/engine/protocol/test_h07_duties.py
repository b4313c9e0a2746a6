"""H7: between the final record and its acknowledgement a crash loses neither result nor notice."""

from __future__ import annotations

from tests.kit.proxy import publishes
from tests.kit.stage import Stage

ACKS = "$JS.ACK.COMMANDS.>"


def is_final_ack(frame) -> bool:  # type: ignore[no-untyped-def]
    """An acknowledgement that takes the command away; in-progress acks are no such thing."""
    return publishes(ACKS)(frame) and frame.payload == b"+ACK"


async def test_a_crash_between_final_record_and_ack_leaves_one_final_record(stage: Stage) -> None:
    async with stage.link() as proxy, stage.client() as client:
        first = await stage.processor(url=proxy.url)
        trap = proxy.trap(is_final_ack)
        handle = await client.start("noted", "x")
        await trap.wait()
        before = await stage.raw.stored_record(handle.id)
        assert before is not None, "the command was acknowledged before the record was stored"
        assert before.headers["Mesh-Status"] == "completed"
        first.kill()
        assert await stage.raw.command(handle.id) is not None
        assert (await handle.result(timeout=5)).startswith("x ")
        async with stage.raw.watch(ACKS) as acks:
            await stage.processor()
            await acks.wait_for(lambda message: message.data == b"+ACK")
        assert await stage.raw.stored_record(handle.id) == before
        assert stage.ledger.count(event="run", step="note") == 1


async def test_a_crash_before_the_final_record_leaves_the_command(stage: Stage) -> None:
    async with stage.link() as proxy, stage.client() as client:
        first = await stage.processor(url=proxy.url)
        trap = proxy.trap(publishes("$KV.EXECUTION_STATE.>"))
        handle = await client.start("noted", "x")
        await trap.wait()
        first.kill()
        assert await stage.raw.command(handle.id) is not None
        await stage.processor()
        assert (await handle.result(timeout=15)).startswith("x ")
        assert stage.ledger.count(event="run", step="note") == 1


async def test_a_waiter_whose_notice_was_lost_hears_of_the_result(stage: Stage) -> None:
    await stage.processor()
    async with stage.link() as proxy, stage.client(proxy.url) as client:
        handle = await client.start("held", "x")
        await stage.ledger.wait_for(event="begin", step="hold")
        proxy.lose(lambda frame: frame.direction == "down" and frame.subject.startswith("wf.default.done."))
        stage.gate("hold").open()
        assert (await handle.result(timeout=20)).startswith("x ")
