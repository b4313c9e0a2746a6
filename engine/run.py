"""A run: one processor's holding of an invocation, from its command to the final record.

The replay (`engine.replay`) says what the code wants; this room does it and feeds back what is stored. Everything between two
waits is plain callbacks on the event loop; what needs a claim, a repair or a decision about another owner is a coroutine of the
take-up (`engine.takeup`). Rules in capitals (H10, H15 …) are those of docs/design.md's protocol.

Feeding (H10): an entry is fed from its republished copy only if it fills the only slot that anybody can fill and the run is
uncontested; otherwise from a read that says up to where it is complete, lowest sequence first.
"""

import asyncio
import functools
import logging
import secrets
from collections.abc import Iterable
from typing import Any, Protocol

import grpc

from engine import journal, names, values
from engine.absence import Absences
from engine.clock import NANOS, ServerClock
from engine.delivered import DeliveredCommand
from engine.definition import Workflow
from engine.errors import EncodeError, PayloadTooLargeError
from engine.flight import Flight, request_headers
from engine.keepalive import Keepalive
from engine.model import Entry, Failure, Invocation, Kind, Mark, Status, Step
from engine.names import Names
from engine.records import Record, Wait, failure_to_bytes, fit_record, input_digest, record_headers
from engine.replay import Outcome, Replay, describe_exception, is_last_attempt
from engine.store import MAX_FILTERS, REFUSED, PubAck, Read, Store
from mesh import headers as header_block
from mesh.connection import Connection
from mesh.errors import NotConnectedError

logger = logging.getLogger("engine.run")

CLAIM_AFTER = 0.7
"""Seconds a run may go on without a record; a user sees `running` after a second at the latest (E-A4)."""
REPAIR_AFTER = 1.0
"""Seconds after which what should have been stored is looked for, and stored by us where it was answered."""
MAX_READ_PAUSE = 30.0
FINAL_WRITE_TIMEOUT = 5.0


class Host(Protocol):
    """What a run needs of its processor."""

    connection: Connection
    store: Store
    names: Names
    keepalive: Keepalive
    clock: ServerClock
    absences: Absences
    owner: str
    suspend_after: float
    max_attempts: int
    draining: bool

    def may_act(self) -> bool:
        """Whether this processor may publish for its runs now; where not, all of them are contested by this call."""

    def run_body(self, step: Step) -> "asyncio.Future[Any]":
        """Start the function of a `ctx.run`."""

    def spawn(self, coroutine: Any, run: "Run") -> None:
        """Run a coroutine for a run; what it raises drops the run."""

    def released(self, run: "Run") -> None:
        """The run is out of memory: its slot is free."""

    def finished(self, run: "Run", record: Record) -> None:
        """The run's final record is stored and its command acknowledged."""


