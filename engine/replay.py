"""One pass of a run's code over its journal: entries in, steps to take out. Pure: no connection, task, clock or
environment.

Live and replay are the same thing. `start()` runs the code to its first waits; each `feed(entry)` gives it one input,
in the order of the stream, and runs it to quiescence; `take_effects()` then says which steps are to be sent, run or
armed. Effects are only taken when every known entry has been fed, so whatever the journal has already decided is
never done again.
"""

import asyncio
import traceback
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import grpc

from engine import awakeable, journal, names, values
from engine.awakeable import Awakeable
from engine.context import Context
from engine.definition import Workflow
from engine.errors import (
    CallFailedError,
    DecodeError,
    ForeignAwaitError,
    NonDeterminismError,
    StepFailedError,
)
from engine.loop import DeterministicLoop, Handle, is_of_another_loop
from engine.mailbox import Mailbox
from engine.model import Ask, Attempt, Body, Call, Control, Entry, Failure, Invocation, Kind, Mark, Step, seconds
from engine.signals import SignalQueue, Signals
from engine.state import State, StateAccess
from mesh import wire

DEFAULT_NAMES = names.Names()
NANOS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: a result, a failure, or a cancellation that the code let pass."""

    result: values.Payload = values.NOTHING
    failure: Failure | None = None
    cancelled: bool = False


class Replay:
    """The frames of a run and what they wait for."""

    def __init__(
        self,
        invocation: Invocation,
        workflow: Workflow[Any, Any],
        attempt: int = 1,
        names_: names.Names = DEFAULT_NAMES,
    ) -> None:
        self.invocation = invocation
        self.names = names_
        self.workflow = workflow
        self.attempt = attempt
        self.now_ns = invocation.command_ns
        self.steps: list[Step] = []
        self._open: dict[
            int, Step
        ] = {}  # steps that may be open: a run of many steps must not look through all of them
        self.outcome: Outcome | None = None
        self.state = State()
        self.is_replaying = False
        self.mismatched = False
        self._random: Random | None = None
        self.fed_sequence = 0
        self.mailbox = Mailbox()
        self.cancelled = False
        self._early: dict[int, Control] = {}
        self._signals: dict[str, SignalQueue] = {}
        self._fresh: list[Step] = []
        self._main: asyncio.Task[Any] | None = None
        seed = zlib.crc32(f"{invocation.id}/{invocation.incarnation}".encode())
        self._loop = DeterministicLoop(self._set_timer, seed)  # type: ignore[abstract]  # its methods are set one by one
        self._loop.set_time(self.now_ns / NANOS)

    # --- inputs

    def start(self) -> None:
        """Run the code from its beginning to its first waits."""
        try:
            argument = self._argument()
        except DecodeError as error:
            self.outcome = Outcome(failure=describe_exception(error))
            return
        context = Context(self, self._loop)
        coroutine = self.workflow.function(context, *argument)
        self._main = self._loop.create_task(coroutine, name=self.invocation.id)
        self._drain()

    def _argument(self) -> tuple[Any, ...]:
        invocation = self.invocation
        if not self.workflow.takes_input:
            return ()
        if not invocation.input_type and not invocation.input:
            if not self.workflow.input_required:
                return ()
            invocation = replace(invocation, input=b"null", input_type=values.JSON)  # a hint may admit None
        target = self.workflow.input_type
        return (values.decode(invocation.input, invocation.input_type, target, "the workflow's input"),)

    def feed(self, entry: Entry) -> None:
        """Give the code its next input, in the order of the stream, and let it run as far as it gets."""
        self.fed_sequence = max(self.fed_sequence, entry.sequence)
        if entry.kind == Kind.INBOX:
            self._deliver(entry)
            return
        if entry.step >= len(self.steps):
            self._mismatch(entry, None)
            return
        step = self.steps[entry.step]
        if step.decided:
            return  # what comes after the entry that decided is no input
        if step.kind != entry.kind or step.digest != entry.digest:
            self._mismatch(entry, step)
            return
        if self.outcome is not None or not step.is_open or entry.attempt != step.attempt:
            return
        self._move_clock(entry.time_ns)
        if self._decide(step, entry):
            step.sequence, step.completed_ns = entry.sequence, entry.time_ns
            self._open.pop(step.number, None)
        self._drain()

    def _deliver(self, entry: Entry) -> None:
        """Controls reach the code, one after the other, at the place of the entry that delivers them."""
        for control in self.mailbox.open(entry):
            if self.outcome is not None:
                return
            self._move_clock(entry.time_ns)
            self._take(control)
            self._drain()

    def _take(self, control: Control) -> None:
        if control.kind == Ask.CANCEL:
            self._cancel()
        elif control.kind == Ask.AWAKEABLE and names.is_number(control.request):
            self._awake(int(control.request), control)
        elif control.kind == Ask.SIGNAL:
            self._signal_queue(control.name).put(control)

    def _awake(self, number: int, control: Control) -> None:
        """Give an awakeable its value; of one that is not issued yet, keep it."""
        if number >= len(self.steps):
            self._early.setdefault(number, control)
            return
        step = self.steps[number]
        if step.kind == Kind.AWAKEABLE and step.is_open:
            awakeable.settle(step, control, step.target)
            step.sequence, step.completed_ns = control.sequence, control.time_ns
            self._open.pop(number, None)

    def _cancel(self) -> None:
        """CancelledError at the code's next await, once (E-C20)."""
        if not self.cancelled and self._main is not None:
            self.cancelled = True
            self._main.cancel()

    def _move_clock(self, time_ns: int) -> None:
        self.now_ns = max(self.now_ns, time_ns)
        self._loop.set_time(self.now_ns / NANOS)

    def _drain(self) -> None:
        self._loop.run_ready()
        main = self._main
        if self.outcome is not None or main is None:
            return
        if self._loop.foreign is not None:
            self.outcome = Outcome(failure=describe_exception(self._loop.foreign))
        elif self._loop.unhandled is not None:
            self.outcome = Outcome(failure=describe_exception(self._loop.unhandled))
        elif main.done():
            self.outcome = self._outcome(main)
        elif not self._waits():
            self.outcome = Outcome(
                failure=describe_exception(
                    ForeignAwaitError(
                        "the workflow waits for something that no step of it can bring about: await steps, "
                        "and put real I/O into ctx.run(name, function, ...)"
                    )
                )
            )

    def _outcome(self, main: "asyncio.Task[Any]") -> Outcome:
        try:
            return Outcome(values.encode(main.result(), "the workflow's result"))
        except BaseException as error:  # noqa: BLE001  # whatever left the workflow is its failure, unless it was asked for
            if isinstance(error, asyncio.CancelledError) and self.cancelled:
                return Outcome(cancelled=True)
            if is_of_another_loop(error):
                error = ForeignAwaitError(
                    f"workflow code awaits something of another event loop, which belongs into ctx.run: {error}"
                )
            return Outcome(failure=describe_exception(error))

    def _mismatch(self, entry: Entry, step: Step | None) -> None:
        """Stop: the code does not ask for what is recorded. The first mismatch is the one to tell of."""
        if self.mismatched:
            return
        self.mismatched = True
        recorded = f"{entry.kind} {names.decode_name(entry.name)}".rstrip(" -")
        if step is not None:
            attempted = step.operation
            if attempted == recorded:
                attempted += " with other arguments"
        else:
            attempted = "nothing at this point" if self.outcome is None else "nothing: it has ended"
        self.outcome = Outcome(failure=describe_exception(NonDeterminismError(entry.step, recorded, attempted)))

    # --- deciding

    def _decide(self, step: Step, entry: Entry) -> bool:
        """Apply an entry; whether it decided the step."""
        if step.kind == Kind.SLEEP:
            step.decided = True
            self._loop.fire(step.future)
            return True
        if entry.mark == Mark.GAVE_UP:
            return self._fail(step, journal.decode_failure(entry.data))
        if entry.mark in {Mark.ERROR, Mark.TIMEOUT, Mark.UNAVAILABLE}:
            return self._attempt_failed(step, entry, journal.decode_failure(entry.data), retried=True)
        if step.access is not None:
            return self._access(step, entry)
        if step.body is not None:
            return self._succeed(step, entry.data, entry.type, step.body.result_type)
        return self._decide_call(step, entry)

    def _decide_call(self, step: Step, entry: Entry) -> bool:
        call = step.call
        assert call is not None
        outcome = wire.outcome(entry.data, entry.headers) if journal.is_error(entry.headers) else None
        if outcome is None or outcome.ok:
            step.response, step.response_type = entry.data, call.response_type
            step.decided = True
            try:
                value = call.decode(entry.data)
            except Exception as error:  # noqa: BLE001  # the service's bytes; whatever its decoder says, the step has failed
                return self._fail(
                    step,
                    Failure(
                        "INTERNAL", f"the reply is not a valid {call.response_type or 'message'}: {error}", "INTERNAL"
                    ),
                )
            step.future.set_result(value)
            return True
        failure = journal.answer_failure(outcome, entry.headers)
        return self._attempt_failed(step, entry, failure, journal.is_retried(outcome, call.policy.retries_code))

    def _access(self, step: Step, entry: Entry) -> bool:
        step.decided = True
        step.response, step.response_type = entry.data, entry.type
        try:
            step.future.set_result(self.state.apply(step.access, values.Payload(entry.data, entry.type)))
        except DecodeError as error:
            return self._fail(step, describe_exception(error))
        return True

    def _succeed(self, step: Step, data: bytes, content_type: str, target: Any) -> bool:
        step.decided = True
        step.response, step.response_type = data, content_type
        try:
            step.future.set_result(values.decode(data, content_type, target, f"the result of {step.name}"))
        except DecodeError as error:
            return self._fail(step, describe_exception(error))
        return True

    def _attempt_failed(self, step: Step, entry: Entry, failure: Failure, retried: bool) -> bool:
        if not retried:
            return self._fail(step, failure)
        if entry.mark != Mark.UNAVAILABLE:
            started = step.failed_ns or step.issued_ns
            step.failures.append(Attempt(entry.attempt, started, entry.time_ns, failure))
        step.failed_ns = entry.time_ns
        if entry.mark not in {Mark.ERROR, Mark.TIMEOUT, Mark.UNAVAILABLE} and is_last_attempt(step, entry.time_ns):
            step.giving_up = replace(failure, attempts=entry.attempt)
        step.attempt += 1
        self._fresh.append(step)
        return False

    def _fail(self, step: Step, failure: Failure) -> bool:
        attempts = step.attempt = failure.attempts or step.attempt
        step.decided = True
        step.failure = Failure(
            failure.type,
            failure.message,
            failure.code,
            failure.traceback,
            step.number,
            step.name,
            attempts,
            failure.details,
        )
        if step.kind == Kind.CALL:
            error: StepFailedError = CallFailedError(
                step.number,
                step.name,
                _code(failure.code),
                failure.message,
                attempts=attempts,
                trailing_metadata=journal.trailing_metadata(failure),
            )
        else:
            error = StepFailedError(step.number, step.name, failure.type, failure.message, attempts)
        step.future.set_exception(error)
        return True

    # --- steps that the code issues (engine.context.Steps)

    def issue(
        self,
        kind: str,
        name: str,
        digest: str,
        *,
        call: Call | None = None,
        body: Body | None = None,
        access: StateAccess | None = None,
    ) -> Step:
        """The next step, in order of issue; its future is what the code awaits."""
        future = self._loop.create_future()
        step = Step(len(self.steps), kind, name, digest, self.now_ns, future, call=call, body=body, access=access)
        self.steps.append(step)
        self._open[step.number] = step
        self._fresh.append(step)
        return step

    def issue_awakeable(self, target: Any) -> Awakeable[Any]:
        """An awakeable; its value comes as a control."""
        invocation = self.invocation
        step = self.issue(Kind.AWAKEABLE, "", journal.digest(Kind.AWAKEABLE))
        step.target = target
        early = self._early.pop(step.number, None)
        if early is not None:
            self._awake(step.number, early)
        controls = self.names.controls(invocation.workflow, invocation.id, invocation.incarnation)
        return Awakeable(
            step,
            names.awakeable_id(invocation.id, invocation.incarnation, step.number),
            names.control_subject(controls, Ask.AWAKEABLE, str(step.number)),
        )

    def signals(self, name: str, target: Any) -> Signals[Any]:
        """The signals of a name; not a step: they are inputs where they are delivered."""
        return Signals(self._signal_queue(name), self, name, target)

    def _signal_queue(self, name: str) -> SignalQueue:
        return self._signals.setdefault(name, SignalQueue())

    def signal_waits(self) -> list[tuple[str, int]]:
        """Names of the signals that the code waits for, and since when by server time."""
        return [(name, queue.waiting_since[0]) for name, queue in self._signals.items() if queue.waiting_since]

    def _set_timer(self, handle: Handle) -> None:
        delay_us = round((handle.when() - self._loop.time()) * 1e6)
        step = Step(
            len(self.steps),
            Kind.SLEEP,
            f"{delay_us / 1e6:g}s",
            journal.digest(Kind.SLEEP, b"%d" % delay_us),
            self.now_ns,
            handle,
            due_ns=self.now_ns + delay_us * 1000,
        )
        self.steps.append(step)
        self._open[step.number] = step
        self._fresh.append(step)

    @property
    def random(self) -> Random:
        """The run's own random numbers: seeded when first asked for, which costs more than a step."""
        if self._random is None:
            seed = f"{self.invocation.id}/{self.invocation.incarnation}"
            self._random = Random(seed)  # noqa: S311  # must repeat, not surprise
        return self._random

    def uuid4(self) -> uuid.UUID:
        """A UUID from the run's own randomness."""
        return uuid.UUID(int=self.random.getrandbits(128), version=4)

    # --- outputs

    def take_effects(self) -> list[Step]:
        """Steps issued or moved on since the last call that the code still waits for."""
        fresh, self._fresh = {step.number: step for step in self._fresh}, []  # once, though issued and retried since
        if self.outcome is not None:
            return []
        return [step for step in fresh.values() if step.is_open]

    def is_unfed(self, entry: Entry) -> bool:
        """Whether an entry would be an input now: its step waits for this very attempt."""
        if entry.kind == Kind.INBOX:
            return self.outcome is None and entry.attempt >= self.mailbox.deliveries
        if entry.step >= len(self.steps):
            return True
        step = self.steps[entry.step]
        return step.is_open and entry.attempt >= step.attempt

    def open_steps(self) -> list[Step]:
        """Steps the code waits for."""
        return [step for step in self._open.values() if step.is_open]

    def _waits(self) -> bool:
        """Whether the code waits for a step or a signal at all."""
        if any(queue.waiting_since for queue in self._signals.values()):
            return True
        while self._open:
            number = next(iter(self._open))
            if self._open[number].is_open:
                return True
            del self._open[number]  # cancelled by the code
        return False

    def put_away(self) -> None:
        """Drop the frames; the journal brings them back."""
        self._loop.put_away()


