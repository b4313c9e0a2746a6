"""Timers that fired on the server: each becomes the entry of its slot, and a wake of its run where that is suspended.

Any processor does this for any run; a wake is a command, so the run itself goes to one that knows its workflow. The
fired message is acknowledged on proof only (protocol rule 8): a wake was stored, what it carries was already seen, or
the run is over.
"""

import logging
import time

from engine import journal, names, wakes
from engine.model import Kind, Mark, Status
from engine.names import Names
from engine.pull import Delivery
from engine.store import REFUSED, Store
from mesh import headers as header_block

logger = logging.getLogger("engine.timers")

FORGET_AFTER = 60.0
"""Seconds after which a timer of an unknown run is dropped."""


class TimerHandler:
    """Settles fired timers."""

    def __init__(self, store: Store, names_: Names) -> None:
        self._store = store
        self._names = names_

    async def settle(self, delivery: Delivery) -> bool:
        """Store the entry and see to it that the run hears of it. Whether the message is needless now."""
        found = header_block.parse(delivery.headers)
        subject = found.get("Mesh-Slot", "")
        slot = names.parse_slot(subject)
        if slot is None or slot.kind != Kind.SLEEP:
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
            return await wakes.wake(self._store, self._names, record, sequence)
        if record.status == Status.PAUSED:
            return await wakes.raise_tail(self._store, stored, sequence)
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