class Run:
    """See the module. `held`: nothing is fed or done until a claim or a read under way has ended."""

    def __init__(self, host: Host, command: DeliveredCommand, workflow: Workflow[Any, Any]) -> None:
        self.host = host
        self.command = command
        self.workflow = workflow
        self.id = command.invocation
        self.incarnation = command.incarnation
        self.shard = host.names.shard(self.id)
        self.slots = host.names.slots(self.id, self.incarnation)
        self.record: Record | None = None
        self.revision = 0
        self.number = 1
        self.attempts = 1
        self.contested = False
        self.held = True
        self.dropped = False
        self.invocation: Invocation | None = None
        self.replay: Replay | None = None
        self.flights: dict[int, Flight] = {}
        self.fillable: set[int] = set()
        self.todo: list[Step] = []
        self.began = asyncio.get_running_loop().time()
        self.idle_since = self.began
        self._timers_scheduled = False
        self._copy_mark = len(host.names.prefix) + 3
        self._sid = host.connection.subscribe(host.names.slot_copies(self.id, self.incarnation), self._on_slot)
        self._reclaiming = False
        self._reading = 0
        self._read_wanted = 0
        self._final: tuple[Record, bytes, float] | None = None

    # --- beginning -----------------------------------------------------------------------------------------------------------

    def launch(self, invocation: Invocation, entries: Iterable[Entry], timers_scheduled: bool = False) -> None:
        """Run the code over what its journal has, then go on live."""
        self.invocation = invocation
        self._timers_scheduled = timers_scheduled
        self.held = False
        self._replay_from(entries)

    def _replay_from(self, entries: Iterable[Entry]) -> None:
        """Build the frames anew from a complete read."""
        assert self.invocation is not None
        if self.replay is not None:
            self.replay.put_away()
        ordered = sorted(entries, key=lambda entry: entry.sequence)
        seen = self.record.seen_seq if self.record is not None else 0
        replay = self.replay = Replay(self.invocation, self.workflow, self.attempts)
        replay.is_replaying = bool(ordered)
        self.todo = []
        self.host.keepalive.enter(self.id)
        try:
            replay.start()
            for entry in ordered:
                replay.is_replaying = entry.sequence <= seen
                replay.feed(entry)
        finally:
            replay.is_replaying = False
            self.host.keepalive.leave()
        self._advance()

    # --- inputs --------------------------------------------------------------------------------------------------------------

    def _on_slot(self, subject: str, _reply: str, data: bytes, block: bytes) -> None:
        if self.dropped:
            return
        if subject[self._copy_mark] == "w":
            self._on_direct_copy(subject, data, block)
            return
        entry = journal.read_entry(
            subject, int(journal.field(block, b"Nats-Sequence")),
            journal.parse_time(journal.field(block, b"Nats-Time-Stamp")), data, block,
        )
        if entry is None:
            return
        self.host.clock.observe(entry.time_ns)
        if self.held or self.contested or self._reading or self.replay is None or not self._fills_only_slot(entry.step):
            self.want_read(entry.sequence)
        else:
            self._feed([entry])

    def _on_direct_copy(self, subject: str, data: bytes, block: bytes) -> None:
        slot = names.parse_slot(subject)
        flight = self.flights.get(slot.step) if slot is not None else None
        if slot is None or flight is None or flight.attempt != slot.attempt or flight.is_writing:
            return
        if block and header_block.is_no_responders(block):
            self._undelivered(flight)
        elif flight.answer is None:
            flight.answer = (data, block)
            flight.look_at = min(flight.look_at, self._time() + REPAIR_AFTER)

    def _fills_only_slot(self, number: int) -> bool:
        """Whether nobody can have filled another slot that the code waits for."""
        replay = self.replay
        if replay is None:
            return False
        steps = replay.steps
        if self._timers_scheduled and any(s.kind == Kind.SLEEP and s.number != number for s in replay.open_steps()):
            return False
        return not any(other != number and other < len(steps) and steps[other].is_open for other in self.fillable)

    def want_read(self, sequence: int = 0) -> None:
        """Feed everything that is stored, at least up to this sequence."""
        self._read_wanted = max(self._read_wanted, sequence)
        if self._reading or self.held or self.dropped:
            return
        replay = self.replay
        filters = [f"{self.slots}.>"]
        if replay is not None and not self.contested:
            open_steps = replay.open_steps()
            if len(open_steps) <= MAX_FILTERS:
                filters = [f"{self.slots}.{step.number}.>" for step in open_steps]
        whole = len(filters) == 1 and filters[0].endswith(f"{self.incarnation}.>")
        try:
            self._reading = self.host.store.fetch_journal(
                self.shard, filters, functools.partial(self._on_read, whole)
            )
        except NotConnectedError:
            return
        asyncio.get_running_loop().call_later(REPAIR_AFTER, self._read_lost, self._reading)

    def _read_lost(self, token: int) -> None:
        if self._reading == token and not self.dropped:
            self.host.connection.forget(token)
            self._reading = 0
            self.want_read()

    def _on_read(self, whole: bool, read: Read | None) -> None:
        self._reading = 0
        if self.dropped or self.held:
            return
        if read is None or read.up_to < self._read_wanted:  # too much for one answer, or a replica that lags
            self.host.spawn(self._read_patiently(), self)
            return
        if self.replay is None:
            if whole:
                self._replay_from(read.entries)
            return
        fed = self.replay.fed_sequence
        missed = [e for e in read.entries if e.sequence <= fed and self.replay.is_unfed(e)]
        if missed:  # another owner's entries came in between: only a replay has the right order
            self.contested = True
            self.host.spawn(self._read_patiently(), self)
            return
        self._feed([entry for entry in read.entries if entry.sequence > fed])

    async def _read_patiently(self) -> None:
        """Replay from a complete read, however long it takes."""
        if self.held:
            return
        self.held = True
        read = await self.host.store.read_journal(self.shard, self.slots, self._read_wanted)
        self.held = False
        if not self.dropped:
            self._replay_from(read.entries)

    def _feed(self, entries: list[Entry]) -> None:
        replay = self.replay
        assert replay is not None
        if entries:
            self.host.keepalive.enter(self.id)
            try:
                for entry in sorted(entries, key=lambda entry: entry.sequence):
                    replay.feed(entry)
            finally:
                self.host.keepalive.leave()
        self._advance()

    # --- outputs ---------------------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Do what the code wants after it was fed."""
        replay = self.replay
        if replay is None or self.held or self.dropped:
            return
        self._settle_flights(replay)
        if replay.outcome is not None:
            self.finish(replay.outcome)
            return
        self.todo += replay.take_effects()
        if self.host.draining and not self.is_busy():
            self.host.spawn(self.hand_over(), self)
            return
        self._do_todo()
        self.idle_since = self._time()
        if self.host.suspend_after == 0:
            self._rest()

    def _settle_flights(self, replay: Replay) -> None:
        for number in list(self.flights):
            flight = self.flights[number]
            step = replay.steps[number] if number < len(replay.steps) else None
            if step is None or not step.is_open:
                flight.cancel()
                del self.flights[number]
                self.fillable.discard(number)
            elif step.attempt != flight.attempt:
                flight.cancel()
                del self.flights[number]
                self.fillable.discard(number)
            else:
                flight.step = step

    def _do_todo(self) -> None:
        todo, self.todo = self.todo, []
        for index, step in enumerate(todo):
            if self.held or self.dropped:
                self.todo += todo[index:]
                return
            if step.is_open and step.number not in self.flights:
                self._perform(step)

    def _perform(self, step: Step) -> None:
        flight = self.flights[step.number] = Flight(step, step.attempt)
        if step.giving_up is not None:
            self._write(flight, Mark.GAVE_UP, failure_to_bytes(step.giving_up))
        elif step.kind == Kind.SLEEP:
            self._arm(flight)
        else:
            delay = flight.delay(self.host.clock.now_ns())
            act = self._send if step.kind == Kind.CALL else self._start_body
            if delay > 0:
                flight.after(delay, act, flight)
            else:
                act(flight)

    def _send(self, flight: Flight) -> None:
        """Send one attempt of a call: its reply subject is the slot."""
        if self.dropped or self.held or not self.host.may_act():
            return
        step, call = flight.step, flight.step.call
        assert call is not None
        headers = request_headers(self, step, call)
        if len(headers) + len(call.request) > self.host.connection.max_payload:
            error = PayloadTooLargeError(
                f"the request of {step.name}", len(headers) + len(call.request), self.host.connection.max_payload
            )
            code = grpc.StatusCode.RESOURCE_EXHAUSTED.name
            self._write(flight, Mark.GAVE_UP, failure_to_bytes(Failure(code, str(error), code)))
            return
        try:
            self.host.connection.publish(call.subject, call.request, reply=self._slot(flight), headers=headers)
        except NotConnectedError:  # the reconnect contests this run, and it is sent then
            return
        self.fillable.add(step.number)
        flight.sent(self._time(), call.timeout, self._attempt_timed_out)

    def _attempt_timed_out(self, flight: Flight) -> None:
        if self.dropped or self.held or flight.is_writing or self.flights.get(flight.step.number) is not flight:
            return
        call = flight.step.call
        assert call is not None
        text = f"no answer from {call.subject} within {call.timeout:g} s"
        failure = Failure("DEADLINE_EXCEEDED", text, "DEADLINE_EXCEEDED")
        self.close_attempt(flight, Mark.TIMEOUT, failure)

    def close_attempt(self, flight: Flight, mark: str, failure: Failure) -> None:
        """Fill a failed attempt's slot before the next one goes out (H15); as the last word where there is no next one."""
        if is_last_attempt(flight.step, self.host.clock.now_ns()) or not _is_retried(flight.step, failure):
            mark = Mark.GAVE_UP
        self._write(flight, mark, failure_to_bytes(failure))

    def _undelivered(self, flight: Flight) -> None:
        """Nobody listens: the attempt was not received. Only where attempts are limited it is counted, durably."""
        step, call = flight.step, flight.step.call
        if call is None:
            return
        flight.unsent()
        self.fillable.discard(step.number)
        failure = Failure("UNAVAILABLE", f"no service listens on {call.subject}", "UNAVAILABLE")
        flight.reason = f"UNAVAILABLE: {failure.message}"
        limited = call.policy.max_attempts is not None or call.policy.total_timeout is not None
        if limited or not _is_retried(step, failure):
            self.close_attempt(flight, Mark.UNAVAILABLE, failure)
        else:
            self.host.absences.wait(call.subject, self, flight)

    def resend(self, flight: Flight) -> bool:
        """Send an undelivered attempt again, if it still matters; whether it was sent."""
        if self.dropped or self.held or self.flights.get(flight.step.number) is not flight or not flight.step.is_open:
            return False
        self._send(flight)
        return True

    # --- timers and bodies -------------------------------------------------------------------------------------------------------

    def _arm(self, flight: Flight) -> None:
        """A timer in memory; never early by the server's clock."""
        remaining = (flight.step.due_ns - self.host.clock.now_ns()) / NANOS
        if remaining > 0:
            flight.after(min(remaining, 86_400.0), self._arm, flight)
        elif not self.dropped and not self.held:
            self._write(flight, Mark.FIRED, b"")

    def _start_body(self, flight: Flight) -> None:
        if self.dropped or self.held or not self.host.may_act():
            return
        flight.body = self.host.run_body(flight.step)
        flight.body.add_done_callback(functools.partial(self._body_done, flight))

    def _body_done(self, flight: Flight, future: "asyncio.Future[Any]") -> None:
        number = flight.step.number
        if self.dropped or future.cancelled() or self.flights.get(number) is not flight:
            return
        flight.body = None
        error = future.exception()
        if error is None:
            try:
                payload = values.encode(future.result(), f"the value of ctx.run({flight.step.name!r})")
            except EncodeError as problem:
                self._fail(describe_exception(problem))
                return
            self._write(flight, Mark.VALUE, payload.data, payload.type)
            return
        failure = describe_exception(error)
        policy = flight.step.body.policy if flight.step.body is not None else None
        bases = [cls.__qualname__ for cls in type(error).__mro__]
        final = policy is None or "TerminalError" in bases or not policy.retries_exception(bases)
        last = final or is_last_attempt(flight.step, self.host.clock.now_ns())
        self._write(flight, Mark.GAVE_UP if last else Mark.ERROR, failure_to_bytes(failure))

    def _fail(self, failure: Failure) -> None:
        """End the run because of something that has no place in its journal."""
        if self.replay is not None:
            self.replay.outcome = Outcome(failure=failure)
        self.finish(Outcome(failure=failure))

    # --- slots that the owner writes ----------------------------------------------------------------------------------------------

    def _slot(self, flight: Flight) -> str:
        step = flight.step
        return names.slot_subject(
            self.slots, step.number, flight.attempt, step.kind, step.digest, names.encode_name(step.name)
        )

    def _write(self, flight: Flight, mark: str, data: bytes, content_type: str = "") -> None:
        """Fill the flight's slot. Somebody else may have been first: then what stands there counts."""
        headers = journal.entry_headers(mark, content_type)
        size, limit = len(headers) + len(data), self.host.connection.max_payload
        if size > limit:
            what = f"the value of step {flight.step.number} ({flight.step.title})"
            self._fail(describe_exception(PayloadTooLargeError(what, size, limit)))
            return
        flight.writes(data, headers, self._time())
        self.fillable.add(flight.step.number)
        self._put(flight)

    def _put(self, flight: Flight) -> None:
        if self.dropped or self.held or flight.answer is None or not self.host.may_act():
            return
        data, headers = flight.answer
        try:
            self.host.store.put(self._slot(flight), data, headers, functools.partial(self._on_written, flight))
        except NotConnectedError:
            return

    def _on_written(self, flight: Flight, ack: PubAck) -> None:
        if self.dropped or ack.error is None:  # stored: its republished copy brings it, or the next look
            return
        if ack.error.err_code == REFUSED:
            self.want_read()
        else:
            logger.warning("run %s: step %d is not stored yet: %s", self.id, flight.step.number, ack.error.description)

    # --- looking after it ----------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Called a few times a second: claims, repairs, suspends."""
        if self.dropped:
            return
        if self._final is not None:
            self._look_after_final(now)
            return
        if self.held:
            return
        if self.record is None and now - self.began > CLAIM_AFTER:
            self.host.spawn(self.claim_quietly(), self)
            return
        for flight in list(self.flights.values()):
            if flight.look_at <= now:
                self._look_after(flight, now)
        if self.replay is not None and now - self.idle_since >= self.host.suspend_after:
            self._rest()

    def _look_after(self, flight: Flight, now: float) -> None:
        """Something should be stored by now: repair what was answered and not stored, look for what was stored and not seen."""
        flight.looked(now, MAX_READ_PAUSE)
        if flight.answer is not None and not self.held:
            data, block = flight.answer
            if not flight.is_writing:
                flight.answer = (data, journal.safe_headers(block))
            self._put(flight)
        self.want_read()

    def is_busy(self) -> bool:
        """Whether a step of this run is being executed or stored for us."""
        return any(f.body is not None or f.is_writing or f.is_sent for f in self.flights.values())

    def _rest(self) -> None:
        """Leave memory where the code only waits: wholly (timers), or with its frames only (`--suspend-after 0`)."""
        replay = self.replay
        if replay is None or self.held or self._reading or replay.outcome is not None:
            return
        if any(f.body is not None or f.is_writing for f in self.flights.values()):
            return
        open_steps = replay.open_steps()
        if all(step.kind == Kind.SLEEP for step in open_steps):
            due = min(step.due_ns for step in open_steps)
            if self.host.suspend_after == 0 or due - self.host.clock.now_ns() > NANOS:
                self.host.spawn(self.suspend(), self)
        elif self.host.suspend_after == 0:
            replay.put_away()
            self.replay = None

    # --- records --------------------------------------------------------------------------------------------------------------------

    def new_record(self, status: Status) -> Record:
        """This run's record as it stands, with another status."""
        invocation = self.invocation
        assert invocation is not None
        previous = self.record
        now = self.host.clock.now_ns()
        return Record(
            invocation_id=self.id,
            workflow=self.workflow.name,
            status=status.value,
            input=invocation.input,
            input_type=invocation.input_type,
            attempts=self.attempts,
            created_ns=invocation.created_ns,
            started_ns=previous.started_ns if previous is not None and previous.started_ns else now,
            updated_ns=now,
            partition_key=invocation.partition_key,
            parent_id=invocation.parent_id,
            incarnation=self.incarnation,
            run=self.number,
            owner=self.host.owner,
            contested=self.contested or (previous is not None and previous.contested),
            strikes=previous.strikes if previous is not None else 0,
            claim_seq=previous.claim_seq if previous is not None else 0,
            seen_seq=previous.seen_seq if previous is not None else 0,
            tail_seq=previous.tail_seq if previous is not None else 0,
            command_seq=self.command.sequence,
            input_digest=input_digest(
                self.workflow.name, invocation.partition_key, invocation.input_type, invocation.input
            ),
            waiting_on=self.waits(),
        )

    def waits(self) -> list[Wait]:
        """What the code waits for, as users see it."""
        if self.replay is None:
            steps = [flight.step for flight in self.flights.values()]
        else:
            steps = self.replay.open_steps()
        return [
            Wait(
                step.kind, step.name, step.issued_ns, step.due_ns,
                self.flights[step.number].reason if step.number in self.flights else "", step.number,
            )
            for step in steps[:100]
        ]

    async def claim_quietly(self) -> None:
        """The first record of a run that lasts: the same run number, so that everybody sees `running`."""
        self.held = True
        record = self.new_record(Status.RUNNING)
        revision = await self.host.store.write_record(record, self.revision)
        if not revision:
            self.drop("another processor has claimed it")
            return
        self.record, self.revision = record, revision
        self.resume()

    def contest(self) -> bool:
        """Ownership is in doubt: nothing is fed or done until it is claimed again. Whether the caller has to see to that."""
        if self.dropped or self._reclaiming:
            return False
        self.contested = self.held = True
        if self._final is not None:  # the final write's own outcome tells whose run it is
            return False
        self._reclaiming = True
        return True

    def relaunch(self, entries: Iterable[Entry]) -> None:
        """Go on after a claim that followed silence: replay, and send again what has no answer."""
        self._reclaiming = False
        for number, flight in list(self.flights.items()):
            if flight.body is None:
                flight.cancel()
                del self.flights[number]
                self.fillable.discard(number)
        self.held = False
        self._reading = 0
        self._replay_from(entries)

    def resume(self) -> None:
        """Go on after a claim: what came meanwhile is read, what was put off is done."""
        self.held = False
        if self.dropped:
            return
        self._do_todo()
        for flight in list(self.flights.values()):
            if not flight.is_sent and not flight.is_writing and flight.body is None:
                flight.wake()
        self.want_read()

    async def suspend(self) -> None:
        """Leave memory and every process: schedules stored, record `suspended`, command acknowledged."""
        replay = self.replay
        assert replay is not None
        self.held = True
        read = await self.host.store.read_journal(self.shard, self.slots, self._read_wanted)
        if any(entry.sequence > replay.fed_sequence for entry in read.entries):
            self.held = False
            self._on_read(True, read)
            return
        for step in replay.open_steps():
            if not await self._schedule(step):
                self.resume()
                return
        record = self.new_record(Status.SUSPENDED)
        record.seen_seq = read.up_to
        record.strikes = 0
        record.owner = ""
        record.due_ns = min(step.due_ns for step in replay.open_steps())
        revision = await self.host.store.write_record(record, self.revision)
        if not revision:
            self.drop("another processor has claimed it")
            return
        self._let_go(acknowledge=True)

    async def _schedule(self, step: Step) -> bool:
        """Have the server fire a timer. Writing one again that has fired is a second firing, which its slot refuses."""
        host = self.host
        flight = self.flights.get(step.number) or Flight(step, step.attempt)
        at = _rfc3339_nanos(step.due_ns)
        headers = header_block.encode([
            ("Nats-Schedule", f"@at {at}"),
            ("Nats-Schedule-Target", host.names.fired(self.id, self.incarnation, step.number)),
            ("Mesh-Slot", self._slot(flight)),
            ("Mesh-Workflow", self.workflow.name),
            ("Mesh-Partition", str(self.command.partition)),
        ])
        ack = await host.store.publish(host.names.schedule(self.id, self.incarnation, step.number), b"", headers)
        if ack.error is not None:
            logger.error("run %s: its timer cannot be stored: %s", self.id, ack.error.description)
            return False
        self._timers_scheduled = True
        return True

    async def hand_over(self) -> None:
        """Give the run to another processor, in order: it does not count as lost."""
        if self.held:
            return
        self.held = True
        record = self.new_record(Status.RUNNING)
        record.owner = ""
        record.strikes = 0
        revision = await self.host.store.write_record(record, self.revision)
        if not revision:
            self.drop("another processor has claimed it")
            return
        self.host.store.hand_back(self.command.ack)
        self._let_go(acknowledge=False)

    # --- ending ----------------------------------------------------------------------------------------------------------------------

    def finish(self, outcome: Outcome) -> None:
        """Write the final record by compare-and-set; acknowledge after it is stored, never before (H7)."""
        self.held = True
        for flight in self.flights.values():
            flight.cancel()
        record = self._final_record(outcome)
        self._write_final(record)

    def _final_record(self, outcome: Outcome) -> Record:
        record = self.new_record(Status.COMPLETED if outcome.failure is None else Status.FAILED)
        record.completed_ns = record.updated_ns
        record.error = outcome.failure
        record.result, record.result_type = outcome.result
        record.waiting_on = ()
        record.owner = ""
        record.end_seq = self.replay.fed_sequence if self.replay is not None else 0
        record.journal = journal.journal_entries(self.replay.steps) if self.replay is not None else ()
        budget = self.host.connection.max_payload - 1024
        try:
            return fit_record(record, budget)
        except PayloadTooLargeError as error:
            if outcome.failure is not None:
                raise
            return self._final_record(Outcome(failure=describe_exception(error)))

    def _write_final(self, record: Record) -> None:
        data = record.to_bytes()
        self._final = (record, data, self._time() + FINAL_WRITE_TIMEOUT)
        if not self.host.may_act():
            return
        headers = record_headers(record, self.revision, secrets.token_urlsafe(12))
        try:
            self.host.store.put_record(data, headers, self.id, self._on_final)
        except NotConnectedError:
            return

    def _on_final(self, ack: PubAck) -> None:
        if self.dropped or self._final is None:
            return
        if ack.error is None and not ack.duplicate:
            self._ended(self._final[0])
        else:
            self.host.spawn(self._settle_final(), self)

    def _look_after_final(self, now: float) -> None:
        if self._final is not None and now >= self._final[2]:
            self._final = (*self._final[:2], float("inf"))
            self.host.spawn(self._settle_final(), self)

    async def _settle_final(self) -> None:
        """The outcome of the final write is not known: find out, or write it again."""
        if self._final is None or self.dropped:
            return
        record, data, _ = self._final
        self._final = (record, data, float("inf"))
        stored = await self.host.store.read_record(self.id)
        if stored.data == data:
            self._ended(record)
        elif stored.revision != self.revision:
            self.drop("another processor has claimed it")
        elif await self.host.store.write_record(record, self.revision):
            self._ended(record)
        else:
            self.drop("another processor has claimed it")

    def _ended(self, record: Record) -> None:
        self._final = None
        self._let_go(acknowledge=True)
        self.host.finished(self, record)

    def drop(self, reason: str) -> None:
        """Fall silent: it is somebody else's. No ack, nak or in-progress ack for it any more (H8)."""
        if self.dropped:
            return
        logger.info("run %s dropped: %s", self.id, reason)
        self._let_go(acknowledge=False)

    def _let_go(self, *, acknowledge: bool) -> None:
        if self.dropped:
            return
        self.dropped = True
        host = self.host
        host.keepalive.release(self.command.ack)
        if acknowledge:
            try:
                host.store.acknowledge(self.command.ack)
            except NotConnectedError:  # it is delivered again, and found final or suspended
                logger.info("run %s: its command could not be acknowledged, and will come again", self.id)
        host.connection.unsubscribe(self._sid)
        for flight in self.flights.values():
            flight.cancel()
        self.flights.clear()
        if self.replay is not None:
            self.replay.put_away()
            self.replay = None
        host.released(self)

    def _time(self) -> float:
        return asyncio.get_running_loop().time()


def _is_retried(step: Step, failure: Failure) -> bool:
    call = step.call
    return call is None or call.policy.retries_code(grpc.StatusCode[failure.code])


def _rfc3339_nanos(ns: int) -> str:
    from datetime import UTC, datetime  # noqa: PLC0415

    moment = datetime.fromtimestamp(ns // NANOS, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ns % NANOS:09d}Z"
