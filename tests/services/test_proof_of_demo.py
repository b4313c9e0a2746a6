"""The demo's proof refuses what it must refuse."""

from __future__ import annotations

from examples.demo import proof
from services.ledger import Execution


def executed(*methods: str) -> list[Execution]:
    return [Execution(0.0, 1, method, f"key-{n}") for n, method in enumerate(methods)]


def test_each_step_once_is_proven() -> None:
    assert proof.faults(executed(*proof.STEPS)) == []


def test_a_step_executed_twice_is_not_proven() -> None:
    assert proof.faults(executed(*proof.STEPS, "PaymentService.Charge")) == [
        "PaymentService.Charge was executed 2 times"
    ]


def test_a_missing_step_is_not_proven() -> None:
    assert proof.faults(executed(*proof.STEPS[:3])) == ["OrderService.Confirm was executed 0 times"]


def test_a_compensation_is_not_proven() -> None:
    assert proof.faults(executed(*proof.STEPS, "PaymentService.Refund")) == [
        "PaymentService.Refund was executed, though nobody asked for it"
    ]


def test_a_shared_or_missing_idempotency_key_is_not_proven() -> None:
    same = [execution._replace(key="k") for execution in executed(*proof.STEPS)]
    assert proof.faults(same) == ["two steps shared an idempotency key"]
    none = [execution._replace(key="") for execution in executed(*proof.STEPS)]
    assert "a request came without an idempotency key" in proof.faults(none)
