"""Operations on the record of a run that is in memory: claim, suspend, hand over, end (protocol sections 1 and 3e, 3f).

Each is a compare-and-set at the revision that this processor knows. Refused means that somebody else was first: the
run is dropped without an ack, nak or in-progress ack. The command is acknowledged after the write that makes it
needless, never before.
"""

import asyncio
import logging
import secrets
from dataclasses import replace
from datetime import UTC, datetime

from engine import journal
from engine.clock import NANOS
from engine.errors import PayloadTooLargeError
from engine.flight import Flight
from engine.history import recorded_steps
from engine.host import Final
from engine.model import Entry, Kind, Status, Step
from engine.records import Record, Wait, fit_record, input_digest, record_headers
from engine.replay import Outcome, describe_exception
from engine.run import SUSPENDED_KINDS, Run
from engine.store import PubAck
from mesh import headers as header_block
from mesh.errors import NotConnectedError

logger = logging.getLogger("engine.ownership")

LOST = "another processor has claimed it"
FINAL_TIMEOUT = 5.0
"""Seconds after which the outcome of a final write is asked for."""
HEADER_ROOM = 1_024
"""Bytes of `max_payload` that a record leaves for its headers."""
SCHEDULE_AGAIN = 5.0
"""Seconds until a run whose timers could not be stored tries to leave memory again."""
SCHEDULES_AT_ONCE = 256
"""Timers of one run that are stored side by side when it is suspended."""
MAX_WAITS = 100
"""Waits that a record lists; a run of a thousand calls at once needs no more to be understood."""


def new_record(run: Run, status: Status) -> Record:
    """A run's record as it stands, with another status."""
    invocation, previous = run.invocation, run.record
    assert invocation is not None
    now = run.host.clock.now_ns()
    if previous is None:
        previous = Record(
            invocation.id,
            invocation.workflow,
            status.value,
            started_ns=now,
            input_digest=input_digest(
                invocation.workflow, invocation.partition_key, invocation.input_type, invocation.input
            ),
        )
    return replace(
        previous,
        status=status.value,
        input=invocation.input,
        input_type=invocation.input_type,
        attempts=run.attempts,
        created_ns=invocation.created_ns,
        started_ns=previous.started_ns or now,
        updated_ns=now,
        due_ns=0,
        partition_key=invocation.partition_key,
        parent_id=invocation.parent_id,
        incarnation=run.incarnation,
        run=run.number,
        owner=run.host.owner,
        contested=run.contested or previous.contested,
        command_seq=run.command.sequence,
        waiting_on=waits(run),
    )


def waits(run: Run) -> list[Wait]:
    """What the code waits for, as users see it."""
    flights = run.effects.flights.values()
    steps = run.replay.open_steps() if run.replay is not None else [flight.step for flight in flights]
    signals = run.replay.signal_waits() if run.replay is not None else []
    reasons = run.effects.reasons()
    found = [
        Wait(step.kind, step.name, step.issued_ns, step.due_ns, reasons.get(step.number, ""), step.number)
        for step in steps[:MAX_WAITS]
    ]
    return found + [Wait("signal", name, since_ns) for name, since_ns in signals[:MAX_WAITS]]


async def write_claim(run: Run, record: Record, *, creating: bool) -> bool:
    """Make a run ours by this record. False where it is not, and then the run is dropped.

    A claim that creates the record counts only if the command that protects the run is still there: else the run was
    finished and purged meanwhile, and the claim takes itself back (protocol H24).
    """
    store, names = run.host.store, run.host.names
    revision = await store.write_record(record, run.revision)
    if not revision:
        run.drop(LOST)
        return False
    if creating and not await store.has_command(run.command.sequence):
        await store.purge(names.execution_stream, names.record(run.id), keep_from=revision + 1)
        run.drop("it was over already")
        return False
    run.record, run.revision = record, revision
    return not run.dropped


async def claim(run: Run) -> None:
    """The record of a run that lasts, under the same run number: everybody sees `running`, and why it waits."""
    async with run.operation():
        if run.dropped or run.reclaiming or run.final is not None:
            return
        if not await write_claim(run, new_record(run, Status.RUNNING), creating=False):
            return
    run.resume()


