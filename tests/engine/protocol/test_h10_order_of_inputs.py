"""H10: what decides a race is the order in the stream, not the order in which notices arrive."""

from __future__ import annotations

import asyncio
from itertools import permutations

from engine import Context
from tests.engine.protocol.passes import answer, begin, replayed, result


async def first_wins(ctx: Context) -> list[str]:
    """Two calls race; the winner decides which call follows."""
    racers = {name: asyncio.ensure_future(ctx.call("kit.Steps", name, b"", bytes)) for name in ("A", "B")}
    done, _ = await asyncio.wait(racers.values(), return_when=asyncio.FIRST_COMPLETED)
    winners = [name for name, task in racers.items() if task in done]
    follow_up = await ctx.call("kit.Steps", "Ship" if winners == ["A"] else "Refund", b"", bytes)
    return [*winners, follow_up.decode()]


async def appends(ctx: Context) -> list[str]:
    """Five calls at once; each continuation appends when it goes on."""
    order: list[str] = []

    async def call(name: str) -> None:
        await ctx.call("kit.Steps", name, b"", bytes)
        order.append(name)

    await asyncio.gather(*(call(name) for name in "ABCDE"))
    return order


def test_the_lower_sequence_wins_whichever_copy_came_first() -> None:
    first = begin(first_wins)
    a, b = first.steps
    for entries in permutations((answer(a, 10), answer(b, 11))):
        replay = replayed(first_wins, *entries)
        assert [step.name for step in replay.steps][2:] == ["Steps.Ship"]
    for entries in permutations((answer(a, 11), answer(b, 10))):
        replay = replayed(first_wins, *entries)
        assert [step.name for step in replay.steps][2:] == ["Steps.Refund"]


def test_a_losing_answer_between_two_others_changes_nothing() -> None:
    first = begin(first_wins)
    a, b = first.steps
    ship = replayed(first_wins, answer(a, 10)).steps[2]
    late = replayed(first_wins, answer(a, 10), answer(b, 11), answer(ship, 12, b"shipped"))
    early = replayed(first_wins, answer(a, 10), answer(ship, 11, b"shipped"), answer(b, 12))
    assert result(late) == result(early) == ["A", "shipped"]


def test_every_order_of_storage_is_the_order_of_continuations() -> None:
    steps = {step.name.removeprefix("Steps."): step for step in begin(appends).steps}
    for order in permutations("ABCDE"):
        entries = [answer(steps[name], 10 + place) for place, name in enumerate(order)]
        assert result(replayed(appends, *reversed(entries))) == list(order)


def test_steps_are_numbered_by_issue_and_not_by_completion() -> None:
    names = [(step.number, step.name) for step in begin(appends).steps]
    assert names == [(0, "Steps.A"), (1, "Steps.B"), (2, "Steps.C"), (3, "Steps.D"), (4, "Steps.E")]


def test_effects_are_taken_only_for_what_the_journal_does_not_decide() -> None:
    a, b = begin(first_wins).steps
    replay = replayed(first_wins, answer(a, 10), answer(b, 11))
    assert [step.name for step in replay.take_effects()] == ["Steps.Ship"]
    assert replay.take_effects() == []
