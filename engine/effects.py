"""What the steps of a run do outside: requests sent, functions run, timers armed, slots written, and all of it looked
after.

A call's reply subject is its slot, so its answer is the journal entry. Everything else is written to its slot by us.
Whoever was first with a slot, what stands in it counts; nothing here tells the code anything but by way of the
journal.
"""

import asyncio
import functools
import logging
from typing import TYPE_CHECKING, Any

import grpc

from engine import journal, names, values
from engine.clock import NANOS
from engine.errors import PayloadTooLargeError
from engine.flight import Flight, request_headers
from engine.model import Failure, Kind, Mark, Step
from engine.records import failure_to_bytes
from engine.replay import Replay, describe_exception, is_last_attempt
from engine.store import REFUSED, PubAck
from mesh import headers as header_block
from mesh.errors import NotConnectedError

if TYPE_CHECKING:
    from engine.run import Run

logger = logging.getLogger("engine.effects")

REPAIR_AFTER = 1.0
"""Seconds after which an answer that came and was not stored is stored by us."""
MAX_LOOK_PAUSE = 30.0
"""Seconds between two looks for an answer that does not come, at most."""
MAX_TIMER = 86_400.0
"""Seconds that a timer in memory waits at once; then it looks again how much is left."""


class Effects:
    """The flights of one run, by step number. `fillable` are the slots that somebody may have filled."""

    def __init__(self, run: "Run") -> None:
        self._run = run
        self._host = run.host
        self._slots_end = len(run.slots) + 1
        self.flights: dict[int, Flight] = {}
        self.fillable: set[int] = set()

    # --- the whole of it

    def is_busy(self) -> bool:
        """Whether a step is being executed or stored for us."""
        return any(f.body is not None or f.is_writing or f.is_sent for f in self.flights.values())

    def is_here(self) -> bool:
        """Whether something is being executed or stored by this very process."""
        return any(f.body is not None or f.is_writing for f in self.flights.values())

    def reasons(self) -> dict[int, str]:
        """Why steps wait, where there is more to say than that they do."""
        return {number: flight.reason for number, flight in self.flights.items() if flight.reason}

    def cancel(self) -> None:
        """Nothing matters any more."""
        for flight in self.flights.values():
            flight.cancel()

    def forget_requests(self) -> None:
        """What was sent or armed is sent or armed again; functions that run and what is to be written stay."""
        for number, flight in list(self.flights.items()):
            if flight.body is None and not flight.is_writing:
                self._end(number, flight)

    def wake(self) -> None:
        """Do what was put off while the run was held."""
        for flight in sorted(self.flights.values(), key=lambda flight: (flight.step.due_ns, flight.step.number)):
            if flight.is_writing:
                self._put(flight)
            else:
                flight.wake()

    def look(self, now: float) -> None:
        """Repair what was answered and not stored, look for what was stored and not seen."""
        for flight in list(self.flights.values()):
            if flight.look_at <= now:
                self._look_after(flight, now)

    def settle(self, replay: Replay) -> None:
        """End what belongs to steps that nobody waits for, or to an attempt that is over."""
        for number, flight in list(self.flights.items()):
            step = replay.steps[number] if number < len(replay.steps) else None
            if step is not None:  # a replay that has just been built does not know of it
                step.undelivered = flight.undelivered
            if step is None or not step.is_open or step.attempt != flight.attempt:
                self._end(number, flight)
            else:
                flight.step = step

    def _end(self, number: int, flight: Flight) -> None:
        flight.cancel()
        del self.flights[number]
        self.fillable.discard(number)

    def fills_only_slot(self, replay: Replay, number: int) -> bool:
        """Whether nobody can have filled another slot that the code waits for."""
        steps = replay.steps
        if self._run.timers_scheduled and any(s.kind == Kind.SLEEP and s.number != number for s in replay.open_steps()):
            return False
        return not any(other != number and other < len(steps) and steps[other].is_open for other in self.fillable)

    # --- one step

    def on_direct_copy(self, subject: str, data: bytes, block: bytes) -> None:
        """What was sent to a slot, before it is stored: the server's "nobody listens", or an answer."""
        step, _, rest = subject[self._slots_end :].partition(".")
        flight = self.flights.get(int(step)) if step != "in" else None
        if flight is None or flight.is_writing or int(rest.partition(".")[0]) != flight.attempt:
            return
        if block and header_block.is_no_responders(block):
            self._undelivered(flight)
        elif flight.answer is None:
            flight.answer = (data, block)
            flight.look_at = min(flight.look_at, self._time() + REPAIR_AFTER)

    def perform(self, step: Step) -> None:
        """Begin the step's present attempt."""
        if step.kind == Kind.AWAKEABLE:
            return  # others bring its value, as a control
        flight = self.flights[step.number] = Flight(step, step.attempt)
        if step.giving_up is not None:
            self._write(flight, Mark.GAVE_UP, failure_to_bytes(step.giving_up))
        elif step.kind == Kind.SLEEP:
            self._arm(flight)
        elif step.access is not None:
            self._write_access(flight)
        else:
            delay = flight.delay(self._host.clock.now_ns())
            act = self._send if step.kind == Kind.CALL else self._start_body
            if delay > 0:
                flight.after(delay, act, flight)
            else:
                act(flight)

    def _send(self, flight: Flight) -> None:
        """Send one attempt of a call: its reply subject is the slot."""
        if self._run.is_still or not self._host.may_act():
            flight.put_off(self._send, flight)
            return
        step, call = flight.step, flight.step.call
        assert call is not None
        headers = request_headers(self._run, step, call)
        if len(headers) + len(call.request) > self._host.connection.max_payload:
            error = PayloadTooLargeError(
                f"the request of {step.name}", len(headers) + len(call.request), self._host.connection.max_payload
            )
            code = grpc.StatusCode.RESOURCE_EXHAUSTED.name
            self._write(flight, Mark.GAVE_UP, failure_to_bytes(Failure(code, str(error), code)))
            return
        try:
            self._host.connection.publish(call.subject, call.request, reply=self.slot(flight), headers=headers)
        except NotConnectedError:  # the reconnect contests this run, and it is sent then
            return
        self._host.watch.sent(call.subject)
        self.fillable.add(step.number)
        flight.sent(self._time(), call.timeout, self._attempt_timed_out)

    def _attempt_timed_out(self, flight: Flight) -> None:
        if flight.is_writing or self.flights.get(flight.step.number) is not flight:
            return
        if self._run.is_still:
            flight.put_off(self._attempt_timed_out, flight)
            return
        call = flight.step.call
        assert call is not None
        text = f"no answer from {call.subject} within {call.timeout:g} s"
        failure = Failure("DEADLINE_EXCEEDED", text, "DEADLINE_EXCEEDED")
        self.close_attempt(flight, Mark.TIMEOUT, failure)

    def close_attempt(self, flight: Flight, mark: str, failure: Failure) -> None:
        """Fill a failed attempt's slot before the next one goes out; with the last word where there is none."""
        if is_last_attempt(flight.step, self._host.clock.now_ns()) or not _is_retried(flight.step, failure):
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
            self._host.absences.wait(call.subject, self, flight)

    def resend(self, flight: Flight) -> bool:
        """Send an undelivered attempt again, if it still matters; whether it was sent."""
        if self._run.dropped or self.flights.get(flight.step.number) is not flight:
            return False
        if self._run.is_still:  # for a moment: it is sent when the run goes on
            flight.put_off(self._send, flight)
            return False
        self._send(flight)
        return True

    # --- timers and bodies

    def _write_access(self, flight: Flight) -> None:
        """A step on the run's state: what it reads is what the entries fed so far have made."""
        replay = self._run.replay
        if replay is not None:
            payload = replay.state.answer(flight.step.access)
            self._write(flight, Mark.VALUE, payload.data, payload.type)

    def _arm(self, flight: Flight) -> None:
        """A timer in memory; never early by the server's clock."""
        remaining = (flight.step.due_ns - self._host.clock.now_ns()) / NANOS
        if remaining > 0:
            flight.after(min(remaining, MAX_TIMER), self._arm, flight)
        elif self._run.is_still:
            flight.put_off(self._arm, flight)
        else:
            self._write(flight, Mark.FIRED, b"")

    def _start_body(self, flight: Flight) -> None:
        if self._run.is_still or not self._host.may_act():
            flight.put_off(self._start_body, flight)
            return
        flight.body = self._host.run_body(flight.step)
        flight.body.add_done_callback(functools.partial(self._body_done, flight))

    def _body_done(self, flight: Flight, future: "asyncio.Future[Any]") -> None:
        number = flight.step.number
        if self._run.dropped or flight.body is None or self.flights.get(number) is not flight:
            return  # cancelled by us
        flight.body = None
        try:
            self._record_body(flight, future)
        except Exception as error:  # noqa: BLE001  # a value or an exception of the user's whose own methods fail
            self._run.fail(describe_exception(error))

    def _record_body(self, flight: Flight, future: "asyncio.Future[Any]") -> None:
        error = asyncio.CancelledError() if future.cancelled() else future.exception()
        if error is None:
            payload = values.encode(future.result(), f"the value of ctx.run({flight.step.name!r})")
            self._write(flight, Mark.VALUE, payload.data, payload.type)
            return
        failure = describe_exception(error)
        policy = flight.step.body.policy if flight.step.body is not None else None
        bases = [cls.__qualname__ for cls in type(error).__mro__]
        final = policy is None or "TerminalError" in bases or not policy.retries_exception(bases)
        last = final or is_last_attempt(flight.step, self._host.clock.now_ns())
        self._write(flight, Mark.GAVE_UP if last else Mark.ERROR, failure_to_bytes(failure))

    # --- slots that the owner writes

    def slot(self, flight: Flight) -> str:
        """The subject of a flight's slot."""
        step = flight.step
        return names.slot_subject(
            self._run.slots, step.number, flight.attempt, step.kind, step.digest, names.encode_name(step.name)
        )

    def _write(self, flight: Flight, mark: str, data: bytes, content_type: str = "") -> None:
        """Fill the flight's slot. Somebody else may have been first: then what stands there counts."""
        headers = journal.entry_headers(mark, content_type)
        size, limit = len(headers) + len(data), self._host.connection.max_payload
        if size > limit:
            what = f"the value of step {flight.step.number} ({flight.step.title})"
            self._run.fail(describe_exception(PayloadTooLargeError(what, size, limit)))
            return
        flight.writes(data, headers, self._time())
        self.fillable.add(flight.step.number)
        self._put(flight)

    def _put(self, flight: Flight) -> None:
        if self._run.is_still or flight.answer is None or not self._host.may_act():
            return
        data, headers = flight.answer
        try:
            self._host.store.put(self.slot(flight), data, headers, functools.partial(self._on_written, flight))
        except NotConnectedError:
            return

    def _on_written(self, flight: Flight, ack: PubAck) -> None:
        if self._run.dropped or ack.error is None:  # stored: its republished copy brings it, or the next look
            return
        if ack.error.err_code == REFUSED:
            self._run.want_read()
        else:
            logger.warning(
                "run %s: step %d is not stored yet: %s", self._run.id, flight.step.number, ack.error.description
            )

    def _look_after(self, flight: Flight, now: float) -> None:
        """It should be stored by now: store what was answered, look for what was not seen."""
        flight.looked(now, MAX_LOOK_PAUSE)
        if flight.is_sent:
            flight.reason = ""  # it was received: why it could not be before is over
        if flight.answer is not None and not self._run.is_still:
            data, block = flight.answer
            if not flight.is_writing:
                flight.answer = (data, journal.safe_headers(block))
            self._put(flight)
        self._run.want_read()

    def _time(self) -> float:
        return asyncio.get_running_loop().time()


def _is_retried(step: Step, failure: Failure) -> bool:
    call = step.call
    return call is None or call.policy.retries_code(grpc.StatusCode[failure.code])
