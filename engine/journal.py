"""The journal of a run: slots, entries, digests and what an entry means. Pure.

A slot is written once: by the service whose answer it is, or by the run's owner. What decides a step is the first
success, terminal failure or "gave up" in attempt order, so a late answer changes nothing.
"""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b

import grpc

from engine import names, records
from engine.errors import DecodeError
from engine.model import Entry, Failure, Kind, Mark, Step
from mesh import headers as header_block
from mesh import metadata, wire

TYPE_HEADER = "Mesh-Type"
"""Content type of a value that the owner of a run wrote."""

NO_STEP = -1
"""The step of an entry that belongs to none."""

_KEPT_HEADERS = frozenset({"content-type", "mesh-entry", "mesh-type", "nats-service-error", "nats-service-error-code"})
_KEPT_PREFIXES = ("grpc-",)


def digest(kind: str, *parts: bytes) -> str:
    """64 bits over what a step asks for: a replay that asks for something else is noticed by it."""
    hasher = blake2b(kind.encode(), digest_size=8)
    for part in parts:
        hasher.update(len(part).to_bytes(8, "big"))
        hasher.update(part)
    return hasher.hexdigest()


def read_entry(subject: str, data: bytes, block: bytes) -> Entry | None:
    """A message of the journal as read or republished, as an entry; None where its subject is no slot.

    Sequence and time are the server's words in its header block.
    """
    sequence, time_ns = int(field(block, b"Nats-Sequence")), parse_time(field(block, b"Nats-Time-Stamp"))
    return read_stored(subject, sequence, time_ns, data, block)


def read_stored(subject: str, sequence: int, time_ns: int, data: bytes, block: bytes) -> Entry | None:
    """The same where the server tells sequence and time apart from the message."""
    slot = names.parse_slot(subject)
    if slot is None:
        return _read_inbox(subject, sequence, time_ns, data)
    mark = type_ = ""
    if b"Mesh-" in block:
        found = header_block.parse(block)
        mark, type_ = found.get(Mark.HEADER, ""), found.get(TYPE_HEADER, "")
    return Entry(
        sequence,
        time_ns,
        slot.step,
        slot.attempt,
        slot.kind,
        slot.digest,
        slot.name,
        mark,
        type_,
        data,
        block,
    )


def _read_inbox(subject: str, sequence: int, time_ns: int, data: bytes) -> Entry | None:
    number = names.parse_inbox(subject)
    if number is None:
        return None
    return Entry(sequence, time_ns, NO_STEP, number, Kind.INBOX, "", "", Mark.VALUE, "", data)


def is_error(block: bytes) -> bool:
    """Whether an answer's headers may say that it is an error: cheap, and never wrong where it says no."""
    lower = block.lower()
    return b"nats-service-error" in lower or b"grpc-status" in lower


def entry_headers(mark: str, content_type: str = "") -> bytes:
    """The header block of an entry that the owner writes."""
    pairs = [(Mark.HEADER, mark)]
    if content_type:
        pairs.append((TYPE_HEADER, content_type))
    return header_block.encode(pairs)


def safe_headers(block: bytes) -> bytes:
    """Of an answer's headers those that may be stored: JetStream obeys some, and a service chooses them."""
    kept = (
        (key, value)
        for key, value in header_block.parse(block).items()
        if key.lower() in _KEPT_HEADERS or key.lower().startswith(_KEPT_PREFIXES)
    )
    return header_block.encode(kept)


@lru_cache(maxsize=256)
def _minute_ns(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000_000


def parse_time(text: str) -> int:
    """Nanoseconds since 1970 of a server's `2026-11-24T12:00:00.123456789Z`."""
    return _minute_ns(text[:16]) + int(text[17:19]) * 1_000_000_000 + int((text[20:-1] or "0").ljust(9, "0")[:9])


def field(block: bytes, key: bytes) -> str:
    """One header's last value, found without reading the others; `""` where it is not there.

    The last: what the server says stands behind whatever a service said of the same name.
    """
    start = block.rfind(b"\r\n" + key + b":")
    if start < 0:
        return ""
    start += len(key) + 3
    return block[start : block.find(b"\r\n", start)].decode("utf-8", "replace").strip()


def decode_failure(data: bytes) -> Failure:
    """The failure in an owner's entry; whatever stands there, something readable comes out."""
    try:
        return records.failure_from_bytes(data)
    except DecodeError:
        return Failure("UnknownError", "the recorded error cannot be read")


def answer_failure(outcome: wire.Outcome, block: bytes) -> Failure:
    """A service's error answer as a failure; `details` is its header block where that has trailing metadata."""
    details = safe_headers(block) if outcome.trailing_metadata else b""
    return Failure(outcome.code.name, outcome.details, outcome.code.name, details=details)


def trailing_metadata(failure: Failure) -> metadata.Pairs:
    """The trailing metadata that `answer_failure` kept."""
    return wire.outcome(b"", failure.details).trailing_metadata if failure.details else ()


def is_retried(outcome: wire.Outcome, retries_code: Callable[[grpc.StatusCode], bool]) -> bool:
    """Whether a service's error answer is tried again: by its gRPC status, by the number only where there is none."""
    if outcome.has_grpc_status or not outcome.http_code:
        return retries_code(outcome.code)
    number = outcome.http_code
    return number in (408, 429) or (number >= 500 and number != 501)


def journal_entries(steps: Iterable[Step]) -> list[records.JournalEntry]:
    """The steps of a run as the record's journal shows them."""
    return [_journal_entry(step) for step in steps]


def _journal_entry(step: Step) -> records.JournalEntry:
    call = step.call
    return records.JournalEntry(
        step=step.number,
        type=step.title,
        request=call.request if call is not None else b"",
        request_type=call.request_type if call is not None else "",
        response=step.response,
        response_type=step.response_type,
        error=step.failure,
        started_ns=step.issued_ns,
        completed_ns=step.completed_ns,
        attempts=step.failures,
        attempt_count=step.attempt + step.undelivered,
        sequence=step.sequence,
    )