async def reclaim(run: Run) -> None:
    """Own a run again after silence: a claim at the revision we know, a complete read, and on from there (H24)."""
    async with run.operation():
        while True:
            lease = await run.host.lease()
            if run.dropped or run.final is not None or not run.reclaiming:
                return
            run.number += 1
            record = replace(new_record(run, Status.RUNNING), contested=True)
            if not await write_claim(run, record, creating=run.record is None):
                return
            read = await run.host.store.read_journal(run.shard, run.roots, run.known_seq)
            if run.host.is_lease(lease):
                break
    if not run.dropped:
        run.relaunch(read)


async def suspend(run: Run) -> None:
    """Leave every process: complete read, schedules stored, record `suspended`, command acknowledged."""
    async with run.operation():
        replay = run.replay
        if run.dropped or replay is None or run.reclaiming or run.final is not None:
            return
        store = run.host.store
        read = await store.read_journal(run.shard, run.roots, run.known_seq)
        run.inbox.read(replay, read.controls)
        unseen = any(map(replay.is_unfed, read.entries)) or replay.mailbox.has_mail
        steps = replay.open_steps()
        rests = not unseen and not run.effects.is_here() and all(step.kind in SUSPENDED_KINDS for step in steps)
        timers = [step for step in steps if step.kind == Kind.SLEEP and step.number >= run.scheduled_below]
        if rests and await _schedule(run, timers):
            record = replace(
                new_record(run, Status.SUSPENDED),
                seen_seq=read.up_to,
                strikes=0,
                owner="",
                due_ns=min((step.due_ns for step in steps if step.due_ns), default=0),
            )
            if await store.write_record(record, run.revision):
                run.let_go(acknowledge=True)
            else:
                run.drop(LOST)
            return
    run.resume()
    if unseen and not run.is_still:
        run.absorb(read)


async def pause(run: Run) -> None:
    """Leave every process until a resume: complete read, record `paused`, command acknowledged.

    A resume that is stored after the read finds the record paused, or comes again until it does.
    """
    async with run.operation():
        replay = run.replay
        if run.dropped or replay is None or run.reclaiming or run.final is not None:
            return
        read = await run.host.store.read_journal(run.shard, run.roots, run.known_seq)
        run.inbox.read(replay, read.controls)
        if replay.mailbox.is_paused and not run.effects.is_here():
            record = replace(new_record(run, Status.PAUSED), strikes=0, owner="", tail_seq=read.up_to)
            if await run.host.store.write_record(record, run.revision):
                run.let_go(acknowledge=True)
            else:
                run.drop(LOST)
            return
    run.advance()


async def _schedule(run: Run, steps: list[Step]) -> bool:
    """Have the server fire the timers. One written again after it fired fires again, and its slot refuses that."""
    for at in range(0, len(steps), SCHEDULES_AT_ONCE):
        acks = await asyncio.gather(*(_write_schedule(run, step) for step in steps[at : at + SCHEDULES_AT_ONCE]))
        run.timers_scheduled = True
        for ack in acks:
            if ack.error is not None:
                logger.error("run %s: its timer cannot be stored: %s", run.id, ack.error.description)
                run.idle_since = asyncio.get_running_loop().time() + SCHEDULE_AGAIN
                return False
    return True


async def _write_schedule(run: Run, step: Step) -> PubAck:
    names = run.host.names
    headers = header_block.encode(
        [
            ("Nats-Schedule", f"@at {rfc3339_nanos(step.due_ns)}"),
            ("Nats-Schedule-Target", names.fired(run.id, run.incarnation, step.number)),
            ("Mesh-Slot", run.effects.slot(Flight(step, step.attempt))),
            ("Mesh-Workflow", run.workflow.name),
            ("Mesh-Partition", str(run.command.partition)),
        ]
    )
    return await run.host.store.publish(names.schedule(run.id, run.incarnation, step.number), b"", headers)