def is_last_attempt(step: Step, now_ns: int) -> bool:
    """Whether the step's policy allows no attempt after the present one."""
    policy = step.call.policy if step.call is not None else step.body.policy if step.body is not None else None
    if policy is None:
        return True
    if policy.max_attempts is not None and step.attempt >= policy.max_attempts:
        return True
    limit = policy.total_timeout
    return limit is not None and now_ns - step.issued_ns >= seconds(limit) * NANOS


def feed_all(replay: Replay, entries: Sequence[Entry]) -> None:
    """Feed entries, lowest sequence first."""
    for entry in sorted(entries, key=lambda entry: entry.sequence):
        replay.feed(entry)


def describe_exception(error: BaseException) -> Failure:
    """What is stored of an exception: class name, text, gRPC code where it has one, traceback.

    Never raises, though the exception's own methods may.
    """
    name = type(error).__qualname__
    step = error.step if isinstance(error, StepFailedError) else None
    try:
        code = error.code().name if isinstance(error, grpc.RpcError) and hasattr(error, "code") else ""
        text = "".join(traceback.format_exception(error)) if error.__traceback__ is not None else ""
        return Failure(name, str(error), code, text, step)
    except Exception as problem:  # noqa: BLE001  # of the user's exception class
        return Failure(name, f"its text cannot be told: {type(problem).__qualname__}", step=step)


def _code(name: str) -> grpc.StatusCode:
    return grpc.StatusCode.__members__.get(name, grpc.StatusCode.UNKNOWN)
