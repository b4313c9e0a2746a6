"""Purging the journals of runs whose final record holds everything: soon after, one after the other, and never in a
run's way.

Only of completed and cancelled runs that nobody contested: a zombie that found empty slots would fill them (protocol
H29).
"""

import asyncio
import functools
from collections import deque

from engine.model import Status
from engine.names import Names
from engine.records import Record
from engine.store import Store
from mesh.errors import NotConnectedError

PARALLEL = 8
"""Purges under way at once: the server does 12,000 to 23,000 a second (measured)."""
LOST_AFTER = 5.0
"""Seconds after which a purge without an answer is made again."""


def is_needless(record: Record) -> bool:
    """Whether nobody needs the journal of a final run any more, controls included."""
    if record.status == Status.FAILED or record.contested:
        return False
    return not (record.journal_truncated or any(entry.elided for entry in record.journal))


class Sweeper:
    """Purges in the background what `finished` was told."""

    def __init__(self, store: Store, names: Names) -> None:
        self._store = store
        self._names = names
        self._queue: deque[tuple[str, str]] = deque()
        self._under_way: dict[tuple[str, str], tuple[int, float]] = {}

    def finished(self, slots: str, shard: int, record: Record, controls: str = "") -> None:
        """A run's final record is stored; `controls` where there were any."""
        if not is_needless(record):
            return
        if record.journal or controls:
            self.purge(self._names.journal(shard), f"{slots}.>")
        if controls:
            self.purge(self._names.journal(shard), f"{controls}.>")

    def purge(self, stream: str, subject: str) -> None:
        """Remove what matches, soon."""
        self._queue.append((stream, subject))
        self._work()

    def tick(self, now: float) -> None:
        """Go on after a connection was lost, and requests or answers with it."""
        for purge, (token, since) in list(self._under_way.items()):
            if now - since > LOST_AFTER:
                self._store.connection.forget(token)
                del self._under_way[purge]
                self._queue.append(purge)
        self._work()

    def _work(self) -> None:
        while self._queue and len(self._under_way) < PARALLEL:
            purge = self._queue[0]
            try:
                token = self._store.purge_soon(*purge, functools.partial(self._purged, purge))
            except NotConnectedError:
                return
            self._queue.popleft()
            self._under_way[purge] = token, asyncio.get_running_loop().time()

    def _purged(self, purge: tuple[str, str]) -> None:
        self._under_way.pop(purge, None)
        self._work()
