"""A run: one processor's holding of an invocation, from its command to the final record.

The replay (`engine.replay`) says what the code wants; this room does it and feeds back what is stored. Everything between two
waits is plain callbacks on the event loop; what needs a claim, a repair or a decision about another owner is a coroutine of the
take-up (`engine.takeup`). Rules in capitals (H10, H15 …) are those of docs/design.md's protocol.

Feeding (H10): an entry is fed from its republished copy only if it fills the only slot that anybody can fill and the run is
uncontested; otherwise from a read that says up to where it is complete, lowest sequence first.
"""

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass
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
from engine.model import Entry, Failure, Invocation, Kind, Mark, Step
from engine.names import Names
from engine.records import Record, failure_to_bytes
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
LAGGING_PAUSE = 0.05
"""Seconds until a replica that lags behind what we know to be stored is asked again."""
AHEAD = 16
"""Steps beyond the present one that a contested run looks at: another owner may have come so far."""


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

    async def lease(self) -> int:
        """Wait until this processor may publish; the number of the lease."""

    def is_lease(self, number: int) -> bool:
        """Whether that lease still holds: nobody else can have been given our commands since it began."""

    def spawn(self, coroutine: Coroutine[Any, Any, None], run: "Run") -> None:
        """Run a coroutine for a run; what it raises drops the run."""

    def claim(self, run: "Run") -> None:
        """Write the first record of a run that lasts."""

    def suspend(self, run: "Run") -> None:
        """Put a run away that waits for timers alone."""

    def hand_over(self, run: "Run") -> None:
        """Give a run to another processor."""

    def finish(self, run: "Run", outcome: Outcome) -> None:
        """Write the final record of a run whose code has ended."""

    def settle(self, run: "Run") -> None:
        """Find out what became of a final record that is not acknowledged."""

    def released(self, run: "Run") -> None:
        """The run is out of memory: its slot is free."""

    def finished(self, run: "Run", record: Record) -> None:
        """The final record is stored and the command acknowledged."""


