"""The thread that keeps held commands from being delivered again, and says for how long this processor may act.

User code that blocks the event loop must not cost a run its protection, so in-progress acks go from a thread with a
connection of its own. Each answered round proves that the connection lived at the time it was *sent*; for two thirds
of `ack_wait` after that no other processor can have been given our commands. Past it the lease is over until the next
answered round (`is_alive`), and whatever is held must be claimed again first: an answered in-progress ack alone
proves no ownership.
"""

import asyncio
import logging
import threading
import time

from engine.clock import elapsed
from mesh import headers as header_block
from mesh.connection import Connection
from mesh.errors import ConnectError, NotConnectedError
from mesh.options import ConnectOptions

logger = logging.getLogger("engine.keepalive")

_PROGRESS = b"+WPI"
BLOCKED_AFTER = 1.0
"""Seconds for which workflow code may keep the event loop before it is named in the log."""


class Keepalive:
    """In-progress acks for everything that is held, every third of `ack_wait` (seconds)."""

    def __init__(self, options: ConnectOptions, ack_wait: float) -> None:
        self._options = options
        self.ack_wait = ack_wait
        self._held: dict[str, None] = {}
        self._deadline = 0.0
        self.lapses = 0
        """How often the lease was over before the next one began: whoever held something then must claim it again."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._main, name="mesh-keepalive", daemon=True)
        self._busy: tuple[str, float] | None = None
        self._warned: tuple[str, float] | None = None

    def start(self) -> None:
        """Begin. The lease starts now: nothing is held yet that could be somebody else's."""
        self._deadline = elapsed() + self.ack_wait * 2 / 3
        self._thread.start()

    def stop(self) -> None:
        """End the thread; waits for it a moment."""
        self._stop.set()
        self._thread.join(timeout=2.0)

    def hold(self, ack_subject: str) -> None:
        """Keep this delivery from being repeated."""
        self._held[ack_subject] = None

    def release(self, ack_subject: str) -> None:
        """It is acknowledged, handed back, or somebody else's."""
        self._held.pop(ack_subject, None)

    def is_alive(self) -> bool:
        """Whether a round trip is recent enough to publish for a run."""
        return elapsed() < self._deadline

    def expire(self) -> None:
        """End the lease: the main connection was lost. The next answered round begins a new one."""
        self._deadline = 0.0

    # --- the event loop's sign of life

    def enter(self, invocation: str) -> None:
        """Workflow code of this run begins to run in the event loop."""
        self._busy = (invocation, time.monotonic())

    def leave(self) -> None:
        """It gave the loop back."""
        self._busy = None

    # --- the thread

    def _main(self) -> None:
        while not self._stop.is_set():
            try:
                asyncio.run(self._run())
            except (ConnectError, OSError) as error:
                logger.warning("keep-alive cannot connect: %s", error)
                self._stop.wait(0.5)
            except Exception:  # the top of the thread: without it every run would be lost silently
                logger.exception("keep-alive failed; it begins again")
                self._stop.wait(0.5)

    async def _run(self) -> None:
        connection = await Connection.open(self._options)
        try:
            began = 0.0
            while not self._stop.is_set() and not connection.is_closed:
                if elapsed() >= began + self.ack_wait / 3:
                    began = elapsed()
                    await self._round(connection)
                self._look_at_loop()
                await asyncio.sleep(min(0.1, self.ack_wait / 12))
        finally:
            await connection.close()

    async def _round(self, connection: Connection) -> None:
        """One in-progress ack for each held command. All answered: a new lease, counted from when they were sent."""
        sent = elapsed()
        held = list(self._held)
        waiting = len(held)
        answered = asyncio.Event()

        def answer(_data: bytes, block: bytes) -> None:
            nonlocal waiting
            if header_block.is_no_responders(block):
                return  # no consumer took it, so no time-out was put off
            waiting -= 1
            if waiting <= 0:
                answered.set()

        tokens = []
        try:
            tokens = [connection.request(ack, _PROGRESS, answer) for ack in held]
            if held:
                async with asyncio.timeout(self.ack_wait / 3):
                    await answered.wait()
            else:
                await connection.round_trip(self.ack_wait / 3)
            if sent >= self._deadline:
                self.lapses += 1
            self._deadline = sent + self.ack_wait * 2 / 3
        except (TimeoutError, NotConnectedError):
            logger.warning("no answer to in-progress acks within %.2g s", self.ack_wait / 3)
        finally:
            for token in tokens:
                connection.forget(token)

    def _look_at_loop(self) -> None:
        busy = self._busy
        if busy is None or busy == self._warned or time.monotonic() - busy[1] < BLOCKED_AFTER:
            return
        self._warned = busy
        logger.warning(
            "workflow code of run %s has kept the event loop for over %.0f s: other runs wait. "
            "Put blocking work into ctx.run(name, function, ...)",
            busy[0],
            BLOCKED_AFTER,
        )
