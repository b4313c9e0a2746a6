"""`ctx.channel`: the surface of `grpc.aio.Channel` made durable, so that unchanged stubs make durable calls."""

from collections.abc import Callable
from typing import Any, Never, Self

import grpc
import grpc.aio
from google.protobuf.message import Message

from engine import values
from engine.context import Context
from engine.errors import CallFailedError
from engine.model import Duration, RetryPolicy, Step
from mesh import subjects

_STREAMS = "durable calls are unary: read a stream inside ctx.run(name, function, ...), with a stub on a mesh channel"


class DurableChannel(grpc.aio.Channel):
    """Calls by subject whose answers are recorded. `with_options` sets what stubs cannot say."""

    def __init__(
        self,
        context: Context,
        *,
        cluster: str | None = None,
        timeout: Duration | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        self._context = context
        self._cluster = cluster
        self._timeout = timeout
        self._retry = retry

    def with_options(self, *, timeout: Duration | None = None, retry: RetryPolicy | None = None) -> "DurableChannel":
        """The same channel with a default time-out per attempt (seconds or timedelta) and a retry policy."""
        return DurableChannel(
            self._context, cluster=self._cluster, timeout=timeout or self._timeout, retry=retry or self._retry
        )

    def at(self, cluster: str) -> "DurableChannel":
        """The same services in another cluster. Raises InvalidNameError."""
        subjects.check_cluster(cluster)
        return DurableChannel(self._context, cluster=cluster, timeout=self._timeout, retry=self._retry)

    def unary_unary(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,
    ) -> "DurableMethod":
        """A method as generated stubs ask for it."""
        service, name = subjects.split_method(method)
        return DurableMethod(self, service, name, request_serializer, response_deserializer or bytes)

    def unary_stream(self, *_args: Any, **_kwargs: Any) -> Any:
        """Streams have no place in a journal; calling one raises."""
        return _NoStreams()

    stream_unary = unary_stream
    stream_stream = unary_stream

    def issue(self, method: "DurableMethod", request: values.Payload, timeout: Duration | None, metadata: Any) -> Step:
        """Issue the step of one call."""
        response_type = getattr(method.decode, "__self__", None)
        return self._context.issue_call(
            method.service,
            method.name,
            request,
            method.decode,
            response_type=values.message_type(response_type) if _is_message(response_type) else "",
            cluster=self._cluster,
            timeout=self._timeout if timeout is None else timeout,
            retry=self._retry,
            metadata=metadata,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        return None

    async def close(self, grace: float | None = None) -> None:
        """Does nothing: the channel is the run's."""

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """READY: a call waits for its service durably."""
        return grpc.ChannelConnectivity.READY

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """The state never changes."""

    async def channel_ready(self) -> None:
        """It is."""


class _NoStreams:
    def __call__(self, *_args: Any, **_kwargs: Any) -> Never:
        raise NotImplementedError(_STREAMS)


class DurableMethod(grpc.aio.UnaryUnaryMultiCallable[Any, Any]):
    """One method of a stub on a durable channel."""

    def __init__(
        self,
        channel: DurableChannel,
        service: str,
        name: str,
        encode: Callable[[Any], bytes] | None,
        decode: Callable[[bytes], Any],
    ) -> None:
        self._channel = channel
        self.service = service
        self.name = name
        self._encode = encode
        self.decode = decode

    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: object = None,
        wait_for_ready: bool | None = None,
        compression: object = None,
    ) -> "DurableCall":
        """Issue the call. `timeout` is per attempt."""
        if isinstance(request, Message):  # deterministic: the bytes are compared with the recorded call's in a replay
            payload = values.encode(request, f"the request of {self.name}")
        elif self._encode is not None:
            payload = values.Payload(self._encode(request), values.BYTES)
        else:
            payload = values.Payload(bytes(request), values.BYTES)
        return DurableCall(self._channel.issue(self, payload, timeout, metadata))


class DurableCall(grpc.aio.UnaryUnaryCall[Any, Any]):
    """A call that was issued; awaitable more than once."""

    def __init__(self, step: Step) -> None:
        self._step = step

    def __await__(self) -> Any:
        return self._step.future.__await__()

    def cancel(self) -> bool:
        """Take no interest in the answer any more."""
        return bool(self._step.future.cancel())

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return bool(self._step.future.cancelled())

    def done(self) -> bool:
        """Whether it is answered, failed or cancelled."""
        return bool(self._step.future.done())

    def time_remaining(self) -> None:
        """None: a durable call has a time-out per attempt, no deadline."""

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call `callback(self)` when it is done."""
        self._step.future.add_done_callback(lambda _future: callback(self))

    async def initial_metadata(self) -> grpc.aio.Metadata:
        """Empty: initial metadata is not recorded."""
        await self._settled()
        return grpc.aio.Metadata()

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        """Of a failure what the service sent, else empty."""
        error = await self._settled()
        return error.trailing_metadata() if error is not None else grpc.aio.Metadata()

    async def code(self) -> grpc.StatusCode:
        """The status code, when the call is done."""
        error = await self._settled()
        return grpc.StatusCode.OK if error is None else error.code()

    async def details(self) -> str:
        """The status text, when the call is done."""
        error = await self._settled()
        return "" if error is None else str(error.details())

    async def wait_for_connection(self) -> None:
        """Returns at once."""

    async def _settled(self) -> CallFailedError | None:
        try:
            await self
        except CallFailedError as error:
            return error
        return None


def _is_message(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, Message)
