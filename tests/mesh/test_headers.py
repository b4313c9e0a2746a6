"""Header blocks: strict in writing, tolerant in reading."""

from __future__ import annotations

import random

import pytest

from mesh import headers


def test_what_is_written_is_read() -> None:
    pairs = {"A": "1", "Nats-Msg-Id": "x:y", "X_1.2-3": "é \u2028 ü", "Empty": ""}
    assert headers.parse(headers.encode(pairs.items())) == pairs


def test_no_pairs_are_no_block() -> None:
    assert headers.encode([]) == b""
    assert headers.parse(b"") == {}
    assert headers.status(b"") == 0


def test_value_cannot_begin_a_header_of_its_own() -> None:
    block = headers.encode([("A", "1\r\nNats-Rollup: all\nB: 2\r"), ("C", "3")])
    assert headers.parse(block) == {"A": "1  Nats-Rollup: all B: 2", "C": "3"}


@pytest.mark.parametrize("key", ["", " ", "a b", "a:b", "a\r\nb", "é", "a\x00", "(x)"])
def test_key_that_is_no_token_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="header key"):
        headers.encode([(key, "v")])


def test_first_of_repeated_keys_counts_and_lines_without_colon_do_not() -> None:
    block = b"NATS/1.0\r\nK: first\r\nnothing\r\n: no key\r\nK: second\r\nk: other\r\n\r\n"
    assert headers.parse(block) == {"K": "first", "k": "other"}


@pytest.mark.parametrize(
    ("block", "status", "description"),
    [
        (b"NATS/1.0 503\r\n\r\n", 503, ""),
        (b"NATS/1.0 404 No Messages\r\n\r\n", 404, "No Messages"),
        (b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 1\r\n\r\n", 100, "Idle Heartbeat"),
        (b"NATS/1.0\r\nStatus: 503\r\n\r\n", 0, ""),
        (b"NATS/1.0 5x3\r\n\r\n", 0, ""),
        (b"NATS/1.0 50", 0, ""),
        (b"NATS/2.0 503\r\n\r\n", 0, ""),
        (b"garbage 503", 0, ""),
    ],
)
def test_inline_status(block: bytes, status: int, description: str) -> None:
    assert (headers.status(block), headers.description(block)) == (status, description)
    assert headers.is_no_responders(block) == (status == headers.NO_RESPONDERS)


def test_reading_never_raises() -> None:
    draw = random.Random(1)
    for _ in range(2000):
        block = draw.choice([b"", b"NATS/1.0", b"NATS/1.0 "]) + draw.randbytes(draw.randrange(60))
        headers.parse(block)
        headers.status(block)
        headers.description(block)
