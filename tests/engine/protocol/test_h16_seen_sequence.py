"""H16: what a suspended run has seen is what a complete read said, and everything below it was consumed."""

from __future__ import annotations

import asyncio
import re

from engine import journal
from engine.model import Kind
from tests.kit.foreign import echo
from tests.kit.proxy import delivers
from tests.kit.stage import Stage


async def test_an_entry_whose_copy_was_lost_is_consumed_before_the_run_is_suspended(stage: Stage) -> None:
    async with (
        stage.link() as proxy,
        stage.client() as client,
        stage.foreign("A") as a,
        stage.foreign("B") as b,
        stage.foreign("Last", echo(b"seen ")) as last,
    ):
        first = await stage.processor("--suspend-after", "0", url=proxy.url)
        handle = await client.start("race_then_sleep", 2.0)
        await a.wait_for(1)
        await b.wait_for(1)
        proxy.lose(delivers(f"wf.default.j.s.*.*.{handle.id}.*.0.>"))
        await a.requests[0].respond(b"a")
        await b.requests[0].respond(b"b")
        record = await stage.raw.wait_for_status(handle.id, "suspended")
        slots = await stage.raw.slots(handle.id)
        assert [slot.name for slot in slots] == ["Steps%2EA", "Steps%2EB"]
        assert record.run.seen_seq >= max(slot.sequence for slot in slots)
        first.kill()
        await stage.processor("--suspend-after", "0")
        assert await handle.result(timeout=15) == ["A", "B", "seen AB"]
        assert (len(a.requests), len(b.requests), len(last.requests)) == (1, 1, 1)


async def test_an_entry_stored_while_the_run_is_being_suspended_is_consumed(stage: Stage) -> None:
    """The complete read before the suspending record finds a timer fired: nobody would wake the run for it again."""
    whole_journal = re.compile(rb'\.asleep\.([^."]+)\.>"')
    async with stage.link() as proxy, stage.client() as client:
        await stage.processor("--suspend-after", "0", url=proxy.url)
        trap = proxy.trap(lambda frame: frame.direction == "up" and bool(whole_journal.search(frame.payload)), skip=1)
        handle = await client.start("sleeper", 4.0, id="asleep")
        read = whole_journal.search((await trap.wait()).payload)
        assert read is not None
        entry = (await stage.raw.slots("asleep"))[0].stored.subject.rsplit(".", 4)[0]
        slot = f"{entry}.1.1.sleep-{journal.digest(Kind.SLEEP, b'4000000')}.4s"
        assert read[1].decode() in slot
        await stage.raw.publish(slot, b"", {"Mesh-Entry": "fired"})
        trap.release()
        await handle.result(timeout=3)
        assert stage.ledger.count(event="run", step="after") == 1


async def test_a_suspended_run_costs_no_command_and_has_its_timer_stored(stage: Stage) -> None:
    async with stage.client() as client:
        await stage.processor("--suspend-after", "0")
        handle = await client.start("sleeper", 30.0)
        record = await stage.raw.wait_for_status(handle.id, "suspended")
        async with asyncio.timeout(10):
            while await stage.raw.messages("COMMANDS"):
                await asyncio.sleep(0.02)
        timers = await stage.raw.subjects("TIMERS")
        assert [subject.split(".")[2:5] for subject in timers] == [["timer", "s", handle.id]]
        assert [(wait.kind, wait.name) for wait in record.waiting_on] == [("sleep", "30s")]
        due = record.waiting_on[0].due_at.ToNanoseconds() - record.started_at.ToNanoseconds()
        assert 29.0 < due / 1e9 < 31.5
        assert record.run.owner == ""
