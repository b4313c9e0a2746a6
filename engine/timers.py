"""Timers that fired on the server: each becomes the entry of its slot, and a wake of its run where that is suspended.

Any processor does this for any run; a wake is a command, so the run itself goes to one that knows its workflow. The
fired message is acknowledged on proof only (protocol rule 8): a wake was stored, what it carries was already seen, or
the run is over.
"""

import asyncio
import logging
import secrets
import time

from engine import journal, names
from engine.commands import wake_headers
from engine.model import Kind, Mark, Status
from engine.names import Names
from engine.pull import Delivery
from engine.store import REFUSED, Store
from mesh import headers as header_block
from mesh.errors import NotConnectedError

logger = logging.getLogger("engine.timers")

FORGET_AFTER = 60.0
"""Seconds after which a timer of an unknown run is dropped."""
FIRST_PAUSE = 1.0
LAST_PAUSE = 30.0
WORKERS = 64
"""Fired timers that are worked on at once in this process."""


class TimerHandler:
    """Works off fired timers."""

    def __init__(self, store: Store, names_: Names) -> None:
        self._store = store
        self._names = names_
        self._tasks: set[asyncio.Task[None]] = set()

    def room(self) -> int:
        """How many more may be delivered."""
        return WORKERS - len(self._tasks)

    def deliver(self, delivery: Delivery) -> None:
        """Work on one, in a task of its own."""
        task = asyncio.create_task(self._handle(delivery), name="mesh-timer")
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
            logger.error("a fired timer failed and will come again", exc_info=task.exception())

    async def _handle(self, delivery: Delivery) -> None:
        try:
            if await self._settle(delivery):
                self._store.acknowledge(delivery.ack)
            else:
                pause = min(FIRST_PAUSE * 2 ** min(delivery.count - 1, 10), LAST_PAUSE)
                self._store.hand_back(delivery.ack, pause)
        except NotConnectedError:  # it comes again after the consumer's ack_wait
            return

    async def _settle(self, delivery: Delivery) -> bool:
        """Store the entry and see to it that the run hears of it. Whether the message is needless now."""
        found = header_block.parse(delivery.headers)
        subject = found.get("Mesh-Slot", "")
        slot = names.parse_slot(subject)
        workflow, partition = found.get("Mesh-Workflow", ""), found.get("Mesh-Partition", "")
        if slot is None or slot.kind != Kind.SLEEP or not names.is_number(partition):
            logger.warning("a fired timer that is no timer's was dropped: %s", delivery.subject)
            return True
        stored = await self._store.read_record(slot.invocation)
        record = stored.record
        if record is None:  # running since less than a second, or gone
            return time.time() - delivery.time_ns / 1e9 > FORGET_AFTER
        if record.incarnation != slot.incarnation or record.is_final:
            return True
        sequence = await self._store_entry(subject)
        if sequence == 0:
            return False
        if record.status == Status.SUSPENDED and record.seen_seq < sequence:
            return await self._wake(workflow, int(partition), slot, sequence)
        return record.seen_seq >= sequence

    async def _store_entry(self, subject: str) -> int:
        """Fill the slot; the sequence of what stands in it, 0 where that cannot be told yet."""
        ack = await self._store.publish(subject, b"", journal.entry_headers(Mark.FIRED))
        if ack.error is None:
            return ack.seq
        if ack.error.err_code != REFUSED:
            return 0
        slot = names.parse_slot(subject)
        assert slot is not None
        return await self._store.slot_sequence(self._names.shard(slot.invocation), subject)

    async def _wake(self, workflow: str, partition: int, slot: names.Slot, sequence: int) -> bool:
        ack = await self._store.publish(
            self._names.command(names.check_token("workflow", workflow), slot.invocation, partition),
            b"",
            wake_headers(self._names, slot.invocation, slot.incarnation, sequence, secrets.token_urlsafe(12)),
        )
        return ack.error is None
