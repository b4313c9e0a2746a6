"""Is it proven? The services' own ledger against what an undisturbed order would have executed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from services.ledger import Execution

STEPS = (
    "OrderService.Reserve",
    "PaymentService.Charge",
    "ShippingService.Ship",
    "OrderService.Confirm",
)


def counts(executions: Iterable[Execution]) -> dict[str, int]:
    """Return how often each method was executed, in order of the first execution."""
    return dict(Counter(execution.method for execution in executions))


def faults(executions: Sequence[Execution], expected: Sequence[str] = STEPS) -> list[str]:
    """Return what contradicts "each of these methods was executed once"; nothing if it is proven."""
    seen = counts(executions)
    found = [f"{method} was executed {seen.get(method, 0)} times" for method in expected if seen.get(method, 0) != 1]
    found += [f"{method} was executed, though nobody asked for it" for method in seen if method not in expected]
    keys = [execution.key for execution in executions]
    if not all(keys):
        found.append("a request came without an idempotency key")
    if len(set(keys)) != len(keys):
        found.append("two steps shared an idempotency key")
    return found
