"""One call's messages: what they say, and what an odd one means."""

from __future__ import annotations

import json

import grpc
import pytest

from mesh import headers, status, wire

Code = grpc.StatusCode


def test_plain_request_and_reply_have_no_header() -> None:
    assert wire.encode_request() == b""
    assert wire.encode_success() == b""
    assert wire.outcome(b"x", b"") == (True, Code.OK, "", (), (), None, False, b"x", "")


def test_request_head_survives() -> None:
    block = wire.encode_request(
        timeout=2, deadline_ms=1234, user_metadata=[("mesh-run", "7"), ("k", "v")], key="k1", call_name="n"
    )
    head = wire.decode_request(block)
    assert (head.timeout, head.deadline_ms, head.key, head.run, head.call_name) == (2.0, 1234, "k1", 7, "n")
    assert head.metadata == (("mesh-run", "7"), ("k", "v"), ("idempotency-key", "k1"))


def test_the_common_block_is_the_same_either_way() -> None:
    quick = wire.encode_request(timeout=2, deadline_ms=1234)
    assert headers.parse(quick) == {"Grpc-Timeout": "2000m", "Mesh-Deadline": "1234"}
    slow = wire.decode_request(quick.replace(b"Grpc", b"grpc"))
    head = wire.decode_request(quick)
    assert (head.timeout, head.deadline_ms, head.run) == (slow.timeout, slow.deadline_ms, slow.run) == (2.0, 1234, -1)


def test_run_number_without_a_key_fences_nothing() -> None:
    assert wire.decode_request(wire.encode_request(user_metadata=[("mesh-run", "7")])).run == -1


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("Grpc-Timeout: soon", Code.INVALID_ARGUMENT),
        ("Mesh-Deadline: -5", Code.INVALID_ARGUMENT),
        ("Content-Type: text/plain", Code.INVALID_ARGUMENT),
        ("Idempotency-Key: k\r\nGrpc-Metadata-mesh-run: x", Code.INVALID_ARGUMENT),
        (f"Idempotency-Key: {'k' * 600}", Code.INVALID_ARGUMENT),
        (f"Grpc-Metadata-a: {'v' * 17_000}", Code.RESOURCE_EXHAUSTED),
        (f"X: {'v' * 40_000}", Code.RESOURCE_EXHAUSTED),
        ("\r\n".join(f"X-{n}: v" for n in range(600)), Code.RESOURCE_EXHAUSTED),
    ],
)
def test_bad_request_headers_are_refused_with_a_code(header: str, code: grpc.StatusCode) -> None:
    with pytest.raises(wire.BadRequestError) as caught:
        wire.decode_request(f"NATS/1.0\r\n{header}\r\n\r\n".encode())
    assert caught.value.code is code


UNREADABLE = [b"NATS/1.0", b"N", b"NATS/1.0\r\nno colon\r\n\r\n", b"\xff\xfe\r\n\r\n", b"NATS/1.0\r\n: v\r\n"]


@pytest.mark.parametrize("block", UNREADABLE)
def test_unreadable_request_headers_say_nothing(block: bytes) -> None:
    head = wire.decode_request(block)
    assert (head.timeout, head.metadata, head.is_json) == (None, (), False)


def test_content_type_in_any_case_and_with_parameters() -> None:
    block = b"NATS/1.0\r\ncontent-type: Application/JSON; charset=utf-8\r\n\r\n"
    assert wire.decode_request(block).is_json


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
def test_failure_is_exact_for_us_and_readable_for_foreigners(code: grpc.StatusCode) -> None:
    text = "nö\nsuch: 100%"
    body, block = wire.encode_failure(code, text, trailing=[("k", "v"), ("k-bin", b"\x00")])
    found = headers.parse(block)
    assert found["Nats-Service-Error"] == "nö such: 100%"
    assert found["Nats-Service-Error-Code"] == str(status.HTTP[code])
    outcome = wire.outcome(body, block)
    assert (outcome.ok, outcome.code, outcome.details, outcome.has_grpc_status) == (False, code, text, True)
    assert outcome.trailing_metadata == (("k", "v"), ("k-bin", b"\x00"))


def test_failure_in_json_has_a_body() -> None:
    body, block = wire.encode_failure(Code.NOT_FOUND, "no", as_json=True)
    assert json.loads(body) == {"code": "NOT_FOUND", "message": "no"}
    assert headers.parse(block)["Content-Type"] == "application/json"


def test_long_or_broken_text_of_a_failure_is_made_to_fit() -> None:
    _, block = wire.encode_failure(Code.UNKNOWN, "x" * 100_000 + "\ud800")
    assert len(block) < 10_000
    assert wire.outcome(b"", block).code is Code.UNKNOWN
    _, block = wire.encode_failure(Code.UNKNOWN, "a\ud800b\x00c")
    assert headers.parse(block)["Nats-Service-Error"] == "a?b c"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        ("400", Code.INVALID_ARGUMENT),
        ("404", Code.NOT_FOUND),
        ("501", Code.UNIMPLEMENTED),
        ("503", Code.UNAVAILABLE),
        ("500", Code.UNKNOWN),
        ("teapot", Code.UNKNOWN),
        ("", Code.UNKNOWN),
    ],
)
def test_foreign_error_is_read_from_its_number(number: str, code: grpc.StatusCode) -> None:
    block = headers.encode([("Nats-Service-Error", "boom"), ("Nats-Service-Error-Code", number)])
    outcome = wire.outcome(b"", block)
    assert (outcome.ok, outcome.code, outcome.details, outcome.has_grpc_status) == (False, code, "boom", False)


def test_no_responders_is_unavailable() -> None:
    outcome = wire.outcome(b"", b"NATS/1.0 503\r\n\r\n")
    assert (outcome.ok, outcome.code, outcome.http_code) == (False, Code.UNAVAILABLE, 503)


@pytest.mark.parametrize("block", [b"NATS/1.0", b"garbage", b"NATS/1.0\r\n\xff\r\n\r\n", b"NATS/1.0\r\n\r\n"])
def test_reply_whose_headers_cannot_be_read_is_unknown(block: bytes) -> None:
    assert wire.outcome(b"x", block).code is Code.UNKNOWN


def test_ok_status_beside_an_error_is_an_error() -> None:
    block = headers.encode([("Grpc-Status", "0"), ("Nats-Service-Error-Code", "404")])
    assert wire.outcome(b"", block).code is Code.NOT_FOUND


def test_reply_headers_come_from_a_fixed_list() -> None:
    """A reply may be stored by JetStream, where headers are orders."""
    blocks = [
        wire.encode_success([("nats-msg-id", "1")], [("nats-rollup", "all")], as_json=True),
        wire.encode_failure(Code.UNKNOWN, "x\r\nNats-TTL: 1s", trailing=[("nats-ttl", "1")])[1],
    ]
    for name in [name for block in blocks for name in headers.parse(block)]:
        assert name.startswith(("Grpc-", "Content-Type", "Nats-Service-Error")), name
