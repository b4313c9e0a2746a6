"""LEDGER: what was executed, written down by the code that executed it.

Each entry is one JSON line, written by a single `write` to a file opened with O_APPEND, so that
processes which are killed in the middle of anything leave whole lines in the order of their writes.
Counts of executions are asserted from here, never from the product's own counters.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER_VARIABLE = "KIT_FOLDER"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line; `at` is CLOCK_MONOTONIC, which all processes of one machine share."""

    event: str
    invocation: str = ""
    step: str = ""
    key: str = ""
    run: str = ""
    note: str = ""
    pid: int = 0
    at: float = 0.0


_FIELDS = frozenset(field.name for field in fields(Entry))


class Ledger:
    """One append-only file; any number of processes write, the test reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    @classmethod
    def of_environment(cls) -> Ledger:
        """The ledger of the test that started this process."""
        return cls(Path(os.environ[FOLDER_VARIABLE]) / "ledger.jsonl")

    def write(
        self,
        event: str,
        *,
        invocation: str = "",
        step: str = "",
        key: str = "",
        run: str = "",
        note: str = "",
    ) -> None:
        """Append one entry; it is in the file, whole, when this returns."""
        entry = Entry(event, invocation, step, key, run, note, os.getpid(), time.monotonic())
        line = json.dumps(asdict(entry), separators=(",", ":")) + "\n"
        os.write(self._open(), line.encode())

    def _open(self) -> int:
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        return self._descriptor

    def entries(self, **wanted: str | int) -> list[Entry]:
        """All entries whose fields equal what is asked for, in the order in which they were written."""
        unknown = wanted.keys() - _FIELDS
        if unknown:
            raise ValueError(f"an entry has no field {sorted(unknown)}")
        return [entry for entry in self._read() if all(getattr(entry, name) == value for name, value in wanted.items())]

    def count(self, **wanted: str | int) -> int:
        """How many entries there are of what is asked for."""
        return len(self.entries(**wanted))

    def _read(self) -> list[Entry]:
        try:
            text = self.path.read_text()
        except FileNotFoundError:
            return []
        # A line that is being written at this instant has no end yet: it belongs to the next reading.
        return [Entry(**json.loads(line)) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    async def wait_for(self, at_least: int = 1, *, timeout: float = 20.0, **wanted: str | int) -> list[Entry]:
        """Wait until so many entries of what is asked for are there; AssertionError with the whole ledger if not."""
        found: list[Entry] = []

        def enough() -> bool:
            found[:] = self.entries(**wanted)
            return len(found) >= at_least

        await until(
            enough,
            timeout=timeout,
            what=lambda: f"{at_least} x {wanted} in the ledger:\n{self.text()}",
        )
        return found

    def text(self) -> str:
        """The ledger as people read it in a failing test's output."""
        return "\n".join(" ".join(f"{k}={v}" for k, v in asdict(entry).items() if v) for entry in self._read())


async def until(
    condition: Callable[[], Any],
    *,
    timeout: float = 20.0,
    what: str | Callable[[], str] = "",
    pause: float = 0.01,
) -> None:
    """Wait until `condition()` is true, looking every `pause` seconds; AssertionError naming `what` after `timeout`."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what() if callable(what) else what or condition}")
        await asyncio.sleep(pause)
