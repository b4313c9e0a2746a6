"""`mesh.connect`: the connection and what hangs on it."""

from collections.abc import Generator, Iterable, Sequence
from typing import Any

from mesh.adapters.grpcio import Channel, message_limits
from mesh.caller import DEFAULT_KEEPALIVE, DEFAULT_MAX_CALL, DEFAULT_RECONNECT_GRACE, Caller
from mesh.connection import Connection
from mesh.options import ConnectOptions
from mesh.subjects import DEFAULT_PREFIX


class Mesh:
    """A connection to NATS on which services are called (`channel`) and served (`mesh.Server(m)`)."""

    def __init__(self, connection: Connection, caller: Caller) -> None:
        self.connection = connection
        self.channel = Channel(caller)
        """A grpc.aio.Channel, for any generated stub."""
        self._caller = caller

    async def close(self) -> None:
        """End calls in flight (CANCELLED) and the connection. Servers are stopped before, by their own `stop`."""
        self._caller.close()
        await self.connection.close()


class Connecting:
    """What `mesh.connect` returns: `async with` it, or await it and `close()` what comes of that."""

    def __init__(self, options: ConnectOptions, caller_options: dict[str, Any]) -> None:
        self._options = options
        self._caller_options = caller_options
        self._mesh: Mesh | None = None

    async def _open(self) -> Mesh:
        connection = await Connection.open(self._options)
        return Mesh(connection, Caller(connection, **self._caller_options))

    def __await__(self) -> Generator[Any, None, Mesh]:
        return self._open().__await__()

    async def __aenter__(self) -> Mesh:
        self._mesh = await self._open()
        return self._mesh

    async def __aexit__(self, *_exc: object) -> None:
        if self._mesh is not None:
            await self._mesh.close()


def connect(
    url: str | Sequence[str] | None = None,
    *,
    interceptors: Sequence[Any] = (),
    options: Iterable[tuple[str, Any]] = (),
    keepalive: float = DEFAULT_KEEPALIVE,
    prefix: str = DEFAULT_PREFIX,
    max_call: float = DEFAULT_MAX_CALL,
    reconnect_grace: float = DEFAULT_RECONNECT_GRACE,
    **connection: Any,
) -> Connecting:
    """Connect to NATS: `async with mesh.connect() as m`, or `m = await mesh.connect()` and `m.close()`.

    Without `url`: `NATS_URL`, a nats context, or nats://127.0.0.1:4222, as the `nats` command looks for
    it. `connection` takes what `ConnectOptions.resolve` takes: `context creds nkey user password token
    tls inbox_prefix name connect_timeout …`. `options` are gRPC's, as far as they mean something here:
    the message limits. A call ends after `max_call` seconds at the latest; one made while the
    connection is away waits for it `reconnect_grace` seconds at most.

    Raises ConfigError at once, ConnectError when it is awaited and no server takes us.
    """
    if interceptors:
        raise NotImplementedError("client interceptors are not there yet")
    send, receive = message_limits(options)
    caller_options = {
        "prefix": prefix,
        "max_call": max_call,
        "keepalive": keepalive,
        "reconnect_grace": reconnect_grace,
        "max_send_bytes": send,
        "max_receive_bytes": receive,
    }
    return Connecting(ConnectOptions.resolve(url, **connection), caller_options)
