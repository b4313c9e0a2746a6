"""Generated stubs on `Channel`, unchanged."""

from collections.abc import Callable
from typing import Any, Self

import grpc
import grpc.aio

from mesh import subjects
from mesh.adapters.grpcio.streams import StreamStreamMethod, StreamUnaryMethod, UnaryStreamMethod
from mesh.caller import Caller, Target
from mesh.client import Call
from mesh.scope import serving


class UnaryUnaryCall(Call, grpc.aio.UnaryUnaryCall[Any, Any]):
    """grpc.aio's call object of a unary call."""

    async def initial_metadata(self) -> grpc.aio.Metadata:
        """What the service sent before the response; waits for the end of the call."""
        await self.settled()
        return grpc.aio.Metadata(*self._initial)

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        """What the service sent after the response; waits for the end of the call."""
        await self.settled()
        return grpc.aio.Metadata(*self._trailing)

    async def code(self) -> grpc.StatusCode:
        """The status; waits for the end of the call."""
        await self.settled()
        return grpc.StatusCode.OK if self._error is None else self._error.code()

    async def details(self) -> str:
        """The status's text; waits for the end of the call."""
        await self.settled()
        return "" if self._error is None else self._error.details() or ""

    async def debug_error_string(self) -> str:
        """As `details`: there is nothing beneath it."""
        return await self.details()

    async def wait_for_connection(self) -> None:
        """Nothing to wait for: NATS is connected, or the call says that it is not."""
        if self._done and self._error is not None:
            raise self._error


class UnaryUnaryMethod(grpc.aio.UnaryUnaryMultiCallable[Any, Any]):
    """A stub's unary method."""

    def __init__(
        self,
        caller: Caller,
        target: Target,
        serialize: Callable[[Any], bytes] | None,
        deserialize: Callable[[bytes], Any] | None,
    ) -> None:
        self._caller = caller
        self._target = target
        self._serialize = serialize
        self._deserialize = deserialize

    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,  # accepted, without effect on NATS (M-C9)
    ) -> UnaryUnaryCall:
        """Send; await what is returned for the response.

        Raises what the serializer raises, ValueError and TypeError for metadata that gRPC does not
        allow and for call credentials: nothing is sent then.
        """
        serialize = self._serialize
        data = request if serialize is None else serialize(request)
        call = UnaryUnaryCall(self._caller, self._target, data, self._deserialize)
        if credentials is not None:
            raise ValueError("call credentials have no place on NATS: send a token as metadata")
        if timeout is None and not metadata and not wait_for_ready and serving.get() is None:
            call.start()
        else:
            call.start_with(timeout, metadata, wait_for_ready=bool(wait_for_ready))
        return call


class Channel(grpc.aio.Channel):
    """What stubs are made with. Calls go to subjects; closing it leaves the connection open."""

    def __init__(self, caller: Caller, cluster: str | None = None) -> None:
        self._caller = caller
        self._cluster = cluster

    def at(self, cluster: str) -> "Channel":
        """The same services in another cluster (M-H3). Raises InvalidNameError for what is no name."""
        return Channel(self._caller, subjects.check_cluster(cluster))

    def _target(self, path: str) -> Target:
        return self._caller.target(path, self._cluster)

    def unary_unary(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,
    ) -> UnaryUnaryMethod:
        """As grpc.aio. Raises InvalidNameError for a path that is none."""
        return UnaryUnaryMethod(self._caller, self._target(method), request_serializer, response_deserializer)

    def unary_stream(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,
    ) -> UnaryStreamMethod:
        """As grpc.aio. Raises InvalidNameError for a path that is none."""
        return UnaryStreamMethod(self._caller, self._target(method), request_serializer, response_deserializer)

    def stream_unary(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,
    ) -> StreamUnaryMethod:
        """As grpc.aio. Raises InvalidNameError for a path that is none."""
        return StreamUnaryMethod(self._caller, self._target(method), request_serializer, response_deserializer)

    def stream_stream(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,
    ) -> StreamStreamMethod:
        """As grpc.aio. Raises InvalidNameError for a path that is none."""
        return StreamStreamMethod(self._caller, self._target(method), request_serializer, response_deserializer)

    def request(self, name: str, cardinality: Any, request_type: Any, reply_type: Any, **kwargs: Any) -> Any:
        """What grpclib's and betterproto's stubs call: see `mesh.adapters.grpclib`."""
        from mesh.adapters.grpclib import open_stream  # noqa: PLC0415  # an optional library

        return open_stream(self._caller, self._target(name), cardinality, request_type, reply_type, **kwargs)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Nothing: the connection is closed by whoever opened it (M-C2)."""

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """READY while connected to NATS, SHUTDOWN when that is closed, else TRANSIENT_FAILURE."""
        connection = self._caller.connection
        if connection.is_connected:
            return grpc.ChannelConnectivity.READY
        if connection.is_closed:
            return grpc.ChannelConnectivity.SHUTDOWN
        return grpc.ChannelConnectivity.TRANSIENT_FAILURE

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Return when the state is another one."""
        while self.get_state() is last_observed_state:
            await self._caller.state_change()

    async def channel_ready(self) -> None:
        """Return when connected to NATS."""
        while self.get_state() is not grpc.ChannelConnectivity.READY:
            await self._caller.state_change()
