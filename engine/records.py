"""Records: what EXECUTION_STATE keeps of an invocation, to and from `protos/durable.proto`. Pure.

Times are integer nanoseconds since the epoch, 0 where there is none. Writing is on the path of every
run (once, at its end); the numbers are guarded by `tests/engine/test_records.py` and `make bench`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError as ProtobufDecodeError

from engine import durable_pb2
from engine.errors import DecodeError, PayloadTooLargeError
from engine.model import FINAL, Attempt, Failure, Status

STATUS_HEADER = "Mesh-Status"
WORKFLOW_HEADER = "Mesh-Workflow"
CREATED_HEADER = "Mesh-Created-At"
RUN_HEADER = "Mesh-Run"

MAX_VALUE_BYTES = 16 * 1024
"""A journaled request or response larger than this is left out of the final record (E-D5)."""
MAX_JOURNAL_BYTES = 512 * 1024
"""What a final record's journal may take; past it the newest entries are kept (E-D5)."""
MAX_TEXT_CHARS = 4096
"""Characters of an error's message and traceback that are kept where the whole does not fit."""

_ENTRY_OVERHEAD = 160
"""Bytes of an entry beside its texts and values: tags, lengths, numbers, two times. Rounded up."""
_NS = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class JournalEntry:
    """What a step asked for and got, as the final record keeps it."""

    step: int
    type: str
    """`HelloService.SayHello` for a call, else `kind:name`."""
    request: bytes = b""
    request_type: str = ""
    response: bytes = b""
    response_type: str = ""
    error: Failure | None = None
    started_ns: int = 0
    completed_ns: int = 0
    attempts: Sequence[Attempt] = ()
    attempt_count: int = 0
    elided: bool = False
    """A value was over MAX_VALUE_BYTES and is left out."""
    sequence: int = 0
    """Of the deciding entry in the journal stream."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Something that a run waits for."""

    kind: str
    name: str = ""
    since_ns: int = 0
    due_ns: int = 0
    reason: str = ""
    step: int = 0


@dataclass(slots=True)
class Record:
    """One invocation as last recorded. The fields below `incarnation` are the protocol's own.

    Mutable, for the one that owns the run; everybody else treats it as a value.
    """

    invocation_id: str
    workflow: str
    status: str
    input: bytes = b""
    input_type: str = ""
    result: bytes = b""
    result_type: str = ""
    error: Failure | None = None
    attempts: int = 1
    created_ns: int = 0
    started_ns: int = 0
    updated_ns: int = 0
    completed_ns: int = 0
    due_ns: int = 0
    partition_key: str = ""
    parent_id: str = ""
    priority: int = 0
    journal: Sequence[JournalEntry] = ()
    journal_truncated: bool = False
    waiting_on: Sequence[Wait] = ()
    incarnation: str = ""
    run: int = 1
    """The fencing token: rises by one with each claim."""
    owner: str = ""
    contested: bool = False
    strikes: int = 0
    claim_seq: int = 0
    seen_seq: int = 0
    tail_seq: int = 0
    end_seq: int = 0
    command_seq: int = 0
    input_digest: bytes = field(default=b"", repr=False)

    @property
    def is_final(self) -> bool:
        """Whether nothing runs any more."""
        return self.status in FINAL

    def to_bytes(self) -> bytes:
        """The stored form."""
        return _message(self).SerializeToString()

    @classmethod
    def from_bytes(cls, data: bytes, *, journal: bool = True) -> "Record":
        """Read the stored form; without the journal where nobody will look at it.

        Raises DecodeError for bytes that are no record.
        """
        return _record(_parsed(data), journal)


def record_headers(record: Record, expected_revision: int, message_id: str) -> bytes:
    """The header block of a write of a record: by compare-and-set, and at most once.

    `expected_revision` is the sequence of the record's last write, 0 where there is none.
    `message_id`, random for each write and kept over its retries, keeps a copy of the write that
    comes late from creating the record again after it was purged (protocol H6).
    """
    return (
        f"NATS/1.0\r\n{STATUS_HEADER}: {record.status}\r\n{WORKFLOW_HEADER}: {record.workflow}\r\n"
        f"{CREATED_HEADER}: {rfc3339(record.created_ns)}\r\n{RUN_HEADER}: {record.run}\r\n"
        f"Nats-Expected-Last-Subject-Sequence: {expected_revision}\r\n"
        f"Nats-Msg-Id: {message_id}\r\n\r\n"
    ).encode()


