"""Contenders' processes: servers that say `ready`, and clients that run one round a line.

A client stays alive over all rounds, so that nothing but the load differs between them; while
others are measured it waits for its next line and costs nothing.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvloop

from bench.load import Call, Sample, measure

ROOT = Path(__file__).parents[1]
READY_TIMEOUT = 30.0
_READY = "ready"


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run a child's main on uvloop."""
    uvloop.run(_awaited(main))


async def _awaited(main: Callable[[], Awaitable[None]]) -> None:
    await main()


async def serve_until_told(where: str = "") -> None:
    """A server's last line: say `ready` and where, then wait for the end of stdin or SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    asyncio.get_running_loop().add_reader(sys.stdin, stop.set)
    print(_READY, where, flush=True)
    await stop.wait()


async def take_rounds(call: Call) -> None:
    """A client's last line: each line of stdin asks for one round, each line of stdout answers."""
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    print(_READY, flush=True)
    while line := await reader.readline():
        asked = json.loads(line)
        sample = await measure(call, in_flight=asked["in_flight"], seconds=asked["seconds"])
        print(json.dumps(asdict(sample)), flush=True)


class Child:
    """The parent's end of one process."""

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self._process = process
        self.name = name
        self.greeting = ""

    @classmethod
    async def start(cls, name: str, *arguments: str) -> Child:
        """Start `arguments` and wait until it is ready."""
        process = await asyncio.create_subprocess_exec(
            *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=ROOT
        )
        child = cls(process, name)
        try:
            line = await asyncio.wait_for(child._line(), READY_TIMEOUT)
        except TimeoutError:
            line = "nothing"
        if not line.startswith(_READY):
            await child.stop()
            raise RuntimeError(f"{name} said {line!r} instead of ready")
        child.greeting = line
        return child

    @classmethod
    async def python(cls, module: str, *arguments: str) -> Child:
        """Start a module of the benchmarks."""
        return await cls.start(f"{module} {arguments[0]}", sys.executable, "-m", module, *arguments)

    async def round(self, in_flight: int, seconds: float) -> Sample:
        """One round of this client."""
        assert self._process.stdin is not None
        asked = json.dumps({"in_flight": in_flight, "seconds": seconds})
        self._process.stdin.write(asked.encode() + b"\n")
        line = await asyncio.wait_for(self._line(), seconds + 60)
        answer: dict[str, Any] = json.loads(line)
        return Sample(**answer)

    async def _line(self) -> str:
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode().strip()

    async def stop(self) -> None:
        """End it in order, else by force."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), 5.0)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