@dataclass(slots=True)
class Final:
    """A final record on its way: as written, and when to ask what became of it."""

    record: Record
    data: bytes
    look_at: float


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
        self.dropped = False
        self.invocation: Invocation | None = None
        self.replay: Replay | None = None
        self.flights: dict[int, Flight] = {}
        self.fillable: set[int] = set()
        self.todo: list[Step] = []
        self.began = asyncio.get_running_loop().time()
        self.idle_since = self.began
        self.timers_scheduled = False
        self._copy_mark = len(host.names.prefix) + 3
        self._slots_end = len(self.slots) + 1
        self._sid = host.connection.subscribe(host.names.slot_copies(self.id, self.incarnation), self._on_slot)
        self.final: Final | None = None
        self.reclaiming = False
        self._operating = False
        self._lock: asyncio.Lock | None = None
        self._reading = 0
        self._read_wanted = 0
        self._complete_to = 0

    @property
    def held(self) -> bool:
        """Whether nothing may be fed or done: not taken up yet, contested, being recorded, or ended."""
        return self._operating or self.reclaiming or self.final is not None or self.invocation is None

    @property
    def is_recorded(self) -> bool:
        """Whether the record says, or is about to say, that it is ours."""
        return self._operating or self.record is not None

    @contextlib.asynccontextmanager
    async def operation(self) -> AsyncIterator[None]:
        """One coroutine at a time reads or writes the run's record; nothing is fed or done meanwhile."""
        if self._lock is None:
            self._lock = asyncio.Lock()
        async with self._lock:
            self._operating = True
            try:
                yield
            finally:
                self._operating = False

    # --- beginning -----------------------------------------------------------------------------------------------------------

    def launch(self, invocation: Invocation, read: Read, timers_scheduled: bool = False) -> None:
        """Run the code over what its journal has, then go on live."""
        self.invocation = invocation
        self.timers_scheduled = timers_scheduled
        self.replay_from(read)

    def replay_from(self, read: Read) -> None:
        """Build the frames anew from a complete read."""
        assert self.invocation is not None
        self._complete_to = max(self._complete_to, read.up_to)
        if self.replay is not None:
            self.replay.put_away()
        ordered = sorted(read.entries, key=lambda entry: entry.sequence)
        seen = self.record.seen_seq if self.record is not None else 0
        replay = self.replay = Replay(self.invocation, self.workflow, self.attempts)
        replay.is_replaying = bool(ordered)
        self.todo = []
        with self._running_code():
            replay.start()
            for entry in ordered:
                replay.is_replaying = entry.sequence <= seen
                replay.feed(entry)
            replay.is_replaying = False
        self.advance()

    @contextlib.contextmanager
    def _running_code(self) -> Iterator[None]:
        """Around everything that runs workflow code. A fault of ours in it lets the run go: it comes again."""
        self.host.keepalive.enter(self.id)
        try:
            yield
        except Exception:  # the callers are callbacks of the read loop, which would only count it
            logger.exception("run %s: it is let go and comes again", self.id)
            self.drop("an error of the engine")
        finally:
            self.host.keepalive.leave()

    # --- inputs --------------------------------------------------------------------------------------------------------------

    def _on_slot(self, subject: str, _reply: str, data: bytes, block: bytes) -> None:
        if self.dropped:
            return
        if subject[self._copy_mark] == "w":
            self._on_direct_copy(subject, data, block)
            return
        entry = journal.read_entry(subject, data, block)
        if entry is None:
            return
        self.host.clock.observe(entry.time_ns)
        if self.held or self.contested or self._reading or self.replay is None or not self._fills_only_slot(entry.step):
            self.want_read(entry.sequence)
        else:
            self._feed([entry])

    def _on_direct_copy(self, subject: str, data: bytes, block: bytes) -> None:
        step, _, rest = subject[self._slots_end :].partition(".")
        flight = self.flights.get(int(step))
        if flight is None or flight.is_writing or int(rest.partition(".")[0]) != flight.attempt:
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
        if self.timers_scheduled and any(s.kind == Kind.SLEEP and s.number != number for s in replay.open_steps()):
            return False
        return not any(other != number and other < len(steps) and steps[other].is_open for other in self.fillable)

    def want_read(self, sequence: int = 0) -> None:
        """Feed everything that is stored, at least up to this sequence."""
        self._read_wanted = max(self._read_wanted, sequence)
        if self._reading or self.held or self.dropped:
            return
        try:
            self._reading = self.host.store.fetch_journal(self.shard, self._filters(), self._on_read)
        except NotConnectedError:
            return
        asyncio.get_running_loop().call_later(REPAIR_AFTER, self._read_lost, self._reading)

    def _filters(self) -> list[str]:
        """What to read: the slots that the code waits for; of a contested run also those another owner may have come to."""
        replay = self.replay
        if replay is None:
            return [f"{self.slots}.>"]
        numbers = [step.number for step in replay.open_steps()]
        if self.contested:
            numbers += range(len(replay.steps), len(replay.steps) + AHEAD)
        if len(numbers) > MAX_FILTERS:
            return [f"{self.slots}.>"]
        return [f"{self.slots}.{number}.>" for number in numbers]

    def _read_lost(self, token: int) -> None:
        if self._reading == token and not self.dropped:
            self.host.connection.forget(token)
            self._reading = 0
            self.want_read()

    def _on_read(self, read: Read | None) -> None:
        self._reading = 0
        if self.dropped or self.held:
            return
        if read is None:  # too much for one answer
            self.host.spawn(self.read_patiently(), self)
        else:
            self.absorb(read)

    def absorb(self, read: Read) -> None:
        """Feed what a read brought; read again where it did not reach what is known to be stored."""
        replay = self.replay
        if replay is None:
            self.replay_from(read)
            return
        fed = replay.fed_sequence
        fresh = [entry for entry in read.entries if replay.is_unfed(entry)]
        if any(entry.sequence <= fed for entry in fresh):  # another owner's entries came in between:
            self.contested = True  # only a replay has the right order
            self.host.spawn(self.read_patiently(), self)
            return
        self._complete_to = max(self._complete_to, read.up_to)
        self._feed(fresh)
        if not self.dropped and self._read_wanted > self._complete_to:
            asyncio.get_running_loop().call_later(0.0 if fresh else LAGGING_PAUSE, self.want_read)

    async def read_patiently(self) -> None:
        """Replay from a complete read, however long it takes."""
        async with self.operation():
            if self.dropped or self.final is not None:
                return
            read = await self.host.store.read_journal(self.shard, self.slots, self._read_wanted)
        if not self.dropped and not self.held:
            self.replay_from(read)

    def _feed(self, entries: list[Entry]) -> None:
        replay = self.replay
        if replay is None or not entries:
            return
        with self._running_code():
            for entry in sorted(entries, key=lambda entry: entry.sequence):
                replay.feed(entry)
        self.advance()

    # --- outputs ---------------------------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Do what the code wants after it was fed."""
        try:
            self._advance()
        except Exception:  # the callers are callbacks of the read loop, which would only count it
            logger.exception("run %s: it is let go and comes again", self.id)
            self.drop("an error of the engine")

    def _advance(self) -> None:
        replay = self.replay
        if replay is None or self.held or self.dropped:
            return
        self._settle_flights(replay)
        if replay.outcome is not None:
            self.finish(replay.outcome)
            return
        self.todo += replay.take_effects()
        if self.host.draining and not self.is_busy():
            self.host.hand_over(self)
            return
        self._do_todo()
        self.idle_since = self._time()
        if self._read_wanted > max(replay.fed_sequence, self._complete_to):
            self.want_read()  # something came while nothing could be fed
        elif self.host.suspend_after == 0:
            self._rest()

    def _settle_flights(self, replay: Replay) -> None:
        """End what belongs to steps that nobody waits for, or to an attempt that is over."""
        for number, flight in list(self.flights.items()):
            step = replay.steps[number] if number < len(replay.steps) else None
            if step is None or not step.is_open or step.attempt != flight.attempt:
                self._end_flight(number, flight)
            else:
                step.undelivered = flight.undelivered
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
            self.host.connection.publish(call.subject, call.request, reply=self.slot(flight), headers=headers)
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
        step.undelivered = flight.undelivered
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

    def slot(self, flight: Flight) -> str:
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
            self.host.store.put(self.slot(flight), data, headers, functools.partial(self._on_written, flight))
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
        if self.final is not None:
            if now >= self.final.look_at:
                self.final.look_at = now + REPAIR_AFTER * 5
                self.host.settle(self)
        elif not self.held:
            self._tick_live(now)

    def _tick_live(self, now: float) -> None:
        if self.host.draining and not self.is_busy():
            self.host.hand_over(self)
            return
        if self.record is None and now - self.began > CLAIM_AFTER:
            self.host.claim(self)
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
                self.host.suspend(self)
        elif self.host.suspend_after == 0:
            replay.put_away()
            self.replay = None

    # --- what operations on the record need (engine.ownership, engine.takeup) --------------------------------------------------------

    def contest(self) -> bool:
        """Ownership is in doubt: nothing is fed or done until it is claimed again. Whether the caller has to see to that."""
        if self.dropped or self.reclaiming:
            return False
        self.contested = True
        if self.final is not None:  # the final write's own outcome tells whose run it is
            return False
        self.reclaiming = True
        return True

    def relaunch(self, read: Read) -> None:
        """Go on after a claim that followed silence: replay, send again what has no answer, store again what was not stored."""
        self.reclaiming = False
        for number, flight in list(self.flights.items()):
            if flight.body is None and not flight.is_writing:
                self._end_flight(number, flight)
        self._reading = 0
        self.replay_from(read)
        for flight in list(self.flights.values()):
            if flight.is_writing:
                self._put(flight)

    def resume(self) -> None:
        """Go on after an operation: what came meanwhile is read, what was put off is done."""
        if self.dropped or self.held:
            return
        self._do_todo()
        for flight in list(self.flights.values()):
            if flight.is_writing:
                self._put(flight)
            else:
                flight.wake()
        self.want_read()

    def finish(self, outcome: Outcome) -> None:
        """The code has ended: everything under way is dropped, the final record written."""
        for flight in self.flights.values():
            flight.cancel()
        self.host.finish(self, outcome)

    def drop(self, reason: str) -> None:
        """Fall silent: it is somebody else's. No ack, nak or in-progress ack for it any more (H8)."""
        if not self.dropped:
            logger.info("run %s dropped: %s", self.id, reason)
            self.let_go(acknowledge=False)

    def let_go(self, *, acknowledge: bool) -> None:
        """Leave memory. `acknowledge` only after the write that made the command needless, or on a monotone fact."""
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

    def _end_flight(self, number: int, flight: Flight) -> None:
        flight.cancel()
        del self.flights[number]
        self.fillable.discard(number)

    def _time(self) -> float:
        return asyncio.get_running_loop().time()


def _is_retried(step: Step, failure: Failure) -> bool:
    call = step.call
    return call is None or call.policy.retries_code(grpc.StatusCode[failure.code])
