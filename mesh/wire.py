"""Request, reply and failure <-> payload and header block. Pure; the protocol of one unary call.

    request   payload: the message. Headers only where needed:
                Content-Type       application/json, else protobuf
                Grpc-Timeout       time left, gRPC's syntax (M-D3)
                Mesh-Deadline      the same as Unix milliseconds, so that waiting counts
                Idempotency-Key    of an engine step: equal for all attempts
                Mesh-Call          what the caller calls it in questions (`mesh.liveness`)
                Mesh-Stream        opens a session (`mesh.streams`); the caller's keepalive in ms, and window
                Mesh-Rest          of a session: the answer held under this name is what is wanted
                Grpc-Metadata-<k>  user metadata
    reply     payload: the message; headers only for metadata and JSON
    failure   Nats-Service-Error, Nats-Service-Error-Code   ADR-32, for everybody
              Grpc-Status, Grpc-Message                     exact, for our own clients
              Mesh-Rest                                     the answer is too large for one message, and
                                                            held for a moment under this name

A reply may be captured by a JetStream stream, where headers are orders to the store. So replies are
built here alone, of a fixed list of names, and never of anything that a request carried.
"""

import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import grpc

from mesh import codec, headers, metadata, status
from mesh.metadata import Pair, Pairs

CONTENT_TYPE = "Content-Type"
GRPC_TIMEOUT = "Grpc-Timeout"
MESH_DEADLINE = "Mesh-Deadline"
IDEMPOTENCY_KEY = "Idempotency-Key"
MESH_CALL = "Mesh-Call"
MESH_STREAM = "Mesh-Stream"
MESH_REST = "Mesh-Rest"
ERROR = "Nats-Service-Error"
ERROR_CODE = "Nats-Service-Error-Code"
GRPC_STATUS = "Grpc-Status"
GRPC_MESSAGE = "Grpc-Message"
RUN_KEY = "mesh-run"
"""Metadata key of the run number, the fencing token of an engine step (E-C15)."""

MAX_HEADER_BYTES = 32_768
"""Of a received header block; metadata may have half of it."""
MAX_HEADERS = 512
MAX_DETAILS = 4_096
"""Characters of a failure's text that are sent: headers count against `max_payload`."""
MAX_KEY = 512
"""Characters of an idempotency key."""

_STREAM = re.compile(r"([0-9]{1,9})(?: ([0-9]{1,9}))?", re.ASCII)
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")
JSON_HEADERS = headers.encode([(CONTENT_TYPE, codec.JSON)])


class BadRequestError(ValueError):
    """A request that is answered without a handler: `code` and text."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class RequestHead:
    """What the headers of a request say. Every field has a value, also where no header came."""

    __slots__ = (
        "call_name",
        "deadline_ms",
        "is_json",
        "key",
        "metadata",
        "rest",
        "run",
        "stream_ms",
        "timeout",
        "window",
    )

    def __init__(self) -> None:
        self.timeout: float | None = None
        self.deadline_ms: int | None = None
        self.is_json = False
        self.call_name = ""
        self.stream_ms = 0
        """The caller's keepalive in milliseconds, of a request that opens a session; else 0."""
        self.window = 0
        """Of a session: bytes that the answer may be ahead of its reader."""
        self.rest = ""
        self.key = ""
        self.run = -1
        """Run number of an engine step; -1 where the request is none (no key, or no run)."""
        self.metadata: Pairs = ()


EMPTY_HEAD = RequestHead()
"""The head of a request without headers; shared, so never written to."""


