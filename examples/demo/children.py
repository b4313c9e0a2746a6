"""The demo's processes: `mesh serve` and `mesh processor`, as a person would start them."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from mesh.processes import spawn

ROOT = Path(__file__).resolve().parent.parent.parent
READY_TIMEOUT = 30.0
"""Seconds until a command has to print its line `ready`."""
STOP_TIMEOUT = 10.0
"""Seconds that a command has to stop after SIGTERM."""


class ChildError(RuntimeError):
    """A command of the demo ended, or did not get ready; the message ends with what it logged last."""


class Child:
    """One `mesh` command in the checkout; it is gone when the demo is, however that ends."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str], log: Path) -> None:
        self.command = " ".join(["mesh", *arguments])
        self._output = log.with_suffix(".out")
        self._log = log.with_suffix(".log")
        with self._output.open("wb") as output, self._log.open("wb") as errors:
            self._process = spawn(
                [*mesh_command(), *arguments],
                stdout=output,
                stderr=errors,
                environment=environment,
                directory=ROOT,
            )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    async def ready(self) -> None:
        """Wait for the line `ready`; raise `ChildError` if the command ends or stays silent."""
        try:
            async with asyncio.timeout(READY_TIMEOUT):
                while not self._is_ready():
                    if self._process.poll() is not None:
                        raise ChildError(f"{self.command} ended with {self._process.returncode}\n{self.tail()}")
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise ChildError(f"{self.command} is not ready after {READY_TIMEOUT:.0f} s\n{self.tail()}") from None

    def kill(self) -> None:
        """Kill -9 it and see it gone."""
        self._process.kill()
        self._process.wait()

    async def stop(self) -> None:
        """End it in order, and for certain."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(self._process.wait, STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()

    def tail(self, lines: int = 20) -> str:
        """Return what it logged last."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def _is_ready(self) -> bool:
        return any(line.startswith("ready") for line in self._output.read_text(errors="replace").splitlines())


def mesh_command() -> list[str]:
    """Return the command `mesh` of this environment; without an installation the same by its module."""
    script = Path(sys.executable).with_name("mesh")
    return [str(script)] if script.exists() else [sys.executable, "-c", "import mesh.cli; mesh.cli.main()"]
