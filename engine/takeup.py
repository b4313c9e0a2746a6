"""Taking up a run: who owns it, and from where it goes on (protocol rules 1 to 3, 6).

The gate, a leader read of the record and a complete read of the slots, comes before any effect. A first delivery that finds neither
goes on without a write; everything else is claimed by compare-and-set first. Who is refused falls silent.
"""

import logging
from dataclasses import replace

from engine.commands import WAKE
from engine.delivered import DeliveredCommand
from engine.errors import PoisonError
from engine.model import Failure, Invocation, Status
from engine.records import Record, input_digest
from engine.run import Host, Run
from engine.store import Read, Stored

logger = logging.getLogger("engine.takeup")


class TakeUp:
    """The gate of one run, and what follows it."""

    def __init__(self, host: Host, run: Run) -> None:
        self._host = host
        self._run = run
        self._stored: Stored | None = None
        self._read: Read | None = None
        self._missing = 2

    def begin(self) -> None:
        """Ask both questions of the gate at once. Raises NotConnectedError."""
        run = self._run
        self._host.store.fetch_record(run.id, self._on_record)
        self._host.store.fetch_journal(run.shard, [f"{run.slots}.>"], self._on_journal)

    def _on_record(self, stored: Stored | None) -> None:
        self._stored = stored
        self._answered()

    def _on_journal(self, read: Read | None) -> None:
        self._read = read
        self._answered()

    def _answered(self) -> None:
        self._missing -= 1
        if self._missing or self._run.dropped:
            return
        run, stored, read = self._run, self._stored, self._read
        if stored is not None and read is not None and is_first(run.command, stored, read):
            run.revision = stored.revision
            run.launch(fresh_invocation(run.command), ())
        else:
            self._host.spawn(self.patiently(), run)

    async def patiently(self) -> None:
        """The gate for everything that is not a first, undisturbed delivery."""
        run, host, command = self._run, self._host, self._run.command
        stored = await host.store.read_record(run.id)
        if run.dropped:
            return
        record = stored.record
        if record is None:
            await self._take_recordless(stored)
        elif record.incarnation != command.incarnation or record.is_final:
            run._let_go(acknowledge=True)  # noqa: SLF001  # a duplicate, or a run whose duties are done: nothing else is due
        else:
            await self._take_over(record, stored.revision)

    async def _take_recordless(self, stored: Stored) -> None:
        run, host, command = self._run, self._host, self._run.command
        if command.kind == WAKE:
            run._let_go(acknowledge=True)  # noqa: SLF001  # its run is over and gone
            return
        read = await host.store.read_journal(run.shard, run.slots, command.min_seq)
        if run.dropped:
            return
        run.revision = stored.revision
        if is_first(command, stored, read):
            run.launch(fresh_invocation(command), ())
            return
        # Somebody had it before and left no record: it was lost in its first second, or its record is on its way.
        run.contested = True
        run.number = run.attempts = 2
        record = claim(run, fresh_invocation(command))
        record.strikes = 0 if read.entries else 1
        record.claim_seq = read.up_to
        if await self._claimed(record, creating=True):
            await self._launch(fresh_invocation(command), record.claim_seq)

    async def _take_over(self, record: Record, revision: int) -> None:
        run, host, command = self._run, self._host, self._run.command
        run.revision = revision
        lost = record.status == Status.RUNNING and bool(record.owner)
        read = await host.store.read_journal(run.shard, run.slots, max(record.seen_seq, record.tail_seq, command.min_seq))
        if run.dropped:
            return
        invocation = recorded_invocation(record)
        progress = any(entry.sequence > record.claim_seq for entry in read.entries)
        strikes = record.strikes if lost and not progress else 0
        run.record = record
        run.number, run.attempts = record.run + 1, record.attempts + (1 if lost else 0)
        run.contested = record.contested or lost or (command.count > 1 and record.status == Status.RUNNING)
        if lost and strikes + 1 > host.max_attempts:
            await self._park(record, strikes)
            return
        renewed = claim(run, invocation)
        renewed.strikes = strikes + 1 if lost else 0
        renewed.claim_seq = read.up_to
        renewed.started_ns = record.started_ns or renewed.started_ns
        if await self._claimed(renewed, creating=False):
            await self._launch(invocation, read.up_to, timers_scheduled=record.status == Status.SUSPENDED or record.seen_seq > 0)

    async def _claimed(self, record: Record, *, creating: bool) -> bool:
        run, host = self._run, self._host
        revision = await host.store.write_record(record, run.revision)
        if not revision:
            run.drop("another processor has claimed it")
            return False
        if creating and not await host.store.has_command(run.command.sequence):
            # The run was finished and purged meanwhile: the claim brought nothing back but itself.
            await host.store.purge(host.names.execution_stream, host.names.record(run.id), keep_from=revision + 1)
            run.drop("it was over already")
            return False
        run.record, run.revision = record, revision
        return not run.dropped

    async def _launch(self, invocation: Invocation, minimum: int, timers_scheduled: bool = False) -> None:
        """What counts is a read after the claim."""
        run, host = self._run, self._host
        read = await host.store.read_journal(run.shard, run.slots, minimum)
        if not run.dropped:
            run.launch(invocation, read.entries, timers_scheduled)

    async def _park(self, record: Record, strikes: int) -> None:
        """The run takes its processors down with it: failed, before its input is even decoded."""
        run = self._run
        error = PoisonError(
            strikes, f"given up after {strikes} attempts in a row without progress: its processor was lost each time"
        )
        now = self._host.clock.now_ns()
        parked = replace(
            record, status=Status.FAILED.value, run=record.run + 1, owner="", strikes=strikes, completed_ns=now, updated_ns=now,
            error=Failure("PoisonError", str(error), attempts=strikes), waiting_on=(),
        )
        if await self._host.store.write_record(parked, run.revision):
            run._let_go(acknowledge=True)  # noqa: SLF001  # recorded, so the command is needless
        else:
            run.drop("another processor has claimed it")