class Outcome(NamedTuple):
    """How a record says that the run ended, if it did: what whoever waits for a result reads."""

    status: str
    workflow: str
    result: bytes
    result_type: str
    error: Failure | None


def read_outcome(data: bytes) -> Outcome:
    """The outcome in a record's stored form; a seventh of the cost of the whole. Raises DecodeError."""
    message = _parsed(data)
    return Outcome(
        message.status,
        message.handler,
        message.result,
        message.result_type,
        _failure(message.error) if message.status == Status.FAILED else None,
    )


def input_digest(workflow: str, partition_key: str, input_type: str, data: bytes) -> bytes:
    """What decides whether two submissions of one id ask for the same."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (workflow.encode(), partition_key.encode(), input_type.encode()):
        digest.update(len(part).to_bytes(4, "big"))
        digest.update(part)
    digest.update(data)
    return digest.digest()


# --- what fits


def fit_record(record: Record, max_bytes: int) -> Record:
    """The record, with as much of its journal as `max_bytes` (of its stored form) and E-D5 allow.

    Values over MAX_VALUE_BYTES are left out, then the oldest entries; if the record is too large
    without a journal, the texts of its error are shortened. The record given is not changed.
    Raises PayloadTooLargeError if input and result alone do not fit.
    """
    budget = min(MAX_JOURNAL_BYTES, max_bytes - _bound(record))
    for entry in record.journal:
        budget -= _entry_bound(entry)
        if len(entry.request) > MAX_VALUE_BYTES or len(entry.response) > MAX_VALUE_BYTES:
            budget = -1
    return record if budget >= 0 else _shrunk(record, max_bytes)


def _shrunk(record: Record, max_bytes: int) -> Record:
    """`fit_record` where a bound is exceeded: by the exact sizes."""
    bare = replace(record, journal=(), journal_truncated=bool(record.journal))
    size = len(bare.to_bytes())
    if size > max_bytes and bare.error is not None:
        bare.error = _shorten(bare.error)
        size = len(bare.to_bytes())
    if size > max_bytes:
        raise PayloadTooLargeError(f"input and result of {record.invocation_id!r}", size, max_bytes)
    kept = _newest(record.journal, min(MAX_JOURNAL_BYTES, max_bytes - size))
    return replace(bare, journal=kept, journal_truncated=len(kept) < len(record.journal))


def _newest(journal: Sequence[JournalEntry], budget: int) -> list[JournalEntry]:
    """The newest entries whose stored forms take at most `budget` bytes together."""
    kept: list[JournalEntry] = []
    for whole in reversed(journal):
        entry = _elide(whole)
        size = durable_pb2.JournalEntry(**_entry_fields(entry)).ByteSize()
        budget -= size + 2 + (size.bit_length() + 6) // 7  # the field's tag and length
        if budget < 0:
            break
        kept.append(entry)
    return kept[::-1]


def _elide(entry: JournalEntry) -> JournalEntry:
    big_request = len(entry.request) > MAX_VALUE_BYTES
    big_response = len(entry.response) > MAX_VALUE_BYTES
    if not (big_request or big_response):
        return entry
    return replace(
        entry,
        request=b"" if big_request else entry.request,
        response=b"" if big_response else entry.response,
        elided=True,
    )


def _shorten(error: Failure) -> Failure:
    half = MAX_TEXT_CHARS // 2

    def cut(text: str) -> str:
        return text if len(text) <= MAX_TEXT_CHARS else f"{text[:half]} … {text[-half:]}"

    return replace(error, message=cut(error.message), traceback=cut(error.traceback), details=b"")


def _bound(record: Record) -> int:
    """At least the size of the record without its journal: cheap, for what nearly always fits."""
    texts = 4 * (len(record.partition_key) + len(record.input_type) + len(record.result_type))
    waits = sum(128 + 4 * (len(wait.name) + len(wait.reason)) for wait in record.waiting_on)
    values = len(record.input) + len(record.result)
    return 1024 + texts + waits + values + _failure_bound(record.error)


def _entry_bound(entry: JournalEntry) -> int:
    """At least the size of an entry's stored form."""
    size = _ENTRY_OVERHEAD + len(entry.request) + len(entry.response)
    size += 4 * (len(entry.type) + len(entry.request_type) + len(entry.response_type))
    size += _failure_bound(entry.error)
    for attempt in entry.attempts:
        size += 64 + _failure_bound(attempt.failure)
    return size


