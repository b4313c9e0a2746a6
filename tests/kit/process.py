"""PROC: real operating-system processes that a test can kill, freeze and thaw by their own pid."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from mesh.processes import spawn
from tests.kit.ledger import until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType


class Process:
    """One child process, killed when we end.

    Its output goes to files, so no pipe of ours can ever block or end it.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        folder: Path,
        name: str,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self._out, self._err = folder / f"{name}.out", folder / f"{name}.err"
        with self._out.open("ab") as out, self._err.open("ab") as err:
            # Opened for appending: a process that is started again under the same name adds to its files.
            self._offset = out.tell()
            self._child = spawn(
                arguments,
                stdout=out,
                stderr=err,
                environment={**os.environ, **(environment or {})},
                directory=cwd,
            )

    @property
    def pid(self) -> int:
        """The process's own id: whatever binds it to us has replaced itself by it."""
        return self._child.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative = ended by that signal."""
        return self._child.poll()

    @property
    def stdout(self) -> str:
        """What it printed since it was started."""
        with self._out.open("rb") as file:
            file.seek(self._offset)
            return file.read().decode(errors="replace")

    @property
    def stderr(self) -> str:
        """What everybody of this name logged."""
        return self._err.read_text(errors="replace")

    async def line(self, prefix: str, timeout: float = 30.0) -> str:
        """Wait for a line of stdout that begins with `prefix`; AssertionError with its output if it ends before."""
        found: list[str] = []

        def seen() -> bool:
            over = self.exit_code is not None  # asked before reading: what it printed last is still seen
            found[:] = [
                line
                for line in self.stdout.splitlines(keepends=True)
                if line.startswith(prefix) and line.endswith("\n")
            ]
            if over and not found:
                raise AssertionError(f"{self.name} ended with {self.exit_code} before {prefix!r}\n{self.report()}")
            return bool(found)

        await until(seen, timeout=timeout, what=lambda: f"{prefix!r} from {self.name}\n{self.report()}")
        return found[0].rstrip("\n")

    async def ready(self, timeout: float = 30.0) -> Self:
        """Wait for its `ready` line."""
        await self.line("ready", timeout)
        return self

    def report(self) -> str:
        """Its last output, for the message of a failing test."""
        return f"--- {self.name} stdout\n{self.stdout[-2000:]}\n--- {self.name} stderr\n{self.stderr[-6000:]}"

    def signal(self, number: int) -> None:
        """Send a signal; nothing when it has already ended."""
        if self.exit_code is None:
            self._child.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone; also a frozen one."""
        self.signal(signal.SIGKILL)
        self._child.wait()

    def terminate(self) -> None:
        """SIGTERM; `exited()` waits for the end."""
        self.signal(signal.SIGTERM)

    async def freeze(self) -> None:
        """SIGSTOP, and wait until the kernel says that it is stopped: from then on it does nothing."""
        self.signal(signal.SIGSTOP)
        await until(lambda: _state(self.pid) in "TX", what=f"{self.name} to stop", pause=0.001)

    def thaw(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    async def exited(self, timeout: float = 30.0) -> int:
        """Wait for its end; the exit code."""
        await until(
            lambda: self.exit_code is not None,
            timeout=timeout,
            what=lambda: f"the end of {self.name}\n{self.report()}",
        )
        code = self.exit_code
        assert code is not None
        return code

    async def close(self, grace: float = 5.0) -> None:
        """End it, by SIGTERM first so that an orderly end is exercised, by SIGKILL if that does not help."""
        self.thaw()
        self.terminate()
        deadline = time.monotonic() + grace
        try:
            await self.exited(max(0.0, deadline - time.monotonic()))
        except AssertionError:
            self.kill()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()


def _state(pid: int) -> str:
    """The kernel's letter for the state of a process: T stopped, S sleeping, R running; X where it cannot be told."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"
