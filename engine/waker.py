"""Carrying controls to runs that are in no memory (protocol rule 5 and 8, H16 to H18, H21, H22).

One durable consumer a shard, pulled by every processor. Any of them does this for any run: a wake is a command, so the
run goes to a processor that knows its workflow. A control is acknowledged on proof only: a wake was stored, the run
has seen it, it is over, or its record says that the next owner has to see it.
"""

import logging
import time
from dataclasses import replace

from engine import names, wakes
from engine.model import Ask, Status
from engine.names import Names
from engine.pull import Delivery
from engine.store import Store, Stored
from engine.sweep import is_needless

logger = logging.getLogger("engine.waker")

FORGET_AFTER = 60.0
"""Seconds after which a control of an unknown run is removed."""


class Waker:
    """Settles controls."""

    def __init__(self, store: Store, names_: Names) -> None:
        self._store = store
        self._names = names_

    async def settle(self, delivery: Delivery) -> bool:
        """See to it that the run hears of it. Whether the control needs nobody's care any more."""
        control = names.parse_control(delivery.subject)
        if control is None:
            logger.warning("a control of no run was ignored: %s", delivery.subject)
            return True
        stored = await self._store.read_record(control.invocation)
        record = stored.record
        if record is None:
            return await self._is_forgotten(control, delivery)
        if record.incarnation != control.incarnation:
            await self._remove(control, delivery)
            return True
        if record.status in {Status.COMPLETED, Status.CANCELLED}:
            if is_needless(record):
                await self._remove(control, delivery)
            return True
        if record.status in {Status.PAUSED, Status.PENDING} and control.kind in {Ask.RESUME, Ask.CANCEL}:
            return await self._go_on(stored, delivery.sequence)
        if record.status == Status.PENDING:
            return False  # its next owner reads it; a write of ours would be in the way of that owner's claim
        if record.status in {Status.FAILED, Status.PAUSED}:
            return await wakes.raise_tail(self._store, stored, delivery.sequence)
        if record.status == Status.SUSPENDED and record.seen_seq < delivery.sequence:
            return await wakes.wake(self._store, self._names, record, delivery.sequence)
        return record.seen_seq >= delivery.sequence

    async def _go_on(self, stored: Stored, sequence: int) -> bool:
        """A paused run goes on: it is queued again, and its command stored until there is no doubt that it is."""
        record = stored.record
        assert record is not None
        if record.status == Status.PAUSED:
            tail = max(record.tail_seq, sequence)
            queued = replace(record, status=Status.PENDING.value, tail_seq=tail, updated_ns=time.time_ns())
            if not await self._store.write_record(queued, stored.revision):
                return False
        return await wakes.wake(self._store, self._names, record, sequence)

    async def _is_forgotten(self, control: names.ControlSubject, delivery: Delivery) -> bool:
        """No record: the run is queued, or runs since less than a second, or is gone."""
        if time.time() - delivery.time_ns / 1e9 < FORGET_AFTER or await self._store.has_command_of(control.invocation):
            return False
        await self._remove(control, delivery)
        return True

    async def _remove(self, control: names.ControlSubject, delivery: Delivery) -> None:
        stream = self._names.journal(self._names.shard(control.invocation))
        await self._store.purge(stream, delivery.subject)
