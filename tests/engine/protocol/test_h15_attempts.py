"""H15: an attempt is closed before the next begins, and a step is decided in the order of attempts."""

from __future__ import annotations

from engine import CallFailedError, Context, RetryPolicy
from engine.model import Mark
from tests.engine.protocol.passes import answer, begin, closed, failed_answer, replayed, result

THREE = RetryPolicy(max_attempts=3)


async def calls(ctx: Context) -> str:
    """A call that is tried three times."""
    try:
        return (await ctx.call("kit.Steps", "A", b"", bytes, retry=THREE)).decode()
    except CallFailedError as error:
        return f"{error.code().name} after {error.attempts}: {error.details()}"


def test_a_closed_attempt_is_followed_by_the_next() -> None:
    step = begin(calls).steps[0]
    replay = replayed(calls, closed(step, 10, Mark.TIMEOUT))
    assert [(effect.number, effect.attempt) for effect in replay.take_effects()] == [(0, 2)]


def test_a_late_success_of_a_closed_attempt_changes_nothing() -> None:
    step = begin(calls).steps[0]
    timed_out, second = closed(step, 10, Mark.TIMEOUT), answer(step, 12, b"second", attempt=2)
    late = answer(step, 11, b"first")
    assert result(replayed(calls, timed_out, second)) == "second"
    assert result(replayed(calls, timed_out, late, second)) == "second"


def test_an_adopted_success_of_the_first_attempt_decides_though_a_second_was_answered() -> None:
    step = begin(calls).steps[0]
    assert result(replayed(calls, answer(step, 10, b"first"), answer(step, 11, b"second", attempt=2))) == "first"


def test_gave_up_in_the_next_slot_decides_after_the_last_failure() -> None:
    step = begin(calls).steps[0]
    failures = [failed_answer(step, 9 + n, 503, f"busy {n}", attempt=n) for n in (1, 2, 3)]
    undecided = replayed(calls, *failures)
    assert undecided.outcome is None
    effect = undecided.take_effects()[0]
    assert effect.giving_up is not None
    assert (effect.giving_up.message, effect.giving_up.attempts) == ("busy 3", 3)
    gave_up = closed(step, 13, Mark.GAVE_UP, "busy 3", attempt=4, attempts=3)
    decided = replayed(calls, *failures, gave_up)
    assert result(decided) == "DEADLINE_EXCEEDED after 3: busy 3"
    assert decided.steps[0].attempt == 3


def test_a_late_success_of_an_attempt_after_giving_up_changes_nothing() -> None:
    step = begin(calls).steps[0]
    failures = [failed_answer(step, 9 + n, 503, "busy", attempt=n) for n in (1, 2, 3)]
    gave_up = closed(step, 13, Mark.GAVE_UP, "busy", attempt=4)
    late = answer(step, 14, b"late", attempt=5)
    assert result(replayed(calls, *failures, gave_up, late)) == result(replayed(calls, *failures, gave_up))


def test_a_recorded_retry_is_kept_though_the_policy_allows_less_now() -> None:
    async def stricter(ctx: Context) -> str:
        return (await ctx.call("kit.Steps", "A", b"", bytes, retry=RetryPolicy(max_attempts=1))).decode()

    step = begin(calls).steps[0]
    replay = replayed(stricter, closed(step, 10, Mark.TIMEOUT), answer(step, 11, b"second", attempt=2))
    assert result(replay) == "second"


def test_a_terminal_answer_decides_at_its_own_place() -> None:
    step = begin(calls).steps[0]
    replay = replayed(calls, failed_answer(step, 10, 404, "no such order"))
    assert "no such order" in result(replay)
    assert replay.take_effects() == []


def test_an_empty_reply_is_an_answer() -> None:
    step = begin(calls).steps[0]
    assert result(replayed(calls, answer(step, 10, b""))) == ""


def test_attempts_that_were_delivered_and_failed_are_kept_with_their_errors() -> None:
    step = begin(calls).steps[0]
    replay = replayed(
        calls,
        failed_answer(step, 10, 500, "first", attempt=1),
        closed(step, 11, Mark.UNAVAILABLE, attempt=2),
        answer(step, 12, b"third", attempt=3),
    )
    assert result(replay) == "third"
    assert [attempt.failure.message for attempt in replay.steps[0].failures] == ["first"]
    assert replay.steps[0].attempt == 3