async def hand_over(run: Run) -> None:
    """Give the run to another processor, in order: it does not count as lost."""
    async with run.operation():
        if run.dropped or run.reclaiming or run.final is not None:
            return
        record = replace(new_record(run, Status.RUNNING), owner="", strikes=0)
        if not await run.host.store.write_record(record, run.revision):
            run.drop(LOST)
            return
        run.let_go(acknowledge=False)
        try:
            run.host.store.hand_back(run.command.ack)
        except NotConnectedError:
            logger.info("run %s: its command comes again after its ack_wait", run.id)


# --- ending


class Ending:
    """Writes final records. `ended(run, record)` is told when one is stored and its command acknowledged."""

    def __init__(self, run: Run, outcome: Outcome, entries: list[Entry] | None = None) -> None:
        self._run = run
        self._record = final_record(run, outcome, entries)

    def begin(self) -> None:
        """Write it; the acknowledgement ends the run."""
        run, record = self._run, self._record
        data = record.to_bytes()
        now = asyncio.get_running_loop().time()
        run.final = Final(record, data, now + FINAL_TIMEOUT)
        if not run.host.may_act():
            return
        headers = record_headers(record, run.revision, secrets.token_urlsafe(12))
        try:
            run.host.store.put_record(data, headers, run.id, self._on_written)
        except NotConnectedError:  # asked about after FINAL_TIMEOUT
            return

    def _on_written(self, ack: PubAck) -> None:
        run = self._run
        if run.dropped or run.final is None:
            return
        if ack.error is None and not ack.duplicate:
            end(run)
        else:
            run.host.settle(run)


def end(run: Run) -> None:
    """The final record is stored: the command is needless."""
    final = run.final
    assert final is not None
    run.let_go(acknowledge=True)
    run.host.finished(run, final.record)


async def settle(run: Run) -> None:
    """What became of a final write is not known: find out, or write it again."""
    async with run.operation():
        final = run.final
        if final is None or run.dropped:
            return
        stored = await run.host.store.read_record(run.id)
        if stored.data == final.data:
            end(run)
            return
        if run.contested and not final.record.contested:
            final.record.contested = True  # a copy of the write that was under way is refused by its revision
            final.data = final.record.to_bytes()
        if stored.revision == run.revision and await run.host.store.write_record(final.record, run.revision):
            end(run)
        else:
            run.drop(LOST)


def status_of(outcome: Outcome) -> Status:
    """The status of a run that ended so."""
    if outcome.cancelled:
        return Status.CANCELLED
    return Status.COMPLETED if outcome.failure is None else Status.FAILED


async def end_mismatched(run: Run, outcome: Outcome) -> None:
    """End a run whose code no longer fits its journal: the record tells what is recorded, so that it can be mended."""
    async with run.operation():
        if run.dropped or run.final is not None:
            return
        read = await run.host.store.read_journal(run.shard, [run.slots], run.known_seq)
        if not run.dropped:
            Ending(run, outcome, read.entries).begin()


def final_record(run: Run, outcome: Outcome, entries: list[Entry] | None = None) -> Record:
    """The last word about a run, with its journal: its steps, or what `entries` tell where the two do not fit."""
    steps = run.replay.steps if run.replay is not None else []
    record = new_record(run, status_of(outcome))
    record.completed_ns = record.updated_ns
    record.error = outcome.failure
    record.result, record.result_type = outcome.result
    record.waiting_on = ()
    record.owner = ""
    record.end_seq = run.replay.fed_sequence if run.replay is not None else 0
    record.journal = journal.journal_entries(steps) if entries is None else recorded_steps(steps, entries)
    try:
        return fit_record(record, run.host.connection.max_payload - HEADER_ROOM)
    except PayloadTooLargeError as error:
        if outcome.failure is not None:
            raise
        return final_record(run, Outcome(failure=describe_exception(error)), entries)


def rfc3339_nanos(ns: int) -> str:
    """A time as `Nats-Schedule` takes it."""
    moment = datetime.fromtimestamp(ns // NANOS, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ns % NANOS:09d}Z"
