"""Metadata and deadlines <-> header pairs. Pure.

User metadata lives behind a prefix, so that it can never set a NATS control header (M-D4):

    Grpc-Metadata-<key>   of a request; of a reply: initial metadata
    Grpc-Trailer-<key>    trailing metadata of a reply

Values of one key stand in one header, joined by `,`, because most NATS clients keep one value a
key: text percent-encoded (`%`, `,`, controls, non-ASCII, spaces at the ends), `-bin` as base64.
"""

import base64
import binascii
import math
import re
from collections.abc import Iterable, Mapping
from urllib.parse import unquote_to_bytes

METADATA_PREFIX = "Grpc-Metadata-"
TRAILER_PREFIX = "Grpc-Trailer-"
STATUS_DETAILS_KEY = "grpc-status-details-bin"
MAX_METADATA_BYTES = 16_384
"""Of all keys and encoded values of one message (M-D4)."""

Value = str | bytes
Pair = tuple[str, Value]
Pairs = tuple[Pair, ...]

_KEY = re.compile(r"[0-9a-z_.-]+")
_UNSAFE = re.compile(rb"[^\x20-\x24\x26-\x2b\x2d-\x7e]")
_UNSAFE_MESSAGE = re.compile(rb"[^\x20-\x24\x26-\x7e]")
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


class MetadataTooLargeError(ValueError):
    """Metadata over MAX_METADATA_BYTES. The call is RESOURCE_EXHAUSTED."""

    def __init__(self, size: int) -> None:
        super().__init__(f"metadata of {size} bytes is larger than the limit of {MAX_METADATA_BYTES} bytes")


def pairs_of(metadata: object) -> list[Pair]:
    """The (key, value) pairs of what gRPC calls metadata: a sequence of pairs, a mapping, or None."""
    if metadata is None:
        return []
    if isinstance(metadata, Mapping):  # grpc.aio.Metadata is no Mapping: it iterates as pairs
        return list(metadata.items())
    if isinstance(metadata, Iterable):
        return [(key, value) for key, value in metadata]
    raise TypeError(f"metadata is a sequence of (key, value), not {type(metadata).__name__}")


def encode(metadata: object, prefix: str = METADATA_PREFIX) -> list[tuple[str, str]]:
    """Header pairs for this metadata.

    Raises ValueError for a key that gRPC does not allow or keeps for itself, TypeError for a value
    that is neither text nor bytes, MetadataTooLargeError past the limit. Nothing is sent then.
    """
    values: dict[str, list[str]] = {}
    for key, value in pairs_of(metadata):
        _check_key(key, prefix)
        values.setdefault(key, []).append(_encode_value(key, value))
    found = [(prefix + key, ",".join(encoded)) for key, encoded in values.items()]
    size = sum(len(key) - len(prefix) + len(value) for key, value in found)
    if size > MAX_METADATA_BYTES:
        raise MetadataTooLargeError(size)
    return found


def _check_key(key: object, prefix: str) -> None:
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise ValueError(f"metadata key {key!r:.200} is not of lower-case letters, digits and '_.-'")
    if key.startswith("grpc-") and not (prefix == TRAILER_PREFIX and key == STATUS_DETAILS_KEY):
        raise ValueError(f"metadata key {key!r:.200} is gRPC's own: keys may not begin with 'grpc-'")


def _encode_value(key: str, value: object) -> str:
    if isinstance(value, str):
        raw = value.encode()
    elif isinstance(value, bytes):
        raw = value
    else:
        raise TypeError(f"metadata value of {key!r} is {type(value).__name__}, not str or bytes")
    if key.endswith("-bin"):
        return base64.b64encode(raw).decode()
    text = _UNSAFE.sub(_percent, raw).decode()
    if text.startswith(" ") or text.endswith(" "):  # header values are stripped on their way
        inner = text.strip(" ")
        left = len(text) - len(text.lstrip(" "))
        text = "%20" * left + inner + "%20" * (len(text) - left - len(inner))
    return text


def _percent(match: re.Match[bytes]) -> bytes:
    return b"%%%02X" % match.group()[0]


def decode(key: str, header: str) -> list[Pair]:
    """The pairs of one header's value. What is not valid base64 in a `-bin` key is left out."""
    if key.endswith("-bin"):
        found: list[Pair] = []
        for item in header.split(","):
            try:
                found.append((key, _decode_base64(item.strip())))
            except (binascii.Error, ValueError):
                continue
        return found
    return [(key, unquote_to_bytes(item).decode("utf-8", "replace")) for item in header.split(",")]


def _decode_base64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)


def is_key(key: str) -> bool:
    """Whether gRPC allows this key in metadata that we received."""
    return _KEY.fullmatch(key) is not None and (not key.startswith("grpc-") or key == STATUS_DETAILS_KEY)


def encode_message(text: str) -> str:
    """A `Grpc-Message`: percent-encoded as in gRPC, so that exact text survives one header line."""
    encoded = _UNSAFE_MESSAGE.sub(_percent, text.encode("utf-8", "replace")).decode()
    if encoded[:1] == " " or encoded[-1:] == " ":
        encoded = encoded.replace(" ", "%20")
    return encoded


def decode_message(header: str) -> str:
    """The text of a `Grpc-Message`; never raises."""
    return unquote_to_bytes(header).decode("utf-8", "replace") if "%" in header else header


def encode_timeout(seconds: float) -> str:
    """`Grpc-Timeout` for a positive time, rounded up: at most 8 digits and a unit."""
    if seconds < 0.1:
        return f"{max(1, math.ceil(round(seconds * 1e6, 3)))}u"
    if seconds < 99_999:
        return f"{math.ceil(round(seconds * 1e3, 3))}m"
    if seconds < 99_999_999:
        return f"{math.ceil(seconds)}S"
    return f"{min(99_999_999, math.ceil(seconds / 3600))}H"


def decode_timeout(text: str) -> float:
    """Seconds of a `Grpc-Timeout`. Raises ValueError for anything that gRPC's syntax does not have."""
    match = _TIMEOUT.fullmatch(text)
    if match is None:
        raise ValueError(f"Grpc-Timeout {text[:40]!r} is not at most 8 digits and one of H M S m u n")
    return int(match.group(1)) * _UNITS[match.group(2)]
