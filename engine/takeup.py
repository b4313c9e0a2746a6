"""Taking up a run: who owns it, and from where it goes on (protocol rules 1 to 3, 6).

The gate, a leader read of the record and a complete read of the slots, comes before any effect. A first delivery that
finds neither goes on without a write; everything else is claimed by compare-and-set first. Who is refused falls
silent.
"""

import logging
from dataclasses import replace

import msgspec

from engine import ownership
from engine.commands import WAKE
from engine.delivered import DeliveredCommand
from engine.errors import DecodeError, PoisonError
from engine.host import Host
from engine.mailbox import Mailbox
from engine.model import Ask, Failure, Invocation, Kind, Status
from engine.records import Record
from engine.run import Run
from engine.store import Read, Stored

logger = logging.getLogger("engine.takeup")

LEFT = frozenset({Status.SUSPENDED, Status.PAUSED, Status.PENDING})
"""A record that says so made the command needless that it names."""
UNREADABLE_PAUSE = 30.0
"""Seconds until a command is tried again whose run's record cannot be read."""


class TakeUp:
    """The gate of one run, and what follows it."""

    def __init__(self, host: Host, run: Run) -> None:
        self._host = host
        self._run = run
        self._stored: Stored | None = None
        self._read: Read | None = None
        self._missing = 2
        self._invocation = fresh_invocation(run.command)
        self._timers_scheduled = False

    def begin(self) -> None:
        """Ask both questions of the gate at once. Raises NotConnectedError."""
        run = self._run
        self._host.store.fetch_record(run.id, self._on_record)
        self._host.store.fetch_journal(run.shard, [f"{root}.>" for root in run.roots], self._on_journal)

    def _on_record(self, stored: Stored | None) -> None:
        self._stored = stored
        self._answered()

    def _on_journal(self, read: Read | None) -> None:
        self._read = read
        self._answered()

    def _answered(self) -> None:
        self._missing -= 1
        if self._missing or self._run.dropped or self._run.reclaiming or self._run.invocation is not None:
            return
        if self._run.is_recorded:  # the patient gate was quicker
            return
        run, stored, read = self._run, self._stored, self._read
        if stored is not None and read is not None and is_first(run.command, stored, read):
            run.revision = stored.revision
            run.launch(self._invocation, read)
        else:
            self._host.spawn(self.patiently(), run)

    async def patiently(self) -> None:
        """The gate for everything that is not a first, undisturbed delivery."""
        run, host = self._run, self._host
        async with run.operation():
            while True:
                lease = await host.lease()
                if run.dropped or run.invocation is not None:
                    return
                read = await self._gate()
                if read is None or run.dropped:
                    return
                if host.is_lease(lease):
                    break
            run.reclaiming = False
        run.launch(self._invocation, read, self._timers_scheduled)

    async def _gate(self) -> Read | None:
        """Own the run, and read its journal after that; None where there is nothing to run."""
        run, command = self._run, self._run.command
        try:
            stored = await self._host.store.read_record(run.id)
        except (DecodeError, msgspec.DecodeError):
            logger.exception("run %s: its record cannot be read; repair or purge it", run.id)
            self._host.store.hand_back(command.ack, UNREADABLE_PAUSE)
            run.drop("its record cannot be read")
            return None
        record = stored.record
        run.revision = stored.revision
        if record is None and command.kind == WAKE:
            run.let_go(acknowledge=True)  # its run is over and gone
        elif record is not None and (record.incarnation != command.incarnation or record.is_final):
            run.let_go(acknowledge=True)  # a duplicate, or a run that has ended: nothing else is due
        elif record is not None and record.status in LEFT and command.sequence <= record.command_seq:
            # The suspension made this very command needless, and its ack may be under way: it would take the command
            # away from whoever lives on it (H8). What wakes the run brings a command of its own.
            run.let_go(acknowledge=True)
        elif record is None:
            return await self._claim_recordless(stored)
        else:
            return await self._take_over(record)
        return None

    async def _claim_recordless(self, stored: Stored) -> Read | None:
        """No record: never taken up, or lost in its first second, or its record is on its way."""
        run, host, command = self._run, self._host, self._run.command
        self._invocation = fresh_invocation(command)
        read = await host.store.read_journal(run.shard, run.roots, await host.store.last_sequence(run.shard))
        if is_untouched(command, stored, read):
            status = unbegun_status(read)
            if status is None:
                return read
            await self._record_unbegun(status)
            return None
        run.contested = True
        run.number = run.attempts = 2
        record = replace(self._new_record(), strikes=0 if read.entries else 1, claim_seq=read.up_to)
        return await self._claimed(record, creating=True)

    async def _take_over(self, record: Record) -> Read | None:
        """A record of this incarnation that is not final: claimed before its input is even decoded (H30)."""
        run, host, command = self._run, self._host, self._run.command
        self._invocation = recorded_invocation(record)
        self._timers_scheduled = record.seen_seq > 0
        # A claim of this very holding, repeated because its lease lapsed, is no loss.
        again = run.record is not None and (run.record.run, run.record.owner) == (record.run, record.owner)
        lost = record.status == Status.RUNNING and bool(record.owner) and not again
        minimum = max(record.seen_seq, record.tail_seq, command.min_seq, await host.store.last_sequence(run.shard))
        read = await host.store.read_journal(run.shard, run.roots, minimum)
        progress = any(e.sequence > record.claim_seq and e.kind != Kind.INBOX for e in read.entries)
        strikes = (0 if progress else record.strikes) + 1 if lost else 0
        run.record = record
        run.number = record.run + 1
        run.attempts = max(record.attempts + (1 if lost else 0), 1)
        run.contested = record.contested or (record.status == Status.RUNNING and bool(record.owner))
        if strikes >= host.max_attempts:
            await self._park(record, strikes)
            return None
        return await self._claimed(replace(self._new_record(), strikes=strikes, claim_seq=read.up_to), creating=False)

    def _new_record(self) -> Record:
        self._run.invocation, kept = self._invocation, self._run.invocation
        try:
            return ownership.new_record(self._run, Status.RUNNING)
        finally:
            self._run.invocation = kept  # it stays held until it is launched

    async def _claimed(self, record: Record, *, creating: bool) -> Read | None:
        """Claim, then read: what counts is what was stored before anybody else knew that it is ours."""
        run, host = self._run, self._host
        if not await ownership.write_claim(run, record, creating=creating):
            return None
        return await host.store.read_journal(run.shard, run.roots, await host.store.last_sequence(run.shard))

    async def _record_unbegun(self, status: Status) -> None:
        """It was cancelled or paused before its code ever ran, which it does not."""
        run = self._run
        record = self._new_record()
        record.status, record.owner = status.value, ""
        record.started_ns = record.attempts = 0
        if record.is_final:
            record.completed_ns = record.updated_ns
        if not await self._host.store.write_record(record, run.revision):
            run.drop(ownership.LOST)
            return
        run.let_go(acknowledge=True)
        if record.is_final:
            self._host.finished(run, record)

    async def _park(self, record: Record, strikes: int) -> None:
        """The run takes its processors down with it: failed, and nothing of it is run."""
        run, host = self._run, self._host
        error = PoisonError(
            strikes, f"given up after {strikes} attempts in a row without progress: its processor was lost each time"
        )
        now = host.clock.now_ns()
        parked = replace(
            record,
            status=Status.FAILED.value,
            run=record.run + 1,
            owner="",
            strikes=strikes,
            completed_ns=now,
            updated_ns=now,
            error=Failure(type(error).__qualname__, str(error), attempts=strikes),
            waiting_on=(),
        )
        if await host.store.write_record(parked, run.revision):
            run.let_go(acknowledge=True)  # recorded, so the command is needless
        else:
            run.drop(ownership.LOST)


