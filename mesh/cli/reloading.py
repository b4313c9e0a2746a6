"""Child processes under one supervisor, started again when Python files change (`--reload`, `mesh dev`)."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import click

from mesh.cli.output import ExitCode
from mesh.cli.running import Signals
from mesh.processes import Process, spawn

POLL = 0.25
"""Seconds between two looks at files and children. Watching costs a stat a Python file."""
_SKIPPED = {"__pycache__", "node_modules", "site-packages", "build", "dist", "venv"}


def child_command(*, without: str) -> list[str]:
    """The command line of this process without one flag."""
    return [sys.executable, "-P", "-m", "mesh", *(argument for argument in sys.argv[1:] if argument != without)]


async def supervise(
    commands: Sequence[Sequence[str]],
    *,
    environment: Mapping[str, str] | None = None,
    reload: bool = True,
    check: Callable[[], None] = lambda: None,
) -> int:
    """Run the commands until a signal comes; start all again when a file changes. Returns the exit code.

    A child that ends with an error waits for the next change; without `reload`, its exit code ends us. `check` is
    called again and again; what it raises ends us, too.
    """
    async with Signals() as signals:
        before = snapshot(Path.cwd()) if reload else {}
        children = _start(commands, environment)
        try:
            while not signals.asked_to_finish:
                await signals.until_first(asyncio.sleep(POLL))
                check()
                if reload and (now := snapshot(Path.cwd())) != before:
                    click.echo(f"{_changed(before, now)} changed, starting again", err=True)
                    before = now
                    await _stop(children, signals)
                    if not signals.asked_to_finish:
                        children = _start(commands, environment)
                elif not reload and (ended := _first_end(children)) is not None:
                    return ended
        finally:
            await _stop(children, signals)
    return next((ExitCode.FAILED for child in children if child.returncode), ExitCode.DONE)


def snapshot(directory: Path) -> dict[str, int]:
    """The times of change of all Python files beneath a folder, hidden and installed ones left out."""
    return dict(_python_files(directory))


def _python_files(directory: Path) -> Iterator[tuple[str, int]]:
    for folder, folders, files in os.walk(directory):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _SKIPPED]
        for name in files:
            if name.endswith(".py"):
                path = Path(folder, name)
                try:
                    yield str(path), path.stat().st_mtime_ns
                except OSError:  # deleted between the listing and the look
                    continue


def _changed(before: Mapping[str, int], now: Mapping[str, int]) -> str:
    path = next(path for path in (*now, *before) if before.get(path) != now.get(path))
    return os.path.relpath(path)


def _start(commands: Sequence[Sequence[str]], environment: Mapping[str, str] | None) -> list[Process]:
    return [spawn(command, environment=environment) for command in commands]


def _first_end(children: Sequence[Process]) -> int | None:
    return next((child.returncode for child in children if child.poll() is not None), None)


async def _stop(children: Sequence[Process], signals: Signals) -> None:
    """SIGTERM to all, then wait; our second signal is passed on, and SIGKILL follows it."""
    _tell(children, signal.SIGTERM)
    if await signals.until_second(_ended(children)):
        return
    _tell(children, signal.SIGTERM)
    try:
        async with asyncio.timeout(2):
            await _ended(children)
    except TimeoutError:
        _tell(children, signal.SIGKILL)
        await _ended(children)


def _tell(children: Sequence[Process], number: signal.Signals) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)


async def _ended(children: Sequence[Process]) -> bool:
    while any(child.poll() is None for child in children):  # noqa: ASYNC110  # processes set no event
        await asyncio.sleep(0.02)
    return True
