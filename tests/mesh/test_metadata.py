"""Metadata and deadlines in headers."""

from __future__ import annotations

import pytest

from mesh import headers, metadata


def through_the_wire(pairs: list[tuple[str, str | bytes]]) -> list[tuple[str, str | bytes]]:
    block = headers.encode(metadata.encode(pairs))
    return [
        pair
        for name, value in headers.parse(block).items()
        for pair in metadata.decode(name.removeprefix(metadata.METADATA_PREFIX), value)
    ]


@pytest.mark.parametrize(
    "pairs",
    [
        [("k", "v")],
        [("k", "")],
        [("k", "a"), ("k", "b"), ("k", "")],
        [("k", "a,b"), ("k", "100%"), ("k", " x "), ("k", "  ")],
        [("k", "ünï\r\nNats-Rollup: all\x00\x7f")],
        [("k-bin", b"\xab\xab\x00"), ("k-bin", b""), ("k-bin", bytes(range(256)))],
        [("a", "1"), ("b_.-9", "2"), ("a-bin", b"3")],
    ],
)
def test_every_value_survives_in_order(pairs: list[tuple[str, str | bytes]]) -> None:
    assert through_the_wire(pairs) == pairs


@pytest.mark.parametrize("key", ["", "Upper", "with space", "a:b", "a\r\nb", "é", "grpc-status", "grpc-x"])
def test_keys_that_grpc_does_not_allow_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        metadata.encode([(key, "v")])


def test_status_details_are_allowed_in_trailers_only() -> None:
    pair = [(metadata.STATUS_DETAILS_KEY, b"\x01")]
    assert metadata.encode(pair, metadata.TRAILER_PREFIX) == [("Grpc-Trailer-grpc-status-details-bin", "AQ==")]
    with pytest.raises(ValueError, match="gRPC's own"):
        metadata.encode(pair)


def test_control_headers_of_nats_are_only_ever_name_spaced() -> None:
    (name, _), *_ = metadata.encode([("nats-rollup", "all")])
    assert name == "Grpc-Metadata-nats-rollup"


def test_metadata_over_16_kib_is_too_large() -> None:
    metadata.encode([("k", "x" * 16_000)])
    with pytest.raises(metadata.MetadataTooLargeError, match="16384"):
        metadata.encode([("k", "x" * 16_384)])


def test_values_are_text_or_bytes() -> None:
    with pytest.raises(TypeError, match="int"):
        metadata.encode([("k", 1)])


def test_bad_base64_is_left_out() -> None:
    assert metadata.decode("k-bin", "AQ==,!!!,Ag") == [("k-bin", b"\x01"), ("k-bin", b"\x02")]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1e-9, "1u"),
        (0.05, "50000u"),
        (0.2, "200m"),
        (2, "2000m"),
        (99_998, "99998000m"),
        (99_999, "99999S"),
        (1e6, "1000000S"),
    ],
)
def test_timeout_has_at_most_eight_digits(seconds: float, text: str) -> None:
    assert metadata.encode_timeout(seconds) == text
    assert metadata.decode_timeout(text) >= seconds - 1e-9


@pytest.mark.parametrize("text", ["", "1", "S", "-1S", "1.5S", "123456789S", "1s", "1 S", "1S ", "\u0661S", "1SS"])
def test_any_other_timeout_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Grpc-Timeout"):
        metadata.decode_timeout(text)


@pytest.mark.parametrize("text", ["", "plain", "100% ünï\r\n\x00", " edges "])
def test_status_message_survives_one_header_line(text: str) -> None:
    block = headers.encode([("Grpc-Message", metadata.encode_message(text))])
    assert metadata.decode_message(headers.parse(block)["Grpc-Message"]) == text