def is_untouched(command: DeliveredCommand, stored: Stored, read: Read) -> bool:
    """Whether nothing was ever done for this run."""
    return stored.record is None and command.count == 1 and not read.entries and command.kind != WAKE


def is_first(command: DeliveredCommand, stored: Stored, read: Read) -> bool:
    """Whether nothing was ever done for this run, nor asked of it: it goes on as number 1, without a write."""
    return is_untouched(command, stored, read) and not read.controls


def unbegun_status(read: Read) -> Status | None:
    """What a run becomes whose code has not begun, by what was asked of it; None where it may begin."""
    mailbox = Mailbox()
    mailbox.learn(read.controls)
    if any(control.kind == Ask.CANCEL for control in read.controls):
        return Status.CANCELLED
    return Status.PAUSED if mailbox.is_paused else None


def fresh_invocation(command: DeliveredCommand) -> Invocation:
    """The invocation as its first command says it."""
    return Invocation(
        command.invocation,
        command.incarnation,
        command.workflow,
        command.input,
        command.input_type,
        command.time_ns,
        command.time_ns,
        command.partition_key,
    )


def recorded_invocation(record: Record) -> Invocation:
    """The invocation as its record says it: commands that wake carry no input."""
    return Invocation(
        record.invocation_id,
        record.incarnation,
        record.workflow,
        record.input,
        record.input_type,
        record.created_ns,
        record.created_ns,
        record.partition_key,
        record.parent_id,
    )
