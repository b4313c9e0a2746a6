"""What goes wrong with workflows, as classes. Every one is an EngineError.

    EngineError
      InvalidNameError (ValueError)      a name or id is refused before anything is sent
      PayloadTooLargeError               size, and the limit that applies
      EncodeError                        a value that cannot be stored: whose, and its type
      DecodeError                        bytes that do not fit: which type, where in the value
      UnavailableError                   nobody answered in time; repeating it is safe
      StoreError                         missing, foreign, full or refusing: what to do
      InvocationNotFoundError            no record and no command of that id
      InvocationConflictError            same id, other input, workflow or key
      InvocationStateError               the run's status does not allow it
      ResultTimeoutError (TimeoutError)  the run goes on, only the waiting ended
      WorkflowFailedError                what result() raises for a failed run
      WorkflowCancelledError             and for a cancelled one
      StepFailedError                    raised in a workflow at the await of a step; catchable
        CallFailedError (mesh.RpcError)  of a call to a service, with code() and details()
      AwakeableRejectedError             raised in a workflow at the await of an awakeable; catchable
      AwakeableNotFoundError             no live run has issued that id
      AwakeableResolvedError             it has its value or rejection, or its run has ended
      NonDeterminismError                the code does not ask for what the journal has recorded
      ForeignAwaitError                  the code awaits what cannot be replayed; names ctx.run
      PoisonError                        a run that takes its processors down with it
      TerminalError                      users raise it: do not retry this

Problems of the connection itself are `mesh.MeshError`s and pass through as they are.
"""

from collections.abc import Sequence
from typing import Any

import grpc

from mesh.errors import RpcError

__all__ = [
    "AwakeableNotFoundError",
    "AwakeableRejectedError",
    "AwakeableResolvedError",
    "CallFailedError",
    "DecodeError",
    "EncodeError",
    "EngineError",
    "ForeignAwaitError",
    "InvalidNameError",
    "InvocationConflictError",
    "InvocationNotFoundError",
    "InvocationStateError",
    "NonDeterminismError",
    "PayloadTooLargeError",
    "PoisonError",
    "ResultTimeoutError",
    "StepFailedError",
    "StoreError",
    "TerminalError",
    "UnavailableError",
    "WorkflowCancelledError",
    "WorkflowFailedError",
]


class EngineError(Exception):
    """The root of all errors of this package."""

    def __reduce__(self) -> Any:
        """Pickle by text and fields: errors may cross a process border."""
        return _rebuild, (type(self), self.args, self.__dict__)


# --- at the edge: nothing has been sent


class InvalidNameError(EngineError, ValueError):
    """An id, a workflow name, a key or a namespace cannot be part of a subject.

    Raised before anything is sent. `kind` says what it was meant to be, `name` is the text,
    `rule` what is allowed.
    """

    def __init__(self, kind: str, name: object, rule: str) -> None:
        super().__init__(f"{kind} {_shorten(name)} is not valid: {rule}")
        self.kind = kind
        self.name = name
        self.rule = rule


class PayloadTooLargeError(EngineError):
    """A value does not fit into one message. Nothing was stored.

    `size` and `limit` are bytes; `limit_name` is the setting that holds the limit.
    """

    def __init__(self, what: str, size: int, limit: int, limit_name: str = "the server's max_payload") -> None:
        super().__init__(f"{what} takes {size} bytes; {limit_name} allows {limit}")
        self.what = what
        self.size = size
        self.limit = limit
        self.limit_name = limit_name


class EncodeError(EngineError):
    """A value has no stored form: neither message, model nor anything that JSON can carry.

    Nothing was stored. `type` is the name of the value's class, `what` says whose value it is.
    """

    def __init__(self, what: str, type_name: str, reason: str) -> None:
        super().__init__(f"{what} of type {type_name} cannot be encoded: {reason}")
        self.what = what
        self.type = type_name
        self.reason = reason


class DecodeError(EngineError):
    """Stored or sent bytes are not a value of the type asked for. They are left as they are.

    `type` is the name of the type asked for; `reason` says where in the value it goes wrong,
    as in "`$.items[0].price`".
    """

    def __init__(self, what: str, type_name: str, reason: str) -> None:
        super().__init__(f"{what} is not a valid {type_name}: {reason}")
        self.what = what
        self.type = type_name
        self.reason = reason


# --- between client and store


class UnavailableError(EngineError):
    """The server, or a processor, did not answer in time: it may or may not have happened.

    For a start that means: starting again with the same id and input is safe, and attaches to
    the run if there is one. `invocation_id` is that id, also when it was drawn for the caller.
    """

    def __init__(self, message: str, invocation_id: str | None = None) -> None:
        super().__init__(message)
        self.invocation_id = invocation_id


class StoreError(EngineError):
    """A stream, bucket or consumer is missing, foreign, full, or refuses what it was asked.

    Nothing was stored. `asset` is its name; the message says what to do about it.
    """

    def __init__(self, message: str, asset: str = "") -> None:
        super().__init__(message)
        self.asset = asset


class InvocationNotFoundError(EngineError):
    """There is neither a record nor a queued command of that id.

    It never was started, or its retention is over.
    """

    def __init__(self, invocation_id: str) -> None:
        super().__init__(
            f"invocation {_shorten(invocation_id)} is not known: it was never started, or its retention is over"
        )
        self.invocation_id = invocation_id


class InvocationConflictError(EngineError):
    """The id is taken by an invocation of another workflow, key or input, which goes on."""

    def __init__(self, invocation_id: str, message: str = "") -> None:
        super().__init__(message or f"invocation id {invocation_id!r} is taken by another workflow, key or input")
        self.invocation_id = invocation_id


