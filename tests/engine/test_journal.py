"""Entries: what the stream holds, whoever wrote it, is read without harm."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import grpc
import pytest

from engine import journal, names
from engine.model import RETRYABLE_CODES, Mark
from engine.names import Names
from mesh import headers, wire

SLOTS = Names().slots("run-1", "incarnation")
SUBJECT = names.slot_subject(SLOTS, 2, 1, "call", "00ff", "Steps%2EA")
STAMPS = b"Nats-Sequence: 7\r\nNats-Time-Stamp: 2026-11-24T12:00:00.5Z\r\n\r\n"
NOON = 1_795_521_600_000_000_000


def test_services_answer_and_owners_entry_are_read() -> None:
    entry = journal.read_entry(SUBJECT, b"x", b"NATS/1.0\r\n" + STAMPS)
    assert entry is not None
    assert (entry.sequence, entry.time_ns, entry.step, entry.attempt) == (7, NOON + 500_000_000, 2, 1)
    assert (entry.kind, entry.digest, entry.mark, entry.type, entry.data) == ("call", "00ff", "", "", b"x")
    written = journal.entry_headers(Mark.VALUE, "application/json").removesuffix(b"\r\n") + STAMPS
    own = journal.read_entry(SUBJECT, b"1", written)
    assert own is not None
    assert (own.mark, own.type) == ("value", "application/json")


def test_anchor_is_no_entry() -> None:
    assert journal.read_entry(Names().anchor(1), b"", b"NATS/1.0\r\n" + STAMPS) is None


@pytest.mark.parametrize(
    ("text", "nanos"),
    [
        ("2026-11-24T12:00:00Z", 0),
        ("2026-11-24T12:00:00.123456789Z", 123_456_789),
        ("2026-11-24T12:00:00.1Z", 100_000_000),
        ("2026-11-24T12:00:59.000000001Z", 59_000_000_001),
    ],
)
def test_times_of_the_server_to_the_nanosecond(text: str, nanos: int) -> None:
    assert journal.parse_time(text) == NOON + nanos
    assert datetime.fromtimestamp(NOON / 1e9, UTC).hour == 12


def test_servers_word_stands_behind_a_services() -> None:
    block = b"NATS/1.0\r\nNats-Sequence: 1\r\nX: Nats-Sequence: 2\r\nNats-Sequence: 7\r\n\r\n"
    assert journal.field(block, b"Nats-Sequence") == "7"
    assert journal.field(block, b"Nats-Time-Stamp") == ""
    assert journal.field(b"", b"K") == ""


def test_digest_tells_parts_apart() -> None:
    assert journal.digest("call", b"ab", b"c") != journal.digest("call", b"a", b"bc")
    assert journal.digest("call", b"a") != journal.digest("run", b"a")
    assert journal.digest("call", b"a") == journal.digest("call", b"a") == "163a25eb3826e905"


def test_headers_that_jetstream_obeys_are_not_kept() -> None:
    block = headers.encode(
        [
            ("Nats-Rollup", "all"),
            ("Nats-TTL", "1s"),
            ("Nats-Msg-Id", "x"),
            ("Nats-Expected-Last-Sequence", "5"),
            ("Nats-Service-Error", "text"),
            ("nats-service-error-code", "500"),
            ("Grpc-Status", "13"),
            ("Grpc-Metadata-key", "value"),
            ("Content-Type", "application/protobuf"),
            ("X-Other", "y"),
        ]
    )
    kept = headers.parse(journal.safe_headers(block))
    assert set(kept) == {
        "Nats-Service-Error", "nats-service-error-code", "Grpc-Status", "Grpc-Metadata-key", "Content-Type",
    }  # fmt: skip
    assert journal.safe_headers(b"") == b""


@pytest.mark.parametrize(
    ("pairs", "error"),
    [
        ([], False),
        ([("Content-Type", "x")], False),
        ([("NATS-SERVICE-ERROR", "x")], True),
        ([("grpc-status", "5")], True),
    ],
)
def test_only_what_says_so_is_an_error(pairs: list[tuple[str, str]], error: bool) -> None:
    assert journal.is_error(headers.encode(pairs)) is error


@pytest.mark.parametrize(
    ("code", "retried"),
    [(400, False), (404, False), (408, True), (429, True), (500, True), (501, False), (503, True), (599, True)],
)
def test_services_without_grpc_status_are_judged_by_the_number(code: int, retried: bool) -> None:
    block = headers.encode([("Nats-Service-Error-Code", str(code)), ("Nats-Service-Error", "text")])
    assert journal.is_retried(wire.outcome(b"", block), lambda found: found in RETRYABLE_CODES) is retried


def test_trailing_metadata_of_a_failure_comes_back() -> None:
    service = {"Nats-Service-Error-Code": "404", "Nats-Service-Error": "no"}
    block = headers.encode({**service, "Grpc-Status": "5", "Grpc-Message": "no", "Grpc-Trailer-key": "value"}.items())
    outcome = wire.outcome(b"", block)
    found = journal.answer_failure(outcome, block)
    assert (found.type, found.code, found.message) == ("NOT_FOUND", "NOT_FOUND", "no")
    assert journal.trailing_metadata(found) == outcome.trailing_metadata
    assert outcome.code is grpc.StatusCode.NOT_FOUND


def test_whatever_stands_in_a_failures_place_is_one() -> None:
    draw = random.Random(5)
    for _ in range(500):
        assert journal.decode_failure(draw.randbytes(draw.randrange(60))).type is not None