async def reclaim(run: Run) -> None:
    """Own a run again after silence: a claim at the revision we know, a complete read, and on from there (H24)."""
    host = run.host
    if run.invocation is None:  # not taken up yet: its gate begins again
        await TakeUp(host, run).patiently()
        return
    run.number += 1
    record = run.new_record(Status.RUNNING)
    record.contested = True
    creating = run.record is None
    revision = await host.store.write_record(record, run.revision)
    if not revision:
        run.drop("another processor has claimed it")
        return
    if creating and not await host.store.has_command(run.command.sequence):
        await host.store.purge(host.names.execution_stream, host.names.record(run.id), keep_from=revision + 1)
        run.drop("it was over already")
        return
    run.record, run.revision = record, revision
    read = await host.store.read_journal(run.shard, run.slots, record.claim_seq)
    if not run.dropped:
        run.relaunch(read.entries)


def is_first(command: DeliveredCommand, stored: Stored, read: Read) -> bool:
    """Whether nothing was ever done for this run: it goes on as number 1, without a write."""
    return stored.record is None and command.count == 1 and not read.entries and command.kind != WAKE


def fresh_invocation(command: DeliveredCommand) -> Invocation:
    """The invocation as its first command says it."""
    return Invocation(
        command.invocation, command.incarnation, command.workflow, command.input, command.input_type,
        command.time_ns, command.time_ns, command.partition_key,
    )


def recorded_invocation(record: Record) -> Invocation:
    """The invocation as its record says it: commands that wake carry no input."""
    return Invocation(
        record.invocation_id, record.incarnation, record.workflow, record.input, record.input_type,
        record.created_ns, record.created_ns, record.partition_key, record.parent_id,
    )


def claim(run: Run, invocation: Invocation) -> Record:
    """The record that makes a run ours."""
    run.invocation = invocation
    record = run.new_record(Status.RUNNING)
    record.input_digest = input_digest(
        invocation.workflow, invocation.partition_key, invocation.input_type, invocation.input
    )
    return record
