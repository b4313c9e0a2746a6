"""An instance's memory of engine steps."""

from __future__ import annotations

import time

from mesh.duplicates import Steps, Verdict

REPLY = (b"x" * 100, b"")


def test_lower_run_is_never_executed() -> None:
    """While the step runs it gets the same answer: a refusal could fill the slot that its successor waits for."""
    for reply in (None, REPLY):
        steps = Steps()
        verdict, step = steps.admit("k", 2, "owner")
        assert verdict is Verdict.EXECUTE
        assert steps.admit("k", 1, "zombie")[0] is Verdict.JOIN
        steps.finish("k", step, reply)
        assert steps.admit("k", 1, "zombie")[0] is Verdict.REFUSE


def test_duplicate_joins_then_is_answered() -> None:
    steps = Steps()
    _, step = steps.admit("k", 1, "owner")
    verdict, same = steps.admit("k", 1, "other")
    assert (verdict, same) == (Verdict.JOIN, step)
    same.waiting.append("other")
    assert steps.finish("k", step, REPLY) == ["other"]
    verdict, step = steps.admit("k", 2, "later")
    assert (verdict, step.reply) == (Verdict.ANSWER, REPLY)


def test_higher_run_that_joins_fences_the_lower_from_then_on() -> None:
    steps = Steps()
    _, step = steps.admit("k", 1, "owner")
    assert steps.admit("k", 2, "other")[0] is Verdict.JOIN
    steps.finish("k", step, None)
    assert steps.admit("k", 1, "zombie")[0] is Verdict.REFUSE


def test_failed_step_is_executed_again() -> None:
    steps = Steps()
    _, step = steps.admit("k", 1, "owner")
    steps.finish("k", step, None)
    assert steps.admit("k", 1, "owner")[0] is Verdict.EXECUTE


def test_memory_is_bounded_by_count() -> None:
    steps = Steps(max_count=10)
    for n in range(100):
        _, step = steps.admit(str(n), 1, "owner")
        steps.finish(str(n), step, REPLY)
    assert len(steps) == 10
    assert steps.size == 10 * 100
    assert steps.admit("99", 1, "x")[0] is Verdict.ANSWER
    assert steps.admit("0", 1, "x")[0] is Verdict.EXECUTE


def test_memory_is_bounded_by_bytes() -> None:
    steps = Steps(max_bytes=1000)
    for n in range(100):
        _, step = steps.admit(str(n), 1, "owner")
        steps.finish(str(n), step, REPLY)
    assert steps.size <= 1000
    _, step = steps.admit("large", 1, "owner")
    steps.finish("large", step, (b"x" * 500, b""))
    assert step.reply is None, "one reply may not displace all others"


def test_running_steps_are_never_forgotten() -> None:
    steps = Steps(max_count=2)
    for n in range(10):
        steps.admit(str(n), 5, "owner")
    assert [steps.admit(str(n), 4, "zombie")[0] for n in range(10)] == [Verdict.JOIN] * 10


def test_a_full_memory_is_as_quick_as_an_empty_one() -> None:
    def seconds(steps: Steps) -> float:
        began = time.perf_counter()
        for n in range(2000):
            _, step = steps.admit(f"new {n}", 1, "owner")
            steps.finish(f"new {n}", step, REPLY)
        return time.perf_counter() - began

    full = Steps(max_count=20_000)
    for n in range(20_000):
        _, step = full.admit(str(n), 1, "owner")
        full.finish(str(n), step, REPLY)
    assert seconds(full) < 20 * seconds(Steps(max_count=20_000))
