"""What goes wrong in `mesh`.

    MeshError
      RpcError               a call failed, expected: code(), details(), metadata; also a grpc.aio.AioRpcError
      ProtocolError          unexpected: the peer breaks the wire
      InvalidNameError       (ValueError) a name refused before any subject is built of it
      PayloadTooLargeError   a message over a limit: size and the limit that applies
      ConnectError           no server, or it refuses us: where, and what to try
      ConfigError            a setting, file or context that cannot be used
      NotConnectedError      the connection is away at the moment; nothing was sent
      NoRespondersError      nobody listens on the subject: nothing was delivered
      LocalServerError       the embedded nats-server does not start; with the end of its log
      PermissionDeniedError  the server does not allow this user a subject

Expected failures of calls have one class with a code, not a class a code.
"""

from collections.abc import Iterable
from typing import Any

import grpc
import grpc.aio

__all__ = [
    "ConfigError",
    "ConnectError",
    "InvalidNameError",
    "LocalServerError",
    "MeshError",
    "NoRespondersError",
    "NotConnectedError",
    "PayloadTooLargeError",
    "PermissionDeniedError",
    "ProtocolError",
    "RpcError",
]


class MeshError(Exception):
    """Everything that this package raises by itself."""


class RpcError(MeshError, grpc.aio.AioRpcError):
    """A call that did not end OK. Raised at the call's await; the call is over.

    `code()` is a `grpc.StatusCode`, `details()` the text, `initial_metadata()` and
    `trailing_metadata()` are iterables of (key, value), values of `-bin` keys as bytes.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        details: str | None = None,
        *,
        initial_metadata: Iterable[tuple[str, str | bytes]] = (),
        trailing_metadata: Iterable[tuple[str, str | bytes]] = (),
    ) -> None:
        grpc.aio.AioRpcError.__init__(
            self,
            code,
            grpc.aio.Metadata(*initial_metadata),
            grpc.aio.Metadata(*trailing_metadata),
            details,
        )
        self.args = (code, details)

    def __str__(self) -> str:
        return f"{self.code().name}: {self.details() or ''}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.code().name}, {self.details()!r})"

    def __reduce__(self) -> Any:
        """Pickle by code, details and metadata: an RpcError may cross a process border."""
        metadata = (list(self.initial_metadata() or ()), list(self.trailing_metadata() or ()))
        return (_rebuild, (type(self), self.code(), self.details(), *metadata))


def _rebuild(
    kind: type[RpcError],
    code: grpc.StatusCode,
    details: str | None,
    initial: list[tuple[str, str | bytes]],
    trailing: list[tuple[str, str | bytes]],
) -> RpcError:
    return kind(code, details, initial_metadata=initial, trailing_metadata=trailing)


class ProtocolError(MeshError):
    """The peer sent what its protocol does not allow."""


class InvalidNameError(MeshError, ValueError):
    """A name, prefix or subject refused at the edge: nothing was sent or subscribed."""


class PayloadTooLargeError(MeshError):
    """A message over a limit; nothing was sent. `size` and `limit` in bytes, `what` names the limit."""

    def __init__(self, what: str, size: int, limit: int) -> None:
        super().__init__(f"message of {size} bytes is larger than {what}, {limit} bytes")
        self.what = what
        self.size = size
        self.limit = limit


class ConnectError(MeshError):
    """No server took the connection. `where` describes it without secrets, `reason` is the last refusal."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"cannot connect to {where}: {reason}; is the server running, and are the credentials right?")
        self.where = where
        self.reason = reason


class ConfigError(MeshError):
    """A setting that cannot be used: raised before anything is sent. `file`, `key` and `expected`
    where they are known."""

    def __init__(self, message: str, *, file: str = "", key: str = "", expected: str = "") -> None:
        super().__init__(message)
        self.file = file
        self.key = key
        self.expected = expected


class NotConnectedError(MeshError):
    """The connection is away, or closed: nothing was sent and nothing is kept for later."""

    def __init__(self) -> None:
        super().__init__("not connected to a NATS server at the moment; nothing was sent")


class NoRespondersError(MeshError):
    """Nobody subscribes to `subject`: the server says so at once, and nothing was delivered."""

    def __init__(self, subject: str) -> None:
        super().__init__(f"nobody listens on {subject}")
        self.subject = subject


class PermissionDeniedError(MeshError):
    """The server refuses this user to publish or subscribe. `operation` is `publish` or `subscription`."""

    def __init__(self, operation: str, subject: str) -> None:
        verb = "publish to" if operation == "publish" else "subscribe to"
        super().__init__(f"the NATS server does not allow this user to {verb} {subject}")
        self.operation = operation
        self.subject = subject


class LocalServerError(MeshError):
    """A nats-server that we start ourselves does not come up; the message ends with its log."""
