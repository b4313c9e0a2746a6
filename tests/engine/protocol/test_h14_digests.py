"""H14: two requests for one step: the lower sequence is the record, the other stops with both named."""

from __future__ import annotations

import asyncio

import pytest

from engine import Context
from engine.model import Kind
from tests.engine.protocol.passes import Code, answer, begin, failure, fired, replayed, result


async def calls_a(ctx: Context) -> bytes:
    """The record's code."""
    return await ctx.call("kit.Steps", "A", b"amount 1", bytes)


async def calls_a_otherwise(ctx: Context) -> bytes:
    """Same method, other arguments."""
    return await ctx.call("kit.Steps", "A", b"amount 2", bytes)


async def calls_b(ctx: Context) -> bytes:
    """Another method."""
    return await ctx.call("kit.Steps", "B", b"amount 1", bytes)


async def sleeps(ctx: Context) -> None:
    """Another kind of step."""
    await asyncio.sleep(1.5)


async def sleeps_longer(ctx: Context) -> None:
    """The same kind, for another time."""
    await asyncio.sleep(2.5)


async def runs(ctx: Context) -> None:
    """A side effect."""
    await ctx.run("charge", lambda: None)


async def runs_another(ctx: Context) -> None:
    """Another side effect."""
    await ctx.run("refund", lambda: None)


@pytest.mark.parametrize(
    ("recorded", "attempted", "said"),
    [
        (calls_a, calls_b, ["call Steps.A", "call Steps.B"]),
        (calls_a, calls_a_otherwise, ["call Steps.A", "other arguments"]),
        (calls_a, sleeps, ["call Steps.A", "sleep 1.5"]),
        (sleeps, calls_a, ["sleep 1.5", "call Steps.A"]),
        (sleeps, sleeps_longer, ["sleep 1.5", "sleep 2.5"]),
        (runs, runs_another, ["run charge", "run refund"]),
        (runs, calls_a, ["run charge", "call Steps.A"]),
    ],
)
def test_another_operation_at_a_recorded_step_stops_the_run_with_both_named(
    recorded: Code, attempted: Code, said: list[str]
) -> None:
    step = begin(recorded).steps[0]
    entry = fired(step, 10, at=1.5) if step.kind == Kind.SLEEP else answer(step, 10, b"null")
    replay = replayed(attempted, entry)
    mismatch = failure(replay)
    assert mismatch.type == "NonDeterminismError"
    assert "step 0" in mismatch.message
    for words in said:
        assert words in mismatch.message
    assert replay.take_effects() == []


def test_of_two_digests_the_lower_sequence_is_the_record() -> None:
    mine, other = begin(calls_a).steps[0], begin(calls_b).steps[0]
    kept = replayed(calls_a, answer(mine, 10, b"mine"), answer(other, 11, b"other"))
    assert result(kept) == b"mine"
    stopped = replayed(calls_b, answer(mine, 10, b"mine"), answer(other, 11, b"other"))
    assert failure(stopped).type == "NonDeterminismError"


def test_equal_requests_have_equal_digests_in_every_pass() -> None:
    assert begin(calls_a).steps[0].digest == begin(calls_a).steps[0].digest
    assert begin(calls_a).steps[0].digest != begin(calls_a_otherwise).steps[0].digest
