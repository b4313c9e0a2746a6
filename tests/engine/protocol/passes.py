"""Passes of workflow code over a journal made by hand: what the pure rooms do, without server or clock."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine
from typing import Any

from engine import journal, values, workflow
from engine.model import Control, Entry, Failure, Invocation, Kind, Mark, Step
from engine.records import failure_to_bytes
from engine.replay import Replay, feed_all

SECOND = 1_000_000_000
START = 1_800_000_000 * SECOND
"""Server time of the command, in nanoseconds."""

Code = Callable[..., Coroutine[Any, Any, Any]]


def begin(code: Code) -> Replay:
    """A fresh pass, run to its first waits."""
    replay = Replay(Invocation("run-1", "incarnation", "wf", b"", "", START, START), workflow(code, name="wf"))  # type: ignore[call-overload]
    replay.start()
    return replay


def replayed(code: Code, *entries: Entry, controls: Collection[Control] = ()) -> Replay:
    """A fresh pass which knows the controls and is given all entries in their order."""
    replay = begin(code)
    replay.mailbox.learn(controls)
    feed_all(replay, entries)
    return replay


def answer(step: Step, sequence: int, data: bytes = b"", *, attempt: int = 0, at: float = 0.0) -> Entry:
    """A service's reply as it lies in a step's slot; `at` is seconds after the command."""
    return _entry(step, sequence, data, attempt, at, "", b"")


def failed_answer(step: Step, sequence: int, code: int, text: str, *, attempt: int = 0, at: float = 0.0) -> Entry:
    """A service's error reply in the words of ADR-32."""
    block = f"NATS/1.0\r\nNats-Service-Error-Code: {code}\r\nNats-Service-Error: {text}\r\n\r\n".encode()
    return _entry(step, sequence, b"", attempt, at, "", block)


def closed(
    step: Step, sequence: int, mark: str, message: str = "", *, attempt: int = 0, attempts: int = 0, at: float = 0.0
) -> Entry:
    """An attempt that the owner of the run closed, or gave up after."""
    failure = Failure("DEADLINE_EXCEEDED", message, "DEADLINE_EXCEEDED", attempts=attempts)
    return _entry(step, sequence, failure_to_bytes(failure), attempt, at, mark, b"")


def control(
    sequence: int,
    kind: str = "cancel",
    *,
    request: str = "request",
    name: str = "",
    data: bytes = b"",
    content_type: str = "",
) -> Control:
    """Something that was asked of the run."""
    return Control(sequence, START + sequence, f"…{kind}.{request}", kind, request, name, content_type, data)


def delivered(sequence: int, number: int, *, up_to: int) -> Entry:
    """The entry that delivers all controls up to a sequence."""
    return Entry(sequence, START + sequence, -1, number, Kind.INBOX, "", "", Mark.VALUE, "", b"%d" % up_to)


def fired(step: Step, sequence: int, *, at: float) -> Entry:
    """A timer that fired."""
    return _entry(step, sequence, b"", 1, at, Mark.FIRED, b"")


def _entry(step: Step, sequence: int, data: bytes, attempt: int, at: float, mark: str, block: bytes) -> Entry:
    time_ns = START + round((at or sequence / 1000) * SECOND)
    return Entry(sequence, time_ns, step.number, attempt or 1, step.kind, step.digest, step.name, mark, "", data, block)


def foreign(number: int, sequence: int, kind: str = Kind.CALL, name: str = "Steps.Other") -> Entry:
    """An entry for something that the code did not ask for at that step."""
    digest = journal.digest(kind, name.encode())
    return Entry(sequence, START + sequence, number, 1, kind, digest, name, "", "", b"")


def result(replay: Replay) -> Any:
    """What the code returned."""
    assert replay.outcome is not None, "the code still waits"
    assert replay.outcome.failure is None, replay.outcome.failure
    return values.decode(replay.outcome.result.data, replay.outcome.result.type, Any)


def failure(replay: Replay) -> Failure:
    """What the run failed of."""
    assert replay.outcome is not None, "the code still waits"
    assert replay.outcome.failure is not None, "the code returned"
    return replay.outcome.failure