def encode_request(
    *,
    timeout: float | None = None,
    deadline_ms: int | None = None,
    user_metadata: object = None,
    content_type: str = "",
    key: str = "",
    call_name: str = "",
    stream_ms: int = 0,
    window: int = 0,
    rest: str = "",
    encoded_metadata: Iterable[tuple[str, str]] = (),
) -> bytes:
    """The header block of a request, `b""` if it needs none. `encoded_metadata` is what `metadata.encode` made.

    Raises ValueError, TypeError or MetadataTooLargeError as `metadata.encode`.
    """
    has_more = user_metadata or content_type or key or call_name or stream_ms or encoded_metadata
    if timeout is not None and deadline_ms is not None and not has_more:
        return _PLAIN_DEADLINE % (metadata.encode_timeout(timeout).encode(), deadline_ms)
    pairs: list[tuple[str, str]] = []
    if timeout is not None:
        pairs.append((GRPC_TIMEOUT, metadata.encode_timeout(timeout)))
    if deadline_ms is not None:
        pairs.append((MESH_DEADLINE, str(deadline_ms)))
    if content_type:
        pairs.append((CONTENT_TYPE, content_type))
    if key:
        pairs.append((IDEMPOTENCY_KEY, key))
    if call_name:
        pairs.append((MESH_CALL, call_name))
    if stream_ms:
        pairs.append((MESH_STREAM, f"{stream_ms} {window}"))
    if rest:
        pairs.append((MESH_REST, rest))
    pairs += encoded_metadata
    if user_metadata:
        pairs += metadata.encode(user_metadata)
    return headers.encode(pairs)


# The block of a call with a timeout and nothing else: most calls. Written and read in one step, it
# costs a third of what the general way does on either side (guarded by `make bench`).
_PLAIN_DEADLINE = b"NATS/1.0\r\nGrpc-Timeout: %b\r\nMesh-Deadline: %d\r\n\r\n"
_READ_PLAIN_DEADLINE = re.compile(
    rb"NATS/1\.0\r\nGrpc-Timeout: ([0-9]{1,8}[HMSmun])\r\nMesh-Deadline: ([0-9]{1,15})\r\n\r\n"
).fullmatch


def decode_request(block: bytes) -> RequestHead:
    """What the header block of a request says. Names in any case; unknown headers are ignored.

    Raises BadRequestError for too many or too large headers, for a Content-Type or timeout that is
    none, and for a run number that is not a number.
    """
    if not block:
        return EMPTY_HEAD
    if plain := _READ_PLAIN_DEADLINE(block):
        head = RequestHead()
        head.timeout, head.deadline_ms = metadata.decode_timeout(plain[1].decode()), int(plain[2])
        return head
    if len(block) > MAX_HEADER_BYTES or block.count(b"\n") > MAX_HEADERS:
        raise BadRequestError(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"headers of {len(block)} bytes: at most {MAX_HEADER_BYTES} bytes and {MAX_HEADERS} headers",
        )
    head = RequestHead()
    user: list[Pair] = []
    size = 0
    for name, value in headers.parse(block).items():
        lower = name.lower()
        if lower.startswith("grpc-metadata-"):
            key = lower[14:]
            size += len(key) + len(value)
            if metadata.is_key(key):
                user += metadata.decode(key, value)
        elif lower in _READERS:
            _READERS[lower](head, value)
    if size > metadata.MAX_METADATA_BYTES:
        raise BadRequestError(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"metadata of {size} bytes is larger than the limit of {metadata.MAX_METADATA_BYTES} bytes",
        )
    _read_engine_metadata(head, user)
    head.metadata = tuple(user)
    return head


def _read_engine_metadata(head: RequestHead, user: list[Pair]) -> None:
    """A step's key is metadata as well; its run number is read from metadata (E-C15)."""
    if not head.key:
        return
    if not any(key == "idempotency-key" for key, _ in user):
        user.append(("idempotency-key", head.key))
    for key, value in user:
        if key == RUN_KEY:
            if not (isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 18):
                raise BadRequestError(grpc.StatusCode.INVALID_ARGUMENT, f"{RUN_KEY} {value!r:.40} is not a number")
            head.run = int(value)


def _read_content_type(head: RequestHead, value: str) -> None:
    try:
        head.is_json = codec.is_json(value)
    except codec.UnknownContentTypeError as error:
        raise BadRequestError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None