def _failure_bound(error: Failure | None) -> int:
    if error is None:
        return 0
    texts = len(error.type) + len(error.message) + len(error.code) + len(error.traceback)
    return 64 + 4 * (texts + len(error.name)) + len(error.details)


# --- to and from messages


def _message(record: Record) -> durable_pb2.ExecutionState:
    # Nested messages as dicts, without what is empty: measured 8 us for a run of three steps, 13 us
    # with all fields, 25 us with messages.
    fields: dict[str, Any] = {
        "invocation_id": record.invocation_id,
        "handler": record.workflow,
        "status": record.status,
        "input": record.input,
        "input_type": record.input_type,
        "result": record.result,
        "result_type": record.result_type,
        "attempts": record.attempts,
        "created_at": _time(record.created_ns),
        "started_at": _time(record.started_ns),
        "updated_at": _time(record.updated_ns),
        "journal": [_entry_fields(entry) for entry in record.journal],
        "run": _run_fields(record),
    }
    if record.completed_ns:
        fields["completed_at"] = _time(record.completed_ns)
    if record.error is not None:
        fields["error"] = _error_fields(record.error)
    if record.waiting_on:
        fields["waiting_on"] = [_wait_fields(wait) for wait in record.waiting_on]
    if record.due_ns:
        fields["due_at"] = _time(record.due_ns)
    if record.partition_key:
        fields["partition_key"] = record.partition_key
    if record.parent_id:
        fields["parent_id"] = record.parent_id
    if record.priority:
        fields["priority"] = record.priority
    if record.journal_truncated:
        fields["journal_truncated"] = True
    return durable_pb2.ExecutionState(**fields)


def _run_fields(record: Record) -> dict[str, Any]:
    return {
        "incarnation": record.incarnation,
        "number": record.run,
        "owner": record.owner,
        "contested": record.contested,
        "strikes": record.strikes,
        "claim_seq": record.claim_seq,
        "seen_seq": record.seen_seq,
        "tail_seq": record.tail_seq,
        "end_seq": record.end_seq,
        "command_seq": record.command_seq,
        "input_digest": record.input_digest,
    }


def _entry_fields(entry: JournalEntry) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "step_number": entry.step,
        "step_type": entry.type,
        "request": entry.request,
        "response": entry.response,
        "request_type": entry.request_type,
        "response_type": entry.response_type,
        "started_at": _time(entry.started_ns),
        "completed_at": _time(entry.completed_ns),
        "attempt_count": entry.attempt_count,
        "sequence": entry.sequence,
    }
    if entry.error is not None:
        fields["error"] = _error_fields(entry.error)
    if entry.attempts:
        fields["attempts"] = [_attempt_fields(attempt) for attempt in entry.attempts]
    if entry.elided:
        fields["elided"] = True
    return fields


def _attempt_fields(attempt: Attempt) -> dict[str, Any]:
    return {
        "number": attempt.number,
        "started_at": _time(attempt.started_ns),
        "completed_at": _time(attempt.completed_ns),
        "error": _error_fields(attempt.failure),
    }


def _wait_fields(wait: Wait) -> dict[str, Any]:
    return {
        "kind": wait.kind,
        "name": wait.name,
        "since": _time(wait.since_ns),
        "due_at": _time(wait.due_ns),
        "reason": wait.reason,
        "step": wait.step,
    }


def _error_fields(error: Failure) -> dict[str, Any]:
    return {
        "type": error.type,
        "message": _storable(error.message),
        "code": error.code,
        "traceback": _storable(error.traceback),
        "step": error.step,
        "name": error.name,
        "attempts": error.attempts,
        "details": error.details,
    }


