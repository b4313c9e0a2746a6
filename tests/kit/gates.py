"""GATE: a handler blocks until the test opens it, so that the test chooses the instant of a kill."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from tests.kit.ledger import FOLDER_VARIABLE


class Gate:
    """A file: there = open. Anybody on the machine may wait for it, in or outside an event loop."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / f"{name}.gate"

    @classmethod
    def of_environment(cls, name: str) -> Gate:
        """The gate of that name of the test that started this process."""
        return cls(Path(os.environ[FOLDER_VARIABLE]), name)

    @property
    def is_open(self) -> bool:
        """Whether a waiter passes at once."""
        return self._path.exists()

    def open(self) -> None:
        """Let everybody through, now and later."""
        self._path.touch()

    def close(self) -> None:
        """Block whoever comes from now on."""
        self._path.unlink(missing_ok=True)

    async def wait(self, timeout: float = 60.0) -> None:
        """Block this task until the gate is open; the time-out keeps a failed test from leaving a waiter behind."""
        deadline = time.monotonic() + timeout
        while not self.is_open:
            if time.monotonic() > deadline:
                raise TimeoutError(f"nobody opened {self._path.name}")
            await asyncio.sleep(0.005)

    def wait_blocking(self, timeout: float = 60.0) -> None:
        """Block this thread until the gate is open: for synchronous bodies of `ctx.run`."""
        deadline = time.monotonic() + timeout
        while not self.is_open:
            if time.monotonic() > deadline:
                raise TimeoutError(f"nobody opened {self._path.name}")
            time.sleep(0.005)