def _read_timeout(head: RequestHead, value: str) -> None:
    try:
        head.timeout = metadata.decode_timeout(value)
    except ValueError as error:
        raise BadRequestError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None


def _read_deadline(head: RequestHead, value: str) -> None:
    if not (value.isascii() and value.isdigit() and len(value) <= 15):
        raise BadRequestError(
            grpc.StatusCode.INVALID_ARGUMENT, f"{MESH_DEADLINE} {value[:40]!r} is not Unix milliseconds"
        )
    head.deadline_ms = int(value)


def _read_key(head: RequestHead, value: str) -> None:
    if len(value) > MAX_KEY:
        raise BadRequestError(
            grpc.StatusCode.INVALID_ARGUMENT, f"{IDEMPOTENCY_KEY} is longer than {MAX_KEY} characters"
        )
    head.key = value


def _read_call_name(head: RequestHead, value: str) -> None:
    head.call_name = value[:MAX_KEY]


def _read_stream(head: RequestHead, value: str) -> None:
    match = _STREAM.fullmatch(value)
    if match is None or not int(match[1]):
        text = f"{MESH_STREAM} {value[:40]!r} is not milliseconds and bytes"
        raise BadRequestError(grpc.StatusCode.INVALID_ARGUMENT, text)
    head.stream_ms, head.window = int(match[1]), int(match[2] or 0)


def _read_rest(head: RequestHead, value: str) -> None:
    head.rest = value[:MAX_KEY]


_READERS = {
    "content-type": _read_content_type,
    "grpc-timeout": _read_timeout,
    "mesh-deadline": _read_deadline,
    "idempotency-key": _read_key,
    "mesh-call": _read_call_name,
    "mesh-stream": _read_stream,
    "mesh-rest": _read_rest,
}


def encode_success(initial: object = None, trailing: object = None, *, as_json: bool = False) -> bytes:
    """The header block of a good reply. Raises as `metadata.encode`."""
    pairs = [(CONTENT_TYPE, codec.JSON)] if as_json else []
    if initial:
        pairs += metadata.encode(initial)
    if trailing:
        pairs += metadata.encode(trailing, metadata.TRAILER_PREFIX)
    return headers.encode(pairs)


def encode_failure(
    code: grpc.StatusCode,
    text: str,
    *,
    initial: object = None,
    trailing: object = None,
    as_json: bool = False,
    rest: str = "",
) -> tuple[bytes, bytes]:
    """Payload and header block of a failure (M-D2, M-D5). Raises as `metadata.encode`."""
    text = text.encode("utf-8", "replace").decode()
    if len(text) > MAX_DETAILS:
        text = text[: MAX_DETAILS - 1] + "…"
    pairs = [
        (ERROR, " ".join(_CONTROLS.sub(" ", text).split()) or code.name),
        (ERROR_CODE, str(status.HTTP[code])),
        (GRPC_STATUS, str(status.NUMBERS[code])),
        (GRPC_MESSAGE, metadata.encode_message(text)),
    ]
    if rest:
        pairs.append((MESH_REST, rest))
    body = b""
    if as_json:
        pairs.append((CONTENT_TYPE, codec.JSON))
        body = json.dumps({"code": code.name, "message": text}, ensure_ascii=False).encode()
    if initial:
        pairs += metadata.encode(initial)
    if trailing:
        pairs += metadata.encode(trailing, metadata.TRAILER_PREFIX)
    return body, headers.encode(pairs)


class Outcome(NamedTuple):
    """What a reply means, whoever sent it."""

    ok: bool
    code: grpc.StatusCode
    details: str
    initial_metadata: Pairs
    trailing_metadata: Pairs
    http_code: int | None
    """The number of `Nats-Service-Error-Code`, None where there is none."""
    has_grpc_status: bool
    """Whether the code is the service's own word; if not it was read from the number."""
    data: bytes
    rest: str = ""
    """Of a failure: where the answer waits that was too large for one message."""