def _storable(text: str) -> str:
    """An exception's text may hold lone surrogates, which no string of a message may."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _time(ns: int) -> dict[str, int] | None:
    if not ns:
        return None
    return {"seconds": ns // _NS, "nanos": ns % _NS}


def _parsed(data: bytes) -> durable_pb2.ExecutionState:
    try:
        return durable_pb2.ExecutionState.FromString(data)
    except ProtobufDecodeError as error:
        raise DecodeError("record", "mesh.durable.ExecutionState", str(error)) from error


def _record(message: durable_pb2.ExecutionState, journal: bool) -> Record:
    run = message.run
    return Record(
        invocation_id=message.invocation_id,
        workflow=message.handler,
        status=message.status,
        input=message.input,
        input_type=message.input_type,
        result=message.result,
        result_type=message.result_type,
        error=_failure(message.error) if message.HasField("error") else None,
        attempts=message.attempts,
        created_ns=_ns(message, "created_at"),
        started_ns=_ns(message, "started_at"),
        updated_ns=_ns(message, "updated_at"),
        completed_ns=_ns(message, "completed_at"),
        due_ns=_ns(message, "due_at"),
        partition_key=message.partition_key,
        parent_id=message.parent_id,
        priority=message.priority,
        journal=tuple(map(_entry, message.journal)) if journal else (),
        journal_truncated=message.journal_truncated,
        waiting_on=tuple(map(_wait, message.waiting_on)),
        incarnation=run.incarnation,
        run=run.number,
        owner=run.owner,
        contested=run.contested,
        strikes=run.strikes,
        claim_seq=run.claim_seq,
        seen_seq=run.seen_seq,
        tail_seq=run.tail_seq,
        end_seq=run.end_seq,
        command_seq=run.command_seq,
        input_digest=run.input_digest,
    )


def _entry(message: durable_pb2.JournalEntry) -> JournalEntry:
    return JournalEntry(
        step=message.step_number,
        type=message.step_type,
        request=message.request,
        request_type=message.request_type,
        response=message.response,
        response_type=message.response_type,
        error=_failure(message.error) if message.HasField("error") else None,
        started_ns=_ns(message, "started_at"),
        completed_ns=_ns(message, "completed_at"),
        attempts=tuple(map(_attempt, message.attempts)),
        attempt_count=message.attempt_count,
        elided=message.elided,
        sequence=message.sequence,
    )


def _attempt(message: durable_pb2.Attempt) -> Attempt:
    return Attempt(
        number=message.number,
        started_ns=_ns(message, "started_at"),
        completed_ns=_ns(message, "completed_at"),
        failure=_failure(message.error),
    )


def _wait(message: durable_pb2.Wait) -> Wait:
    return Wait(
        kind=message.kind,
        name=message.name,
        since_ns=_ns(message, "since"),
        due_ns=_ns(message, "due_at"),
        reason=message.reason,
        step=message.step,
    )


def _failure(message: durable_pb2.Error) -> Failure:
    return Failure(
        type=message.type,
        message=message.message,
        code=message.code,
        traceback=message.traceback,
        step=message.step if message.HasField("step") else None,
        name=message.name,
        attempts=message.attempts,
        details=message.details,
    )


def _ns(message: Any, name: str) -> int:
    if not message.HasField(name):
        return 0
    time = getattr(message, name)
    return int(time.seconds * _NS + time.nanos)


def failure_to_bytes(failure: Failure) -> bytes:
    """The stored form of a failure alone: the body of an owner's entry that records one."""
    return durable_pb2.Error(**_error_fields(failure)).SerializeToString()


def failure_from_bytes(data: bytes) -> Failure:
    """The reverse of `failure_to_bytes`. Raises DecodeError."""
    try:
        return _failure(durable_pb2.Error.FromString(data))
    except ProtobufDecodeError as error:
        raise DecodeError("entry", "mesh.durable.Error", str(error)) from error


# --- times


def to_datetime(ns: int) -> datetime | None:
    """Aware UTC, to the microsecond; None for no time."""
    if not ns:
        return None
    return _EPOCH + timedelta(microseconds=ns // 1000)


def rfc3339(ns: int) -> str:
    """RFC 3339, UTC, always six digits of a second's fraction: as text, times sort as they do."""
    moment = to_datetime(ns)
    return "" if moment is None else moment.isoformat(timespec="microseconds")[:-6] + "Z"
