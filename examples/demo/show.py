"""Plain lines for a terminal or a pipe: no colours, no cursor movements, flushed one by one."""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import Any

WIDTH = 100
_began = time.monotonic()


def title(text: str) -> None:
    """Begin a part of the story."""
    print(f"\n{text}", flush=True)


def line(text: str) -> None:
    """One event, with the seconds since the demo began."""
    print(f"{time.monotonic() - _began:6.1f} s  {text}"[:WIDTH], flush=True)


def detail(text: str) -> None:
    """More about the event before."""
    print(f"          {text}"[:WIDTH], flush=True)


def step(entry: Any) -> None:
    """One step of a journal, as `describe` returns it."""
    line(f"  step {entry.step}  {entry.name:<24} {duration(entry):>8}  {answer(entry)}")


def duration(entry: Any) -> str:
    """Return how long a step took by the clock of the journal."""
    if not isinstance(entry.started_at, datetime) or not isinstance(entry.completed_at, datetime):
        return ""
    return f"{(entry.completed_at - entry.started_at).total_seconds() * 1000:.0f} ms"


def answer(entry: Any) -> str:
    """Return what a step came to."""
    if entry.error is not None:
        return f"failed: {entry.error.code or entry.error.type}: {entry.error.message}"
    return value(entry.response)


def value(content: Any) -> str:
    """Return a value on one line."""
    return content if isinstance(content, str) else json.dumps(content, default=str, ensure_ascii=False)
