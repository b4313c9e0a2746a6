"""gRPC status code <-> `Nats-Service-Error-Code`. Pure tables.

The number is conventionally HTTP-like among peers of ADR-32. Writing follows Connect's table
(connect-python `_protocol.py`); it is not invertible, so replies of ours carry the gRPC code in
`Grpc-Status` as well, and the number is read only where that is absent.
"""

import grpc

Code = grpc.StatusCode

OK = Code.OK

CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in Code}
"""gRPC's number -> code."""

NUMBERS: dict[grpc.StatusCode, int] = {code: number for number, code in CODES.items()}
"""Code -> gRPC's number (`StatusCode.value` is a pair)."""

HTTP: dict[grpc.StatusCode, int] = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}
"""What a foreigner reads in `Nats-Service-Error-Code`."""

_FOREIGN: dict[int, grpc.StatusCode] = {
    400: Code.INVALID_ARGUMENT,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.NOT_FOUND,
    429: Code.UNAVAILABLE,
    501: Code.UNIMPLEMENTED,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.UNAVAILABLE,
}
"""Foreign replies: grpc `doc/http-grpc-status-mapping.md`, but 400, 404 and 501 in the sense of a
service's own word, which is what they are here, not a proxy's."""


def from_number(number: int) -> grpc.StatusCode:
    """The code of a `Grpc-Status`; UNKNOWN for a number that gRPC does not have."""
    return CODES.get(number, Code.UNKNOWN)


def from_http(number: int | None) -> grpc.StatusCode:
    """The code of a foreign `Nats-Service-Error-Code`; UNKNOWN for others and None (not a number)."""
    return Code.UNKNOWN if number is None else _FOREIGN.get(number, Code.UNKNOWN)
