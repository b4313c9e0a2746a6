"""A stub's methods with streams: grpc.aio's call objects on `mesh.streamcall`."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Generator
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from mesh.caller import Caller, Target
from mesh.errors import RpcError
from mesh.streamcall import StreamCall, ask_once

_MIXED = "the iterator and read() or write() of a call cannot be used both"

if TYPE_CHECKING:
    _UnaryStream = grpc.aio.UnaryStreamMultiCallable[Any, Any]
    _StreamUnary = grpc.aio.StreamUnaryMultiCallable[Any, Any]
    _StreamStream = grpc.aio.StreamStreamMultiCallable[Any, Any]
    _UnaryStreamCall = grpc.aio.UnaryStreamCall[Any, Any]
    _StreamUnaryCall = grpc.aio.StreamUnaryCall[Any, Any]
    _StreamStreamCall = grpc.aio.StreamStreamCall[Any, Any]
else:  # grpcio 1.75's are not generic at run time
    _UnaryStream = grpc.aio.UnaryStreamMultiCallable
    _StreamUnary = grpc.aio.StreamUnaryMultiCallable
    _StreamStream = grpc.aio.StreamStreamMultiCallable
    _UnaryStreamCall = grpc.aio.UnaryStreamCall
    _StreamUnaryCall = grpc.aio.StreamUnaryCall
    _StreamStreamCall = grpc.aio.StreamStreamCall


class _StreamingCall:
    """What all of grpc.aio's call objects have. Dropped by its user, a call that runs is cancelled."""

    def __init__(self, stream: StreamCall) -> None:
        self._stream = stream

    def __del__(self) -> None:
        self._stream.abandon()

    def cancel(self) -> bool:
        """End the call CANCELLED. False if it had ended."""
        return self._stream.cancel()

    def cancelled(self) -> bool:
        """Whether `cancel` ended it."""
        return self._stream.is_cancelled

    def done(self) -> bool:
        """Whether it has ended; messages may still be there to be read."""
        return self._stream.is_done

    def time_remaining(self) -> float | None:
        """Seconds left to the deadline, None without one."""
        deadline = self._stream.deadline
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call `callback(call)` when it has ended, at the next loop turn if it has."""
        self._stream.add_done_callback(lambda: callback(self))

    async def initial_metadata(self) -> grpc.aio.Metadata:
        """What the service sent before its first message; waits for that, or for the end."""
        await self._stream.has_initial()
        return grpc.aio.Metadata(*self._stream.initial)

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        """What the service sent at the end; waits for it."""
        await self._stream.settled()
        return grpc.aio.Metadata(*self._stream.trailing)

    async def code(self) -> grpc.StatusCode:
        """The status; waits for the end."""
        await self._stream.settled()
        error = self._stream.error
        return grpc.StatusCode.OK if error is None else error.code()

    async def details(self) -> str:
        """The status's text; waits for the end."""
        await self._stream.settled()
        error = self._stream.error
        return "" if error is None else error.details() or ""

    async def debug_error_string(self) -> str:
        """As `details`: there is nothing beneath it."""
        return await self.details()

    async def wait_for_connection(self) -> None:
        """Nothing to wait for: NATS is connected, or the call says that it is not."""
        if self._stream.is_done:
            self._stream.raise_for_status()


class _Reading(_StreamingCall):
    """Responses that are a stream."""

    _is_iterated = False
    _has_read = False

    async def read(self) -> Any:
        """The next response, `grpc.aio.EOF` after the last one.

        Raises RpcError, or CancelledError if the call was cancelled.
        """
        if self._is_iterated:
            raise grpc.aio.UsageError(_MIXED)
        self._has_read = True
        response = await self._stream.read()
        return grpc.aio.EOF if response is None else response

    def __aiter__(self) -> AsyncIterator[Any]:
        if self._has_read:
            raise grpc.aio.UsageError(_MIXED)
        self._is_iterated = True
        return self._responses()  # not kept: with a cycle, a call that is dropped would wait for the garbage collector

    async def _responses(self) -> AsyncIterator[Any]:
        while (response := await self._stream.read()) is not None:
            yield response


