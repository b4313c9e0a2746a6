"""H11: controls reach code at the place of the entry that delivers them, live and in replay alike."""

from __future__ import annotations

import asyncio

import pytest

from engine import Context
from engine.model import Ask
from tests.engine.protocol.passes import answer, begin, control, delivered, failure, fired, replayed, result
from tests.kit.foreign import echo
from tests.kit.proxy import delivers, publishes
from tests.kit.stage import Stage


async def call_twice(ctx: Context) -> str:
    """Two calls; a cancellation between them is answered by another one."""
    try:
        await ctx.call("kit.Steps", "A", b"", bytes)
        await ctx.call("kit.Steps", "B", b"", bytes)
    except asyncio.CancelledError:
        return (await ctx.call("kit.Steps", "Undo", b"", bytes)).decode()
    return "undisturbed"


async def lets_it_pass(ctx: Context) -> str:
    """A call, and nothing else."""
    return (await ctx.call("kit.Steps", "A", b"", bytes)).decode()


def test_a_control_counts_at_its_delivery_and_not_at_its_own_sequence() -> None:
    step = begin(call_twice).steps[0]
    early = replayed(call_twice, answer(step, 11), delivered(12, 0, up_to=10), controls=[control(10)])
    assert [s.name for s in early.steps] == ["Steps.A", "Steps.B", "Steps.Undo"]
    before = replayed(call_twice, delivered(11, 0, up_to=10), answer(step, 12), controls=[control(10)])
    assert [s.name for s in before.steps] == ["Steps.A", "Steps.Undo"]
    assert [s.name for s in before.open_steps()] == ["Steps.Undo"]


def test_a_control_without_a_delivery_is_no_input() -> None:
    replay = replayed(lets_it_pass, controls=[control(10)])
    assert replay.mailbox.has_mail
    assert [s.name for s in replay.open_steps()] == ["Steps.A"]


def test_a_cancellation_that_the_code_lets_pass_is_its_end() -> None:
    replay = replayed(lets_it_pass, delivered(11, 0, up_to=10), controls=[control(10)])
    assert replay.outcome is not None
    assert replay.outcome.cancelled
    assert replay.outcome.failure is None


def test_a_cancellation_of_the_codes_own_is_a_failure() -> None:
    async def raises(ctx: Context) -> str:
        raise asyncio.CancelledError

    assert failure(replayed(raises)).type == "CancelledError"


def test_a_second_cancellation_does_not_disturb_what_the_first_one_began() -> None:
    controls = [control(10), control(13, request="other")]
    replay = replayed(call_twice, delivered(11, 0, up_to=10), delivered(14, 1, up_to=13), controls=controls)
    assert [s.name for s in replay.open_steps()] == ["Steps.Undo"]
    undo = replay.open_steps()[0]
    assert result(replayed(call_twice, delivered(11, 0, up_to=10), answer(undo, 15, b"undone"), controls=controls))


def test_a_delivery_after_the_end_is_no_mismatch() -> None:
    step = begin(lets_it_pass).steps[0]
    assert (
        result(replayed(lets_it_pass, answer(step, 10, b"a"), delivered(12, 0, up_to=11), controls=[control(11)]))
        == "a"
    )


def test_two_owners_deliveries_of_the_same_control_deliver_it_once() -> None:
    once = replayed(call_twice, delivered(11, 0, up_to=10), delivered(12, 1, up_to=10), controls=[control(10)])
    assert [s.name for s in once.open_steps()] == ["Steps.Undo"]


@pytest.mark.parametrize("lost", ["wf.default.j.s.*.*.*.*.in.>", "wf.default.j.s.*.*.*.*.0.>"])
async def test_a_lost_copy_does_not_change_the_order_of_answer_and_cancellation(stage: Stage, lost: str) -> None:
    async with stage.link() as proxy, stage.client() as client, stage.foreign("Blocked") as blocked:
        async with stage.foreign("Undo", echo()):
            await stage.processor("--suspend-after", "0", url=proxy.url)
            handle = await client.start("cancellable", "call")
            await blocked.wait_for(1)
            proxy.lose(delivers(lost))
            await handle.cancel()
            await stage.raw.wait_for_status(handle.id, "cancelled", timeout=10)
            assert stage.ledger.count(event="run", step="undo") == 1


async def test_a_delivery_that_another_processor_takes_over_is_not_made_again(stage: Stage) -> None:
    async with stage.link() as proxy, stage.client() as client, stage.foreign("Blocked"):
        async with stage.foreign("Undo", echo()):
            first = await stage.processor(url=proxy.url)
            handle = await client.start("cancellable", "call")
            await stage.raw.wait_for_status(handle.id, "running")
            trap = proxy.trap(publishes("svc.kit.Steps.Undo"))
            await handle.cancel()
            await trap.wait()  # delivered, cleaned up by half
            assert [stored.data for stored in await stage.raw.deliveries(handle.id)]
            first.kill()
            await stage.processor()
            await stage.raw.wait_for_status(handle.id, "cancelled", timeout=15)
            assert stage.ledger.count(event="run", step="before") == 1
            assert stage.ledger.count(event="run", step="undo") == 1


async def test_an_owner_that_dies_with_its_delivery_on_the_way_loses_no_cancellation(stage: Stage) -> None:
    async with stage.link() as proxy, stage.client() as client, stage.foreign("Blocked"):
        async with stage.foreign("Undo", echo()):
            first = await stage.processor(url=proxy.url)
            handle = await client.start("cancellable", "call")
            await stage.raw.wait_for_status(handle.id, "running")
            trap = proxy.trap(publishes("wf.default.j.w.*.*.*.*.in.>"))
            await handle.cancel()
            await trap.wait()
            first.kill()
            await stage.processor()
            await stage.raw.wait_for_status(handle.id, "cancelled", timeout=15)
            assert len(await stage.raw.controls(handle.id)) <= 1


def test_controls_that_say_how_a_run_is_held_are_no_inputs() -> None:
    replay = replayed(lets_it_pass, controls=[control(10, kind="pause")])
    assert not replay.mailbox.has_mail
    assert Ask.CANCEL == "cancel"


def test_a_signal_is_read_where_it_was_delivered_and_once() -> None:
    async def reads(ctx: Context) -> list[object]:
        signals = ctx.signals("number", int)
        seen: list[object] = []
        try:
            async with asyncio.timeout(1):
                seen.append(await signals.get())
        except TimeoutError:
            seen.append("none")
        return [*seen, await ctx.signals("number", int).get()]

    sent = [control(n, "signal", request=str(n), name="number", data=b"%d" % n) for n in (10, 12)]
    timer = begin(reads).steps[0]
    both = replayed(reads, delivered(13, 0, up_to=12), controls=sent)
    assert result(both) == [10, 12]
    late = replayed(reads, fired(timer, 11, at=1), delivered(13, 0, up_to=12), controls=sent)
    assert result(late) == ["none", 10]
    other = [control(10, "signal", name="other", data=b"1")]
    assert replayed(reads, delivered(11, 0, up_to=10), controls=other).outcome is None
