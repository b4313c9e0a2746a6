"""Working off messages that need a proof before they are needless: fired timers, controls.

Each is settled in a task of its own. What could not be proven yet is handed back with a growing pause; nothing is
acknowledged because something was tried (protocol rule 8).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from engine.pull import Delivery
from engine.store import Store
from mesh.errors import NotConnectedError

logger = logging.getLogger("engine.settler")

FIRST_PAUSE = 1.0
LAST_PAUSE = 30.0
"""Seconds until what was not proven is delivered again."""
WORKERS = 64
"""Messages of one kind that are worked on at once in this process."""


class Settler:
    """`settle(delivery)` says whether the message is needless now."""

    def __init__(self, store: Store, settle: Callable[[Delivery], Awaitable[bool]], what: str) -> None:
        self._store = store
        self._settle = settle
        self._what = what
        self._tasks: set[asyncio.Task[None]] = set()

    def room(self) -> int:
        """How many more may be delivered."""
        return WORKERS - len(self._tasks)

    def deliver(self, delivery: Delivery) -> None:
        """Work on one, in a task of its own."""
        task = asyncio.create_task(self._handle(delivery), name=f"mesh-{self._what}")
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def drain(self, timeout: float) -> None:
        """Finish what is being worked on."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)

    def stop(self) -> None:
        """Drop what is being worked on: it is delivered again elsewhere."""
        for task in self._tasks:
            task.cancel()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a %s failed and will come again", self._what, exc_info=task.exception())

    async def _handle(self, delivery: Delivery) -> None:
        try:
            if await self._settle(delivery):
                self._store.acknowledge(delivery.ack)
            else:
                pause = min(FIRST_PAUSE * 2 ** min(delivery.count - 1, 10), LAST_PAUSE)
                self._store.hand_back(delivery.ack, pause)
        except NotConnectedError:  # it comes again after the consumer's ack_wait
            return