class _Writing(_StreamingCall):
    """Requests that are a stream."""

    _has_iterator = False

    def __init__(self, stream: StreamCall, serialize: Callable[[Any], bytes] | None, requests: Any) -> None:
        super().__init__(stream)
        self._serialize = serialize
        if requests is not None:
            self._has_iterator = True
            if not stream.is_done:
                stream.spawn(_feed(stream, serialize, requests))

    async def write(self, request: Any) -> None:
        """Send a request; waits while the service is a window behind.

        Raises RpcError where the call failed, CancelledError where it was cancelled, asyncio.InvalidStateError
        where it has ended or `done_writing` was called.
        """
        if self._has_iterator:
            raise grpc.aio.UsageError(_MIXED)
        if self._stream.is_done:
            raise asyncio.InvalidStateError("RPC already finished.")
        if self._stream.session.is_closed:
            raise asyncio.InvalidStateError("RPC is half closed after calling done_writing")
        await self._stream.write(request if self._serialize is None else self._serialize(request))

    async def done_writing(self) -> None:
        """No request follows."""
        if self._has_iterator:
            raise grpc.aio.UsageError(_MIXED)
        self._stream.half_close()


async def _feed(stream: StreamCall, serialize: Callable[[Any], bytes] | None, requests: Any) -> None:
    """Send what an iterator gives. Holds the stream, not its user's call object."""
    try:
        if hasattr(requests, "__aiter__"):
            async for request in requests:
                await stream.write(request if serialize is None else serialize(request))
        else:
            for request in requests:
                await stream.write(request if serialize is None else serialize(request))
    except (RpcError, asyncio.InvalidStateError):  # it has ended; whoever reads is told why
        return
    except Exception as error:  # noqa: BLE001  # the user's iterator raises what it likes
        stream.cancel(f"the iterator of requests raised {type(error).__name__}: {error}")
        return
    stream.half_close()


class UnaryStreamCall(_Reading, _UnaryStreamCall):
    """grpc.aio's call object of a server stream."""


class StreamUnaryCall(_Writing, _StreamUnaryCall):
    """grpc.aio's call object of a client stream; await it for the response."""

    def __init__(self, stream: StreamCall, serialize: Callable[[Any], bytes] | None, requests: Any) -> None:
        super().__init__(stream, serialize, requests)
        self._response: asyncio.Task[Any] = asyncio.ensure_future(ask_once(stream))
        self._response.add_done_callback(_retrieve)

    def __await__(self) -> Generator[Any, None, Any]:
        """The response. Raises RpcError, or CancelledError if the call was cancelled."""
        try:
            return (yield from asyncio.shield(self._response).__await__())
        except asyncio.CancelledError:
            self.cancel()
            raise


def _retrieve(task: "asyncio.Task[Any]") -> None:
    """Nobody needs to await a call that failed."""
    if not task.cancelled():
        task.exception()


class StreamStreamCall(_Reading, _Writing, _StreamStreamCall):
    """grpc.aio's call object of streams both ways."""


class _Method:
    """A stub's method."""

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

    def _start(
        self, timeout: float | None, metadata: Any, credentials: Any, wait_for_ready: bool | None, only: bytes | None
    ) -> StreamCall:
        if credentials is not None:
            raise ValueError("call credentials have no place on NATS: send a token as metadata")
        stream = StreamCall(self._caller, self._target, self._deserialize)
        if only is not None:
            stream.put(only)
        stream.start(timeout, metadata, wait_for_ready=bool(wait_for_ready))
        return stream


class UnaryStreamMethod(_Method, _UnaryStream):
    """A stub's method with a stream of responses."""

    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,  # accepted, without effect on NATS (M-C9)
    ) -> UnaryStreamCall:
        """Send; iterate over what is returned. Raises as a unary method."""
        data = request if self._serialize is None else self._serialize(request)
        return UnaryStreamCall(self._start(timeout, metadata, credentials, wait_for_ready, data))


class StreamUnaryMethod(_Method, _StreamUnary):
    """A stub's method with a stream of requests."""

    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> StreamUnaryCall:
        """Open; requests come from the iterator, or by `write` and `done_writing`. Raises as a unary method."""
        stream = self._start(timeout, metadata, credentials, wait_for_ready, None)
        return StreamUnaryCall(stream, self._serialize, request_iterator)


class StreamStreamMethod(_Method, _StreamStream):
    """A stub's method with streams both ways."""

    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> StreamStreamCall:
        """Open; requests come from the iterator, or by `write` and `done_writing`. Raises as a unary method."""
        stream = self._start(timeout, metadata, credentials, wait_for_ready, None)
        return StreamStreamCall(stream, self._serialize, request_iterator)
