"""A stage for one test: a server with its store, a ledger, gates, and the processes that play on it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from engine import Client
from tests.kit.foreign import Foreign, Handler, silence
from tests.kit.gates import Gate
from tests.kit.ledger import FOLDER_VARIABLE, Ledger
from tests.kit.process import Process
from tests.kit.proxy import Proxy
from tests.kit.raw import Raw
from tests.kit.server import NatsServer

ROOT = Path(__file__).parents[2]
FLOWS = "tests.kit.flows"
"""The workflows that scenarios run."""
ACK_WAIT = 2.0
"""Seconds after which a dead processor's runs are taken over: short, so that tests are."""


@dataclass(frozen=True, slots=True)
class Mode:
    """How processors hold runs that wait: M1 as users have it, M2 drops and replays at every wait."""

    name: str
    suspend_after: str | None

    @property
    def flags(self) -> list[str]:
        """What a processor is started with."""
        return [] if self.suspend_after is None else ["--suspend-after", self.suspend_after]


M1 = Mode("M1", None)
M2 = Mode("M2", "0")


class Stage:
    """What a scenario is played on. Processes that it starts end with it."""

    def __init__(self, folder: Path, server: NatsServer, raw: Raw, mode: Mode = M1) -> None:
        self.folder = folder
        self.server = server
        self.raw = raw
        self.mode = mode
        self.ledger = Ledger(folder / "ledger.jsonl")
        self._processes: list[Process] = []
        self._numbers = count(1)

    def gate(self, name: str) -> Gate:
        """A gate that handlers of this stage's processes wait at."""
        return Gate(self.folder, name)

    def spawn(self, command: str, *arguments: str, url: str | None = None) -> Process:
        """Start `mesh <command> …` on this stage's server (or through `url`) without waiting for it."""
        name = f"{command}-{next(self._numbers)}"
        # `-X faulthandler`: what a test that timed out was waiting for is in the process's log.
        argv = [sys.executable, "-X", "faulthandler", "-m", "mesh", command, *arguments]
        process = Process(
            [*argv, "--server", url or self.server.url],
            folder=self.folder,
            name=name,
            environment={FOLDER_VARIABLE: str(self.folder), "PYTHONUNBUFFERED": "1"},
            cwd=ROOT,
        )
        self._processes.append(process)
        return process

    async def processor(
        self, *flags: str, flows: str = FLOWS, ack_wait: float = ACK_WAIT, url: str | None = None
    ) -> Process:
        """Start a processor in this stage's mode and wait until it takes work."""
        process = self.spawn("processor", flows, "--ack-wait", f"{ack_wait:g}s", *self.mode.flags, *flags, url=url)
        return await process.ready()

    async def service(self, *modules: str, url: str | None = None) -> Process:
        """Start `mesh serve` and wait until it takes requests."""
        return await self.spawn("serve", *modules, url=url).ready()

    def foreign(self, method: str, handler: Handler = silence) -> Foreign:
        """A service `kit.Steps` that knows nothing of us: one method of it, living in the test."""
        return Foreign(self.raw.client, f"svc.kit.Steps.{method}", handler)

    async def no_commands_left(self, timeout: float = 20.0) -> None:
        """Wait until the queue is empty: nothing is left to be done, or to be done again."""
        async with asyncio.timeout(timeout):
            while await self.raw.messages("COMMANDS") > 0:
                await asyncio.sleep(0.02)

    @asynccontextmanager
    async def client(self, url: str | None = None) -> AsyncIterator[Client]:
        """The product's client."""
        async with Client.connect(url or self.server.url) as client:
            yield client

    @asynccontextmanager
    async def link(self) -> AsyncIterator[Proxy]:
        """A proxy to this stage's server: give its `url` to whoever is to be cut off."""
        async with Proxy(self.server.port) as proxy:
            yield proxy

    async def story(self, invocation: str) -> str:
        """All that the stores say of a run: for the message of a test that waits for it in vain."""
        record, command = await self.raw.record(invocation), await self.raw.command(invocation)
        timers = [s for s in await self.raw.subjects("TIMERS") if invocation in s.split(".")]
        slots = [f"{slot.sequence} {slot.stored.subject}" for slot in await self.raw.slots(invocation)]
        queued = f"{command.sequence} {command.headers}" if command else "none"
        return f"record:\n{record}\nslots: {slots}\ntimers: {timers}\ncommand: {queued}"

    def reports(self) -> str:
        """What all processes said: for the output of a failing test."""
        return "\n".join(process.report() for process in self._processes)

    def close(self) -> None:
        """End every process, by force: an orderly end is a test's own business."""
        for process in self._processes:
            process.kill()
