"""What is measured: how many calls finish in a time, and how long each of them takes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import perf_counter

WARM_UP = 0.3
"""Seconds of load before anything is counted."""

Call = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of one contender."""

    in_flight: int
    per_second: float
    p50_ms: float
    p99_ms: float
    calls: int
    errors: int


async def measure(call: Call, *, in_flight: int, seconds: float) -> Sample:
    """Keep `in_flight` calls going for `seconds` and count those that ended within them."""
    took: list[float] = []
    errors = 0
    begin = perf_counter() + WARM_UP
    end = begin + seconds

    async def worker() -> None:
        nonlocal errors
        while (start := perf_counter()) < end:
            try:
                await call()
            except Exception:  # noqa: BLE001 - whatever fails is counted, and shown beside the rate
                errors += 1
                continue
            done = perf_counter()
            if begin <= done <= end:
                took.append(done - start)

    await asyncio.gather(*(worker() for _ in range(in_flight)))
    took.sort()
    return Sample(
        in_flight,
        len(took) / seconds,
        1000 * _quantile(took, 0.50),
        1000 * _quantile(took, 0.99),
        len(took),
        errors,
    )


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")
