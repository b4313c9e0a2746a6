"""Retry policies: how often, how fast, and for what."""

from __future__ import annotations

from datetime import timedelta

import grpc
import pytest

from engine import RetryPolicy
from engine.model import CALL_POLICY, FINAL, RUN_POLICY, Status, seconds


def test_backoff_grows_to_its_bound() -> None:
    policy = RetryPolicy(initial_backoff=1, backoff_multiplier=2, max_backoff=5, jitter=0)
    assert [policy.backoff(failures, 0.7) for failures in range(1, 6)] == [1, 2, 4, 5, 5]


def test_backoff_of_a_very_long_series_is_its_bound() -> None:
    policy = RetryPolicy(jitter=0)
    assert policy.backoff(10_000_000, 0.5) == 30.0


@pytest.mark.parametrize(("random", "expected"), [(0.0, 8.0), (0.5, 10.0), (0.999999999, 12.0)])
def test_jitter_spreads_to_both_sides(random: float, expected: float) -> None:
    assert RetryPolicy(initial_backoff=10, jitter=0.2).backoff(1, random) == pytest.approx(expected)


def test_durations_are_seconds_or_timedelta() -> None:
    policy = RetryPolicy(initial_backoff=timedelta(milliseconds=50), max_backoff=timedelta(minutes=1), jitter=0)
    assert policy.backoff(1, 0) == 0.05
    assert policy.backoff(100, 0) == 60
    assert (seconds(timedelta(seconds=1.5)), seconds(2), seconds(0.1)) == (1.5, 2.0, 0.1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_attempts": 0},
        {"max_attempts": -1},
        {"initial_backoff": -0.1},
        {"max_backoff": timedelta(seconds=-1)},
        {"backoff_multiplier": 0.5},
        {"initial_backoff": float("nan")},
        {"max_backoff": float("nan")},
        {"backoff_multiplier": float("nan")},
        {"jitter": 1.5},
        {"jitter": -0.1},
        {"jitter": float("nan")},
        {"total_timeout": -1},
        {"total_timeout": float("nan")},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_when_it_is_said(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must"):
        RetryPolicy(**wrong)  # type: ignore[arg-type]


def test_codes_that_are_tried_again() -> None:
    assert CALL_POLICY.retries_code(grpc.StatusCode.UNAVAILABLE)
    assert not CALL_POLICY.retries_code(grpc.StatusCode.INVALID_ARGUMENT)
    own = RetryPolicy(retryable_codes=frozenset({grpc.StatusCode.NOT_FOUND}))
    assert own.retries_code(grpc.StatusCode.NOT_FOUND)
    assert not own.retries_code(grpc.StatusCode.UNAVAILABLE)


def test_exceptions_that_are_final_by_class_by_name_and_by_base() -> None:
    policy = RetryPolicy(non_retryable=(ValueError, "Declined"))
    assert not policy.retries_exception(["UnicodeError", "ValueError", "Exception"])
    assert not policy.retries_exception(["Declined"])
    assert policy.retries_exception(["KeyError", "LookupError"])


def test_defaults() -> None:
    assert CALL_POLICY.max_attempts is None
    assert RUN_POLICY.max_attempts == 1
    assert {str(status) for status in FINAL} == {"completed", "failed", "cancelled"}
    assert Status("running") is Status.RUNNING