class InvocationStateError(EngineError):
    """The run's status, in `status`, does not allow what was asked. Nothing was changed."""

    def __init__(self, invocation_id: str, status: str, message: str) -> None:
        super().__init__(message)
        self.invocation_id = invocation_id
        self.status = status


class AwakeableNotFoundError(EngineError):
    """No run that is known has issued an awakeable of this id. Nothing was stored."""

    def __init__(self, awakeable_id: str) -> None:
        super().__init__(f"awakeable {_shorten(awakeable_id)} is not known: no run that is kept has issued it")
        self.awakeable_id = awakeable_id


class AwakeableResolvedError(EngineError):
    """Too late: the awakeable was resolved or rejected before, or its run has ended. Nothing was changed."""

    def __init__(self, awakeable_id: str, message: str = "") -> None:
        super().__init__(message or f"awakeable {_shorten(awakeable_id)} was resolved or rejected before")
        self.awakeable_id = awakeable_id


class ResultTimeoutError(EngineError, TimeoutError):
    """There is no result within the time-out, of `timeout` seconds.

    The run goes on; ask for its result again whenever you like.
    """

    def __init__(self, invocation_id: str, timeout: float) -> None:
        super().__init__(
            f"invocation {invocation_id!r} has no result within {timeout:g} s; "
            "it goes on, and its result can be asked for again"
        )
        self.invocation_id = invocation_id
        self.timeout = timeout


class WorkflowFailedError(EngineError):
    """The run is `failed`; it can be retried.

    Raised by `result()`, and in the parent of a failed child. `type` is the qualified name of
    the exception's class, `message` its text unchanged, `code` a gRPC code's name or None,
    `traceback` the text of the traceback in the workflow, which may be empty.
    """

    def __init__(
        self,
        invocation_id: str,
        type_name: str,
        message: str,
        code: str | None = None,
        traceback: str = "",
    ) -> None:
        super().__init__(f"invocation {invocation_id!r} failed: {type_name}: {message}")
        self.invocation_id = invocation_id
        self.type = type_name
        self.message = message
        self.code = code
        self.traceback = traceback


class WorkflowCancelledError(EngineError):
    """The run is `cancelled`. Raised by `result()`, and in the parent of a cancelled child."""

    def __init__(self, invocation_id: str) -> None:
        super().__init__(f"invocation {invocation_id!r} was cancelled")
        self.invocation_id = invocation_id


# --- inside a workflow


class StepFailedError(EngineError):
    """A step failed for good: after its last attempt, or terminally.

    Raised at its await, live and in replay alike, and never as the original class, which a
    replay could not raise: `type` is its qualified name and `message` its text. `step` counts
    from 0 in the order in which the code issued its steps, `attempts` how often it was tried.
    Can be caught; one that leaves the workflow fails the run.
    """

    def __init__(self, step: int, name: str, type_name: str, message: str, attempts: int = 1) -> None:
        super().__init__(_step_text(step, name, f"{type_name}: {message}", attempts))
        self.step = step
        self.name = name
        self.type = type_name
        self.message = message
        self.attempts = attempts


class CallFailedError(StepFailedError, RpcError):
    """A call to a service failed for good. `name` is `Service.Method`, `type` the code's name.

    Is a `mesh.RpcError` too: `code()`, `details()`, `trailing_metadata()`.
    """

    def __init__(
        self,
        step: int,
        name: str,
        code: grpc.StatusCode,
        details: str,
        *,
        trailing_metadata: Sequence[tuple[str, Any]] = (),
        attempts: int = 1,
    ) -> None:
        RpcError.__init__(self, code, details, trailing_metadata=trailing_metadata)
        self.step = step
        self.name = name
        self.type = code.name
        self.message = details
        self.attempts = attempts

    def __str__(self) -> str:
        return _step_text(self.step, self.name, f"{self.type}: {self.message}", self.attempts)

    __repr__ = __str__


class AwakeableRejectedError(EngineError):
    """Somebody rejected what the workflow waits for. `reason` is what they said; raised at each await of it."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name = name
        self.reason = reason


class NonDeterminismError(EngineError):
    """The code asks for something else than what its journal has recorded at `step`.

    The attempted effect did not happen. `recorded` and `attempted` describe the two operations.
    The run is failed and can be retried with repaired code.
    """

    def __init__(self, step: int, recorded: str, attempted: str) -> None:
        super().__init__(f"step {step}: the journal has {recorded}, the code attempted {attempted}")
        self.step = step
        self.recorded = recorded
        self.attempted = attempted


class ForeignAwaitError(EngineError):
    """Workflow code awaits what is not durable: real I/O, a thread. The run is failed.

    The message names `ctx.run`, in which such things belong.
    """


class PoisonError(EngineError):
    """The run was taken up `attempts` times in a row without progress, and was given up.

    It is failed and can be retried.
    """

    def __init__(self, attempts: int, message: str = "") -> None:
        super().__init__(message or f"given up after {attempts} attempts without progress")
        self.attempts = attempts


class TerminalError(EngineError):
    """Raise it, or a subclass, in a function given to `ctx.run`: no policy retries it."""


def _rebuild(kind: type[EngineError], args: tuple[Any, ...], fields: dict[str, Any]) -> EngineError:
    error = kind.__new__(kind, *args)
    error.args = args  # an OSError, as a time-out is one, takes them in __init__
    error.__dict__.update(fields)
    return error


def _step_text(step: int, name: str, failure: str, attempts: int) -> str:
    tries = "" if attempts == 1 else f" after {attempts} attempts"
    return f"step {step} ({name}) failed{tries}: {failure}"


def _shorten(name: object) -> str:
    """A text that may be anything, for a message: at most 100 characters of it, escaped."""
    text = ascii(name)
    return text if len(text) <= 100 else f"{text[:97]}..."