def outcome(data: bytes, block: bytes) -> Outcome:
    """What a reply means. Never raises: an odd reply is a failure with a code of its own.

    No responders is UNAVAILABLE; a foreign error is read from its number (`status.from_http`).
    """
    if not block:
        return Outcome(True, status.OK, "", (), (), None, False, data)
    inline = headers.status(block)
    if inline and not data:
        return _inline(inline, headers.description(block))
    if len(block) > MAX_HEADER_BYTES or block.count(b"\n") > MAX_HEADERS:
        text = f"reply with {len(block)} bytes of headers: at most {MAX_HEADER_BYTES} bytes and {MAX_HEADERS} headers"
        return Outcome(False, grpc.StatusCode.RESOURCE_EXHAUSTED, text, (), (), None, False, b"")
    found = headers.parse(block)
    if not found:  # whether it carried an error cannot be known any more
        text = "the headers of the reply cannot be read"
        return Outcome(False, grpc.StatusCode.UNKNOWN, text, (), (), None, False, b"")
    return _read_reply(data, found)


def _inline(number: int, description: str) -> Outcome:
    """A status line of the NATS server itself."""
    if number == headers.NO_RESPONDERS:
        return Outcome(
            False, grpc.StatusCode.UNAVAILABLE, "no instance of the service is listening", (), (), number, False, b""
        )
    code = grpc.StatusCode.DEADLINE_EXCEEDED if number == 408 else grpc.StatusCode.UNKNOWN
    return Outcome(False, code, description or f"status {number}", (), (), number, False, b"")


def _read_reply(data: bytes, found: dict[str, str]) -> Outcome:
    initial: list[Pair] = []
    trailing: list[Pair] = []
    words: dict[str, str] = {}
    for name, value in found.items():
        lower = name.lower()
        if lower.startswith("grpc-metadata-") and metadata.is_key(lower[14:]):
            initial += metadata.decode(lower[14:], value)
        elif lower.startswith("grpc-trailer-") and metadata.is_key(lower[13:]):
            trailing += metadata.decode(lower[13:], value)
        else:
            words.setdefault(lower, value)
    error, error_code = words.get("nats-service-error"), words.get("nats-service-error-code")
    grpc_status = words.get("grpc-status")
    message = metadata.decode_message(words["grpc-message"]) if "grpc-message" in words else None
    rest = words.get("mesh-rest", "")
    if error is None and error_code is None and grpc_status in (None, "0"):
        return Outcome(True, status.OK, "", tuple(initial), tuple(trailing), None, grpc_status is not None, data)
    http_code = (
        int(error_code)
        if error_code and error_code.isascii() and error_code.isdigit() and len(error_code) < 6
        else None
    )
    number = (
        int(grpc_status)
        if grpc_status and grpc_status.isascii() and grpc_status.isdigit() and len(grpc_status) < 4
        else None
    )
    if number == 0:  # a status of OK beside an error contradicts itself: the error counts
        number = None
    code = status.from_http(http_code) if number is None else status.from_number(number)
    details = message if message is not None else (error or "")
    return Outcome(False, code, details, tuple(initial), tuple(trailing), http_code, number is not None, data, rest)


SEND_LIMIT = "grpc.max_send_message_length"
RECEIVE_LIMIT = "grpc.max_receive_message_length"
SERVER_LIMIT = "the NATS server's max_payload, headers included"


def too_large(what: str, size: int, limit: int, name: str) -> str:
    """The text of a message over a limit: its size, the limit, and which one it is (M-A3)."""
    return f"{what} of {size} bytes is larger than the limit of {limit} bytes ({name})"


def encode_json(value: Any) -> bytes:
    """One JSON document, compact, for answers of the mesh itself."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def decode_methods(data: bytes) -> tuple[frozenset[str], bool] | None:
    """A service's answer which methods it has, and whether its reply subjects are others than the caller's.

    None for an answer that is none.
    """
    try:
        found = json.loads(data)
        return frozenset(map(str, found["methods"])), bool(found.get("crosses"))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
