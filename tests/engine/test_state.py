"""ctx.get, set, clear, keys: state of a run, recorded step by step."""

from __future__ import annotations

from typing import Any

from engine import Context, workflow
from engine.model import Entry, Invocation, Mark
from engine.replay import Replay

TIME_NS = 1_700_000_000_000_000_000


def drive(replay: Replay, journal: list[Entry]) -> None:
    """Run to the end, recording what the owner would record."""
    replay.start()
    for entry in list(journal):
        replay.feed(entry)
    while replay.outcome is None:
        steps = replay.take_effects()
        assert steps, "the code waits for something that is not state"
        for step in steps:
            data, type_ = replay.state.answer(step.access)
            number = len(journal) + 1
            entry = Entry(
                number, TIME_NS + number, step.number, 1, step.kind, step.digest, step.name, Mark.VALUE, type_, data
            )
            journal.append(entry)
            replay.feed(entry)


def run(flow: Any, journal: list[Entry]) -> Replay:
    replay = Replay(Invocation("id", "incarnation", flow.name, b"", "", TIME_NS, TIME_NS), flow)
    drive(replay, journal)
    return replay


@workflow
async def cart(ctx: Context) -> list[Any]:
    missing = await ctx.get("cart", list[str], default=["none"])
    await ctx.set("cart", ["tea"])
    items = await ctx.get("cart", list[str])
    await ctx.set("cart", [*items, "kettle"])
    await ctx.set("nothing", None)
    keys = await ctx.keys()
    nothing = await ctx.get("nothing", default="default")
    await ctx.clear("nothing")
    gone = await ctx.get("nothing", default="default")
    both = await ctx.get("cart")
    await ctx.clear()
    return [missing, items, keys, nothing, gone, both, await ctx.keys()]


EXPECTED = b'[["none"],["tea"],["cart","nothing"],null,"default",["tea","kettle"],[]]'


def test_state_is_a_dict_that_tells_none_from_missing() -> None:
    outcome = run(cart, []).outcome
    assert outcome is not None
    assert outcome.result.data == EXPECTED


def test_every_prefix_of_the_journal_leads_to_the_same_end() -> None:
    whole: list[Entry] = []
    run(cart, whole)
    for length in range(len(whole) + 1):
        journal = whole[:length]
        outcome = run(cart, journal).outcome
        assert outcome is not None
        assert outcome.result.data == EXPECTED
        assert [(e.step, e.kind, e.data) for e in journal] == [(e.step, e.kind, e.data) for e in whole]


def test_another_key_is_a_mismatch() -> None:
    journal: list[Entry] = []
    run(cart, journal)

    @workflow(name="cart")
    async def changed(ctx: Context) -> None:
        await ctx.get("basket", list[str], default=["none"])

    outcome = run(changed, journal).outcome
    assert outcome is not None
    assert outcome.failure is not None
    assert outcome.failure.type == "NonDeterminismError"
    assert "get cart" in outcome.failure.message
    assert "get basket" in outcome.failure.message


@workflow
async def typed(ctx: Context) -> str:
    await ctx.set("count", "many")
    try:
        await ctx.get("count", int)
    except Exception as error:  # noqa: BLE001
        return type(error).__name__
    return "no error"


def test_value_of_another_type_fails_its_step() -> None:
    outcome = run(typed, []).outcome
    assert outcome is not None
    assert outcome.result.data == b'"StepFailedError"'
