"""What a run is made of: plain values that every room of the engine shares. Pure."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Any

import grpc

Duration = float | int | timedelta
"""Seconds, or a timedelta."""


def seconds(value: Duration) -> float:
    """A duration as float seconds."""
    return value.total_seconds() if isinstance(value, timedelta) else float(value)


class Status(StrEnum):
    """The status words of an invocation, as users see and type them."""

    PENDING = "pending"
    RUNNING = "running"
    SUSPENDED = "suspended"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})
"""Nothing runs any more, and the record carries the journal."""


class Kind:
    """Kinds of operation: in slot subjects, the journal and error texts."""

    CALL = "call"
    RUN = "run"
    SLEEP = "sleep"
    GET = "get"
    SET = "set"
    CLEAR = "clear"
    KEYS = "keys"
    AWAKEABLE = "awakeable"
    INBOX = "in"
    """Of an entry only: it is no step, but delivers controls."""


class Mark:
    """The `Mesh-Entry` header of an entry that the owner of a run wrote itself; a service's answer has none."""

    HEADER = "Mesh-Entry"
    VALUE = "value"
    ERROR = "error"  # an attempt failed, another follows
    TIMEOUT = "timeout"  # the attempt's answer did not come in time, another follows
    UNAVAILABLE = "unavailable"  # nobody received the attempt, another follows
    GAVE_UP = "gave-up"  # the step failed for good
    FIRED = "fired"


RETRYABLE_CODES = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.ABORTED,
    }
)
"""What a durable call tries again unless its policy says otherwise; all other codes are terminal."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how fast a step is tried again; gRPC's service-config names. Durations in seconds or timedelta.

    `max_attempts=None` is without a limit. There is no wait after the last attempt. `non_retryable` holds exception
    classes or class names (for `ctx.run`) whose failure is final; `retryable_codes` the gRPC codes that a call tries
    again.
    """

    max_attempts: int | None = None
    initial_backoff: Duration = 0.1
    backoff_multiplier: float = 2.0
    max_backoff: Duration = 30.0
    jitter: float = 0.2
    retryable_codes: frozenset[grpc.StatusCode] | None = None
    non_retryable: tuple[type[BaseException] | str, ...] = ()
    total_timeout: Duration | None = None

    def __post_init__(self) -> None:
        if self.max_attempts is not None and self.max_attempts < 1:
            raise ValueError("max_attempts must be at least 1, or None for no limit")
        durations = (self.initial_backoff, self.max_backoff, self.total_timeout or 0)
        if not all(seconds(duration) >= 0 for duration in durations):  # so that NaN is refused as well
            raise ValueError("backoffs and total_timeout must not be negative")
        if not self.backoff_multiplier >= 1 or not 0 <= self.jitter <= 1:
            raise ValueError("backoff_multiplier must not be below 1, and jitter must lie between 0 and 1")

    def backoff(self, failures: int, random: float) -> float:
        """Seconds to wait after so many failed attempts; `random` in [0, 1) spreads them by `jitter`."""
        most = seconds(self.max_backoff)
        try:
            plain = min(seconds(self.initial_backoff) * self.backoff_multiplier ** (failures - 1), most)
        except OverflowError:
            plain = most
        return plain * (1 + self.jitter * (2 * random - 1))

    def retries_code(self, code: grpc.StatusCode) -> bool:
        """Whether a failure with this code is tried again."""
        return code in (RETRYABLE_CODES if self.retryable_codes is None else self.retryable_codes)

    def retries_exception(self, names: list[str]) -> bool:
        """Whether an exception whose class and bases have these names is tried again."""
        final = {item if isinstance(item, str) else item.__qualname__ for item in self.non_retryable}
        return not final.intersection(names)


CALL_POLICY = RetryPolicy()
"""Durable calls: without a limit."""
RUN_POLICY = RetryPolicy(max_attempts=1)
"""`ctx.run`: one attempt, unless the user says otherwise."""
CALL_TIMEOUT = 60.0
"""Seconds an attempt of a durable call may take by default."""


@dataclass(frozen=True, slots=True)
class Invocation:
    """The durable thing: everything that code may see of it, the same in every replay."""

    id: str
    incarnation: str
    workflow: str
    input: bytes
    input_type: str
    created_ns: int
    command_ns: int
    partition_key: str = ""
    parent_id: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One journal entry as stored: the only thing that a run's code ever reacts to."""

    sequence: int
    time_ns: int
    step: int
    attempt: int
    kind: str
    digest: str
    name: str
    mark: str
    type: str
    data: bytes
    headers: bytes = b""

    @property
    def up_to(self) -> int:
        """Of an inbox entry: it delivers all controls up to this sequence."""
        return int(self.data) if self.data.isdigit() and len(self.data) < 20 else 0


@dataclass(frozen=True, slots=True)
class Control:
    """What somebody asked of a run, as stored: delivered to its code by an inbox entry, never at its own sequence."""

    sequence: int
    time_ns: int
    subject: str
    kind: str
    request: str
    name: str
    type: str
    data: bytes
    headers: bytes = b""


class Ask:
    """Kinds of controls."""

    CANCEL = "cancel"
    AWAKEABLE = "awakeable"
    SIGNAL = "signal"
    PAUSE = "pause"
    RESUME = "resume"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt, a step or a run failed; what is stored of an exception."""

    type: str
    message: str
    code: str = ""
    traceback: str = ""
    step: int | None = None
    name: str = ""
    attempts: int = 0
    details: bytes = b""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a step that was delivered and failed."""

    number: int
    started_ns: int
    completed_ns: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class Call:
    """A durable call: where it goes and with what."""

    subject: str
    request: bytes
    request_type: str
    response_type: str
    decode: Callable[[bytes], Any]
    timeout: float
    policy: RetryPolicy
    metadata: tuple[tuple[str, str], ...] = ()
    """As headers."""


@dataclass(frozen=True, slots=True)
class Body:
    """A side effect: what `ctx.run` executes."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    policy: RetryPolicy
    result_type: Any = Any


@dataclass(slots=True)
class Step:
    """One operation, numbered in order of issue; kind and digest identify it, the rest is this pass's view."""

    number: int
    kind: str
    name: str
    digest: str
    issued_ns: int
    future: Any  # of the replay's loop: what the code awaits; a timer's handle
    call: Call | None = None
    body: Body | None = None
    target: Any = Any  # what the value of an awakeable decodes to
    access: Any = None  # engine.state.StateAccess of a step that reads or changes state
    due_ns: int = 0
    attempt: int = 1
    failures: list[Attempt] = field(default_factory=list)
    failed_ns: int = 0  # server time of the last failed attempt: back-off counts from here, over a crash too
    giving_up: Failure | None = None
    undelivered: int = 0  # attempts nobody received, as far as this process knows
    decided: bool = False
    response: bytes = b""
    response_type: str = ""
    failure: Failure | None = None
    completed_ns: int = 0
    sequence: int = 0

    @property
    def is_open(self) -> bool:
        """Whether the code still waits for it: what is stored for one that it cancelled is no input."""
        return not (self.decided or self.future.cancelled())

    @property
    def title(self) -> str:
        """How people know it: `HelloService.SayHello` for a call, else `kind:name`."""
        return self.name if self.kind == Kind.CALL else f"{self.kind}:{self.name}"

    @property
    def operation(self) -> str:
        """How errors name it: `call HelloService.SayHello`, `sleep 1.5s`."""
        return f"{self.kind} {self.name}" if self.name else self.kind
