"""The NATS header block, as bytes, to and from pairs of strings (ADR-4). Pure.

A block is what stands between the control line and the payload of an `HPUB` or `HMSG`:

    NATS/1.0[ <status>[ <description>]]\r\n
    Key: value\r\n
    \r\n

Reading is tolerant, since anybody may write a header: what cannot be read is left out, nothing raises.
Writing is strict, since what we write is stored for ever.
"""

import re
from collections.abc import Iterable

VERSION_LINE = b"NATS/1.0"
NO_RESPONDERS = 503
"""Inline status of the server's answer to a request whose subject nobody subscribes to."""

_KEY = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_NEWLINES = str.maketrans({"\r": " ", "\n": " "})


def encode(pairs: Iterable[tuple[str, str]]) -> bytes:
    """The whole block for these pairs; `b""` when there are none.

    Line breaks in a value become spaces, so that a value can never start a header of its own.
    Raises ValueError for a key that is not an HTTP token.
    """
    lines = [VERSION_LINE.decode()]
    for key, value in pairs:
        if not _KEY.fullmatch(key):
            raise ValueError(f"header key {key!r} is not a token of letters, digits and -_.")
        lines.append(f"{key}: {value.translate(_NEWLINES).strip()}")
    if len(lines) == 1:
        return b""
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def parse(block: bytes) -> dict[str, str]:
    """The pairs of a block; of a repeated key the first value. Lines without a colon are left out. Never raises."""
    if not block:
        return {}
    found: dict[str, str] = {}
    for line in block.split(b"\r\n")[1:]:
        key, colon, value = line.partition(b":")
        if colon and key:
            found.setdefault(key.decode("utf-8", "replace"), value.decode("utf-8", "replace").strip())
    return found


def status(block: bytes) -> int:
    """The inline status that a server sends (503 no responders, 404, 408, 100 heartbeat …), else 0."""
    if len(block) < 12 or block[8:9] != b" " or not block.startswith(VERSION_LINE):
        return 0
    digits = block[9:12]
    return int(digits) if digits.isdigit() else 0


def description(block: bytes) -> str:
    """The text behind an inline status, else `""`."""
    line = block.partition(b"\r\n")[0]
    return line[13:].decode("utf-8", "replace").strip() if status(block) else ""


def is_no_responders(block: bytes) -> bool:
    """Whether this is the server's word that nobody subscribes to the request's subject: nothing was delivered."""
    return block.startswith(b"NATS/1.0 503")
