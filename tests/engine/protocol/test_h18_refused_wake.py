"""H18: a wake that is refused because the old command is still there proves nothing; it is tried until it is stored."""

from __future__ import annotations

import asyncio

from tests.engine.protocol.test_h07_duties import is_final_ack
from tests.kit.stage import Stage


async def test_a_timer_that_fires_before_the_suspenders_ack_still_wakes_the_run(stage: Stage) -> None:
    async with stage.link() as proxy, stage.client() as client, stage.raw.watch("wf.default.cmd.>") as commands:
        first = await stage.processor("--suspend-after", "0", url=proxy.url)
        await stage.processor("--suspend-after", "0")
        trap = proxy.trap(is_final_ack)
        handle = await client.start("sleeper", 0.5)
        suspended = await stage.raw.wait_for_status(handle.id, "suspended", timeout=10)
        if trap.sprung:  # the run was taken by the processor behind the proxy: its ack hangs
            # Its timer may be given to it as well, and then the other one takes the run over by its old command.
            woken = asyncio.ensure_future(commands.wait_for(lambda m: (m.headers or {}).get("Mesh-Kind") == "wake"))
            ended = asyncio.ensure_future(handle.result(timeout=20))
            await asyncio.wait([woken, ended], return_when=asyncio.FIRST_COMPLETED)
            if woken.done():
                assert (woken.result().headers or {})["Mesh-Incarnation"] == suspended.run.incarnation
            woken.cancel()
            ended.cancel()
            trap.release()
        assert await handle.result(timeout=20) >= 0.5
        assert stage.ledger.count(event="run", step="after") == 1
        first.kill()


async def test_a_suspender_that_dies_before_its_ack_loses_no_timer(stage: Stage) -> None:
    async with stage.link() as proxy, stage.client() as client:
        first = await stage.processor("--suspend-after", "0", url=proxy.url)
        trap = proxy.trap(is_final_ack)
        handle = await client.start("sleeper", 1.0)
        await trap.wait()
        first.kill()
        await stage.processor("--suspend-after", "0")
        assert await handle.result(timeout=20) >= 1.0
        assert stage.ledger.count(event="run", step="before") == 1
        assert stage.ledger.count(event="run", step="after") == 1


async def test_a_suspender_that_dies_before_its_record_loses_no_timer(stage: Stage) -> None:
    async with stage.link() as proxy, stage.client() as client:
        first = await stage.processor("--suspend-after", "0", url=proxy.url)
        trap = proxy.trap(lambda frame: frame.direction == "up" and frame.subject.startswith("$KV.EXECUTION_STATE."))
        handle = await client.start("sleeper", 1.0)
        await trap.wait()
        first.kill()
        await stage.processor("--suspend-after", "0")
        assert await handle.result(timeout=20) >= 1.0
        assert stage.ledger.count(event="run", step="before") == 1
        assert stage.ledger.count(event="run", step="after") == 1
