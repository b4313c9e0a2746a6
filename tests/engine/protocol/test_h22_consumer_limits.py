"""H22: limits are each processor's own, so one more processor is one more processor's worth."""

from __future__ import annotations

from tests.kit.stage import Stage


async def test_consumers_have_no_limit_of_their_own(stage: Stage) -> None:
    await stage.processor("--max-concurrent", "2")
    for workflow in ("held", "echo"):
        config = (await stage.raw.consumer(workflow))["config"]
        assert config["max_ack_pending"] == -1
        assert config["max_deliver"] == -1
        assert config["ack_policy"] == "explicit"
        assert config["filter_subject"] == f"wf.default.cmd.*.{workflow}.>"
        assert config["ack_wait"] == 2_000_000_000
    timers = (await stage.raw.api("CONSUMER.INFO.TIMERS.timers"))["config"]
    assert (timers["max_ack_pending"], timers["max_deliver"]) == (-1, -1)


async def test_a_second_processor_adds_its_own_slots(stage: Stage) -> None:
    async with stage.client() as client:
        first = await stage.processor("--max-concurrent", "2")
        handles = [await client.start("held", str(n)) for n in range(5)]
        await stage.ledger.wait_for(2, event="begin", step="hold")
        second = await stage.processor("--max-concurrent", "2")
        begun = await stage.ledger.wait_for(4, event="begin", step="hold")
        assert sorted(entry.pid for entry in begun) == sorted([first.pid, second.pid] * 2)
        assert stage.ledger.count(event="begin", step="hold") == 4
        stage.gate("hold").open()
        for n, handle in enumerate(handles):
            assert (await handle.result(timeout=15)).startswith(f"{n} ")
        assert stage.ledger.count(event="begin", step="hold") == 5
