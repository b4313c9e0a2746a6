"""H13: an entry for a step that the code has not issued is a mismatch; it is never kept for later."""

from __future__ import annotations

from engine import Context
from tests.engine.protocol.passes import answer, begin, failure, foreign, replayed, result


async def two_calls(ctx: Context) -> str:
    """One call after the other."""
    first = await ctx.call("kit.Steps", "A", b"", bytes)
    second = await ctx.call("kit.Steps", "B", first, bytes)
    return second.decode()


async def one_call(ctx: Context) -> str:
    """What the code became after somebody removed the second call."""
    return (await ctx.call("kit.Steps", "A", b"", bytes)).decode()


def test_an_entry_of_a_step_to_come_stops_the_run() -> None:
    first = begin(two_calls).steps[0]
    replay = replayed(two_calls, foreign(1, 10), answer(first, 11, b"x"))
    mismatch = failure(replay)
    assert mismatch.type == "NonDeterminismError"
    assert "step 1" in mismatch.message
    assert replay.take_effects() == []


def test_code_that_returns_while_recorded_steps_are_left_is_a_mismatch() -> None:
    a = begin(two_calls).steps[0]
    b = replayed(two_calls, answer(a, 10, b"x")).steps[1]
    replay = replayed(one_call, answer(a, 10, b"x"), answer(b, 11, b"y"))
    mismatch = failure(replay)
    assert mismatch.type == "NonDeterminismError"
    assert "step 1" in mismatch.message
    assert "call Steps.B" in mismatch.message


def test_code_that_goes_on_after_the_end_of_the_record_is_no_mismatch() -> None:
    a = begin(one_call).steps[0]
    replay = replayed(two_calls, answer(a, 10, b"x"))
    assert replay.outcome is None
    assert [step.name for step in replay.take_effects()] == ["Steps.B"]


def test_a_second_entry_of_a_decided_step_is_no_input() -> None:
    a = begin(two_calls).steps[0]
    b = replayed(two_calls, answer(a, 10, b"x")).steps[1]
    doubled = replayed(two_calls, answer(a, 10, b"x"), answer(a, 11, b"other"), answer(b, 12, b"y"))
    assert result(doubled) == "y"
