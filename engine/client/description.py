"""What `describe()` answers: an invocation as it stands, from its record, its command and its journal.

The names of the fields are the same in Python, in `--json` and over HTTP (E-D3, E-D4).
"""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from engine import values
from engine.client.lookup import Queued
from engine.model import Attempt, Failure, Kind, Status
from engine.records import JournalEntry, Record, Wait, to_datetime

DEFAULT_PRIORITY = 3
BASE64 = "base64"


class ErrorInfo(msgspec.Struct, frozen=True):
    """An exception: `type` is its class's qualified name, `message` its text, `code` a gRPC code's name or None."""

    type: str
    message: str
    code: str | None
    traceback: str


class AttemptInfo(msgspec.Struct, frozen=True):
    """An attempt of a step that was delivered and failed."""

    number: int
    started_at: datetime | None
    completed_at: datetime | None
    error: ErrorInfo


class JournalItem(msgspec.Struct, frozen=True):
    """A step. `encoding` is "base64" where `request` or `response` has no JSON form here; else there is none."""

    step: int
    kind: str
    name: str
    request: Any
    response: Any
    error: ErrorInfo | None
    attempts: list[AttemptInfo]
    attempt_count: int
    started_at: datetime | None
    completed_at: datetime | None
    encoding: str | UnsetType = UNSET
    elided: bool | UnsetType = UNSET
    """A value was too large to be kept in the record."""


class WaitInfo(msgspec.Struct, frozen=True):
    """What a run waits for, since when, until when, and why it takes long where that is known."""

    kind: str
    name: str
    since: datetime | None
    due_at: datetime | None
    reason: str | None


class Description(msgspec.Struct, frozen=True):
    """An invocation. Times are aware UTC; `attempts` is 0 until a processor has taken it up.

    `served` says whether a processor that knows the workflow is connected.
    """

    invocation_id: str
    workflow: str
    status: str
    input: Any
    result: Any
    error: ErrorInfo | None
    attempts: int
    created_at: datetime | None
    started_at: datetime | None
    updated_at: datetime | None
    completed_at: datetime | None
    due_at: datetime | None
    partition_key: str | None
    parent_id: str | None
    priority: int
    search_attributes: dict[str, Any]
    served: bool
    waiting_on: list[WaitInfo]
    journal: list[JournalItem]
    encoding: str | UnsetType = UNSET
    """As of a journal item, of `input` and `result`."""
    journal_truncated: bool | UnsetType = UNSET
    """Only the newest steps are kept."""

    def to_dict(self) -> dict[str, Any]:
        """The document that `--json` prints and HTTP answers: builtins, times as RFC 3339 with microseconds."""
        document: dict[str, Any] = _plain(msgspec.to_builtins(self, builtin_types=(datetime,)))
        return document


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value


# --- from what is stored


def of_record(record: Record, steps: Iterable[JournalEntry], served: bool) -> Description:
    """An invocation with a record; `steps` are the record's own once it is final, else read from the journal."""
    (data, result), encoded = _shown((record.input, record.input_type), (record.result, record.result_type))
    return Description(
        invocation_id=record.invocation_id,
        workflow=record.workflow,
        status=record.status,
        input=data,
        result=result,
        error=None if record.error is None else _error(record.error),
        attempts=record.attempts,
        created_at=to_datetime(record.created_ns),
        started_at=to_datetime(record.started_ns),
        updated_at=to_datetime(record.updated_ns),
        completed_at=to_datetime(record.completed_ns),
        due_at=to_datetime(record.due_ns),
        partition_key=record.partition_key or None,
        parent_id=record.parent_id or None,
        priority=record.priority or DEFAULT_PRIORITY,
        search_attributes={},
        served=served,
        waiting_on=[_wait(wait) for wait in record.waiting_on],
        journal=[_item(step) for step in sorted(steps, key=lambda step: step.step)],
        encoding=BASE64 if encoded else UNSET,
        journal_truncated=True if record.journal_truncated else UNSET,
    )


def of_queued(invocation: str, queued: Queued, steps: Iterable[JournalEntry], served: bool) -> Description:
    """An invocation that has no record yet: it waits, or has begun less than a second ago."""
    command = queued.command
    record = Record(
        invocation,
        queued.workflow,
        Status.PENDING,
        input=command.input,
        input_type=command.input_type,
        attempts=0,
        created_ns=queued.time_ns,
        updated_ns=queued.time_ns,
        partition_key=command.partition_key,
    )
    return of_record(record, steps, served)


def _item(step: JournalEntry) -> JournalItem:
    kind, colon, name = step.type.partition(":")
    if not colon:
        kind, name = Kind.CALL, step.type
    (request, response), encoded = _shown((step.request, step.request_type), (step.response, step.response_type))
    return JournalItem(
        step=step.step,
        kind=kind,
        name=name,
        request=request,
        response=response,
        error=None if step.error is None else _error(step.error),
        attempts=[_attempt(attempt) for attempt in step.attempts],
        attempt_count=step.attempt_count,
        started_at=to_datetime(step.started_ns),
        completed_at=to_datetime(step.completed_ns),
        encoding=BASE64 if encoded else UNSET,
        elided=True if step.elided else UNSET,
    )


def _shown(*payloads: tuple[bytes, str]) -> tuple[list[Any], bool]:
    """Values as JSON can carry them, and whether one of them is base64."""
    shown = [values.to_json(data, type_) if data or type_ else (None, False) for data, type_ in payloads]
    return [value for value, _ in shown], any(encoded for _, encoded in shown)


def _error(failure: Failure) -> ErrorInfo:
    return ErrorInfo(failure.type, failure.message, failure.code or None, failure.traceback)


def _attempt(attempt: Attempt) -> AttemptInfo:
    started, completed = to_datetime(attempt.started_ns), to_datetime(attempt.completed_ns)
    return AttemptInfo(attempt.number, started, completed, _error(attempt.failure))


def _wait(wait: Wait) -> WaitInfo:
    since, due = to_datetime(wait.since_ns), to_datetime(wait.due_ns)
    return WaitInfo(wait.kind, wait.name, since, due, wait.reason or None)


# --- a journal that lacks something


def lacks_something(record: Record) -> bool:
    """Whether a final record had no room for all of its journal: the slots are still there then."""
    return record.journal_truncated or any(step.elided for step in record.journal)


def completed_by(record: Record, slots: Iterable[JournalEntry]) -> list[JournalEntry]:
    """A final record's journal with what its slots have and it lacks; where both have something, it is right."""
    steps = {step.step: step for step in slots}
    for step in record.journal:
        slot = steps.get(step.step)
        if step.elided and slot is not None and not step.response and slot.response:
            steps[step.step] = replace(step, response=slot.response, elided=not step.request)
        else:
            steps[step.step] = step
    return [step for _, step in sorted(steps.items())]
