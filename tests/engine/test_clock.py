"""The server's time as far as it is known: never ahead of it."""

from __future__ import annotations

import time

import pytest

from engine import clock
from engine.clock import NANOS, WINDOW, ServerClock


class Elapsed:
    """The clock beneath, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def elapsed(monkeypatch: pytest.MonkeyPatch) -> Elapsed:
    hand = Elapsed()
    monkeypatch.setattr(clock, "elapsed", hand)
    return hand


def test_before_the_first_sample_it_is_this_machines() -> None:
    assert abs(ServerClock().now_ns() - time.time_ns()) < NANOS


def test_it_goes_on_from_the_newest_sample(elapsed: Elapsed) -> None:
    server = ServerClock()
    server.observe(50 * NANOS)
    assert server.now_ns() == 50 * NANOS
    elapsed.now += 3
    assert server.now_ns() == 53 * NANOS


def test_sample_that_was_long_on_its_way_does_not_set_it_back(elapsed: Elapsed) -> None:
    server = ServerClock()
    server.observe(50 * NANOS)
    elapsed.now += 10
    server.observe(55 * NANOS)
    assert server.now_ns() == 60 * NANOS


def test_fresher_sample_moves_it_on(elapsed: Elapsed) -> None:
    server = ServerClock()
    server.observe(50 * NANOS)
    server.observe(51 * NANOS)
    server.observe(49 * NANOS)
    assert server.now_ns() == 51 * NANOS


def test_offset_that_was_too_great_is_forgotten_after_two_windows(elapsed: Elapsed) -> None:
    """Another server's clock, after a fail-over, or ours that drifts."""
    server = ServerClock()
    server.observe(100 * NANOS)
    for _ in range(25):
        elapsed.now += WINDOW / 10
        server.observe(round((elapsed.now - 1000 + 90) * NANOS))
    assert server.now_ns() == round((elapsed.now - 1000 + 90) * NANOS)


def test_sample_from_before_a_long_silence_is_forgotten_at_once(elapsed: Elapsed) -> None:
    server = ServerClock()
    server.observe(100 * NANOS)
    elapsed.now += 3 * WINDOW
    server.observe(200 * NANOS)
    assert server.now_ns() == 200 * NANOS


def test_elapsed_goes_on() -> None:
    before = clock.elapsed()
    assert clock.elapsed() >= before
