"""grpclib and betterproto: their stubs on the mesh's channel, their `__mapping__()` objects on its server.

Both libraries speak through a small stream object, one for a stub's call and one for a servicer's.
Failures are `mesh.RpcError` and `grpclib.GRPCError` at once.
"""

import asyncio
import functools
import json
import time
from collections.abc import Callable
from typing import Any, Self

import grpc
from google.protobuf.message import Message
from grpclib.const import Cardinality, Status
from grpclib.const import Handler as GrpclibHandler
from grpclib.exceptions import GRPCError, ProtocolError
from multidict import MultiDict

from mesh import codec, subjects
from mesh import status as codes
from mesh.caller import Caller, Target
from mesh.client import Call
from mesh.errors import RpcError
from mesh.method import Method
from mesh.server import Handler, ServerCall, ServerStream, ServiceDefinition
from mesh.streamcall import StreamCall


class _Details(list[Any]):
    """What both libraries call `details`: grpclib a list of messages, grpcio a function that returns the text."""

    def __init__(self, text: str | None) -> None:
        super().__init__()
        self._text = text

    def __call__(self) -> str | None:
        return self._text


class _InitializedError(GRPCError):
    """grpclib's error, made without arguments by grpcio's cooperative constructor."""

    def __init__(self, *args: Any) -> None:
        Exception.__init__(self, *args)


class GrpclibRpcError(RpcError, _InitializedError):
    """A failed call of a grpclib or betterproto stub: an error of both libraries.

    `details()` is grpcio's text; `details` as grpclib's list of decoded status details is empty.
    """

    def __init__(self, code: grpc.StatusCode, details: str | None = None, **kwargs: Any) -> None:
        RpcError.__init__(self, code, details, **kwargs)
        self.status = Status(codes.NUMBERS[code])
        self.message = details
        self.details = _Details(details)  # type: ignore[method-assign]  # see _Details


class GrpclibCall(Call):
    """A call made by a grpclib or betterproto stub."""

    error_class = GrpclibRpcError


# --- client ------------------------------------------------------------------------------------------


def open_stream(
    caller: Caller,
    target: Target,
    cardinality: Any,
    request_type: type,
    reply_type: type,
    *,
    timeout: float | None = None,
    deadline: Any = None,
    metadata: Any = None,
) -> "ClientStream | StreamingClientStream":
    """What `Channel.request` returns to a stub."""
    if deadline is not None:
        left = deadline.time_remaining()
        timeout = left if timeout is None else min(timeout, left)
    if cardinality is Cardinality.UNARY_UNARY:
        return ClientStream(caller, target, request_type, reply_type, timeout, metadata)
    call = StreamCall(caller, target, decoder(reply_type), GrpclibRpcError)
    return StreamingClientStream(call, cardinality, encoder(request_type), timeout, metadata)


class ClientStream:
    """grpclib's client stream of one unary call: send one message, receive one."""

    def __init__(
        self,
        caller: Caller,
        target: Target,
        request_type: type,
        reply_type: type,
        timeout: float | None,
        user_metadata: Any,
    ) -> None:
        self._caller = caller
        self._target = target
        self._encode = encoder(request_type)
        self._decode = decoder(reply_type)
        self._timeout = timeout
        self._metadata = user_metadata
        self._call: GrpclibCall | None = None
        self._is_received = False
        self.initial_metadata: Any = None
        self.trailing_metadata: Any = None
        self.peer = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, *_rest: object) -> None:
        call = self._call
        if call is None:
            return
        if exc_type is not None:
            call.cancel()
        elif not self._is_received:
            await self.recv_message()

    async def send_request(self, *, end: bool = False) -> None:
        """Nothing: a unary request leaves with its message."""

    async def send_message(self, message: Any, *, end: bool = False) -> None:
        """Send the request. Raises ProtocolError for a second one, ValueError for bad metadata."""
        if self._call is not None:
            raise ProtocolError("Message was already sent")
        call = self._call = GrpclibCall(self._caller, self._target, self._encode(message), self._decode)
        call.start_with(self._timeout, _pairs(self._metadata))

    async def end(self) -> None:
        """Nothing: a unary request ends with its message."""

    async def recv_message(self) -> Any:
        """The response, None if it was received. Raises GrpclibRpcError."""
        if self._call is None:
            raise ProtocolError("Request was not sent")
        if self._is_received:
            return None
        self._is_received = True
        try:
            return await self._call
        finally:
            self.initial_metadata = MultiDict(self._call._initial)  # noqa: SLF001
            self.trailing_metadata = MultiDict(self._call._trailing)  # noqa: SLF001

    async def recv_initial_metadata(self) -> None:
        """Wait for `initial_metadata`: it comes with the response."""
        await self._settle()

    async def recv_trailing_metadata(self) -> None:
        """Wait for `trailing_metadata`: it comes with the response."""
        await self._settle()

    async def _settle(self) -> None:
        if self._call is None:
            raise ProtocolError("Request was not sent")
        await self._call.settled()
        self.initial_metadata = MultiDict(self._call._initial)  # noqa: SLF001
        self.trailing_metadata = MultiDict(self._call._trailing)  # noqa: SLF001

    async def cancel(self) -> None:
        """End the call."""
        if self._call is not None:
            self._call.cancel()

    async def __aiter__(self) -> Any:
        message = await self.recv_message()
        if message is not None:
            yield message


class StreamingClientStream:
    """grpclib's client stream of a call with streams."""

    def __init__(
        self,
        call: StreamCall,
        cardinality: Any,
        encode: Callable[[Any], bytes],
        timeout: float | None,
        user_metadata: Any,
    ) -> None:
        self._call = call
        self._cardinality = cardinality
        self._encode = encode
        self._timeout = timeout
        self._metadata = user_metadata
        self._is_started = False
        self._is_raised = False
        self.initial_metadata: Any = None
        self.trailing_metadata: Any = None
        self.peer = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, *_rest: object) -> None:
        call = self._call
        if not self._is_started:
            return
        if exc_type is None and call.session.is_closed and not self._cardinality.server_streaming:
            await call.settled()
        was_running = call.cancel()
        self._note()
        if exc_type is None and not was_running and not self._is_raised:
            call.raise_for_status()

    def _start(self) -> None:
        if not self._is_started:
            self._is_started = True
            self._call.start(self._timeout, _pairs(self._metadata))

    async def send_request(self, *, end: bool = False) -> None:
        """Open the call; with `end`, without a message. Raises ValueError for bad metadata."""
        if end:
            self._call.session.half_close()
        self._start()
        if end:
            self._call.pipe.flush_soon()

    async def send_message(self, message: Any, *, end: bool = False) -> None:
        """Send a request; waits while the service is a window behind. Raises GrpclibRpcError, ProtocolError."""
        if self._call.session.is_closed:
            raise ProtocolError("Stream is closed")
        data = self._encode(message)
        if end and not self._is_started:
            self._call.put(data)
            self._start()
            return
        self._start()
        try:
            await self._call.write(data)
        except asyncio.InvalidStateError:  # it has ended well: nobody reads any more
            return
        if end or not self._cardinality.client_streaming:
            self._call.half_close()

    async def end(self) -> None:
        """No request follows."""
        self._start()
        self._call.half_close()

    async def recv_message(self) -> Any:
        """The next response, None after the last. Raises GrpclibRpcError."""
        if not self._is_started:
            raise ProtocolError("Request was not sent")
        try:
            return await self._call.read()
        except BaseException:
            self._is_raised = True
            raise
        finally:
            self._note()

    def _note(self) -> None:
        self.initial_metadata = MultiDict(self._call.initial)
        if self._call.is_done:
            self.trailing_metadata = MultiDict(self._call.trailing)

    async def recv_initial_metadata(self) -> None:
        """Wait for `initial_metadata`."""
        await self._call.has_initial()
        self._note()

    async def recv_trailing_metadata(self) -> None:
        """Wait for the end of the call and `trailing_metadata`. Raises GrpclibRpcError."""
        await self._call.settled()
        self._note()
        self._is_raised = True
        self._call.raise_for_status()

    async def cancel(self) -> None:
        """End the call."""
        self._is_raised = True
        self._call.cancel()

    async def __aiter__(self) -> Any:
        while (message := await self.recv_message()) is not None:
            yield message


def _pairs(user_metadata: Any) -> Any:
    """grpclib takes mappings, multi-dicts and pairs; a MultiDict's items keep repeated keys."""
    return list(user_metadata.items()) if hasattr(user_metadata, "items") else user_metadata


# --- server ------------------------------------------------------------------------------------------


def definitions(servicer: Any) -> list[ServiceDefinition]:
    """The services of an object with `__mapping__()`. Raises TypeError for a mapping that is none."""
    services: dict[str, list[Handler]] = {}
    for path, handler in servicer.__mapping__().items():
        if not isinstance(handler, GrpclibHandler):
            raise TypeError(f"__mapping__() of {type(servicer).__name__}: {path!r} is not a grpclib Handler")
        service, name = subjects.split_method(path)
        services.setdefault(service, []).append(_handler(service, name, handler))
    return [
        ServiceDefinition(
            service,
            tuple(handlers),
            version=str(getattr(servicer, "version", "") or ""),
            description=_description(servicer),
            descriptors=_descriptors(service),
        )
        for service, handlers in services.items()
    ]


def _description(servicer: Any) -> str:
    said = getattr(servicer, "description", None)
    if isinstance(said, str):
        return said
    return (vars(type(servicer)).get("__doc__") or "").strip().partition("\n")[0].strip()


def _descriptors(service: str) -> bytes | None:
    described = codec.find_service(service)
    return None if described is None else codec.descriptor_set(described)


def _handler(service: str, name: str, handler: Any) -> Handler:
    request, reply = handler.request_type, handler.reply_type
    method = Method(
        service,
        name,
        request_type=full_name(request),
        response_type=full_name(reply),
        client_streaming=bool(handler.cardinality.client_streaming),
        server_streaming=bool(handler.cardinality.server_streaming),
    )
    return Handler(
        method,
        functools.partial(_serve, handler.func) if method.is_unary else None,
        decoder(request),
        encoder(reply),
        json=_json(request, reply),
        response_class=reply,
        stream=None if method.is_unary else functools.partial(_serve_stream, handler.func),
    )


async def _serve(function: Callable[[Any], Any], request: Any, call: ServerCall) -> Any:
    stream = UnaryServerStream(request, call)
    try:
        await function(stream)
    except GRPCError as error:
        call.set_code(codes.from_number(error.status.value))
        call.set_details(error.message or "")
        return None
    return stream.response()


async def _serve_stream(function: Callable[[Any], Any], call: ServerStream) -> None:
    try:
        await function(StreamingServerStream(call))
    except GRPCError as error:
        call.fail_with(codes.from_number(error.status.value), error.message or "")


class _Served:
    """What both kinds of server streams have."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.metadata = MultiDict(call.invocation_metadata())
        self.peer = call.peer()
        self.user_agent = None

    @property
    def deadline(self) -> Any:
        """grpclib's Deadline, None without one."""
        left = self._call.time_remaining()
        return None if left is None else _Deadline(time.monotonic() + left)

    async def send_initial_metadata(self, *, metadata: Any = None) -> None:
        """Metadata before the first response; of a unary call it travels with it."""
        await self._call.send_initial_metadata(_pairs(metadata))

    async def send_trailing_metadata(
        self,
        *,
        status: Any = Status.OK,
        status_message: str | None = None,
        status_details: Any = None,
        metadata: Any = None,
    ) -> None:
        """Status and metadata after the response."""
        if metadata:
            self._call.set_trailing_metadata(_pairs(metadata))
        if status is not Status.OK:
            self._call.set_code(status.value)
            self._call.set_details(status_message or "")

    async def cancel(self) -> None:
        """End the call CANCELLED."""
        self._call.cut_off(grpc.StatusCode.CANCELLED, "cancelled by its handler")


class StreamingServerStream(_Served):
    """grpclib's server stream of a call with streams."""

    async def recv_message(self) -> Any:
        """The next request; None after the last."""
        return await self._call.next_request()

    async def __aiter__(self) -> Any:
        while (message := await self.recv_message()) is not None:
            yield message

    async def send_message(self, message: Any) -> None:
        """A response; waits while the caller is a window behind."""
        await self._call.respond(message)


class UnaryServerStream(_Served):
    """grpclib's server stream of one unary call: receive one message, send one."""

    def __init__(self, request: Any, call: ServerCall) -> None:
        super().__init__(call)
        self._request = request
        self._response: Any = None
        self._is_sent = False
        self._is_received = False

    async def recv_message(self) -> Any:
        """The request; None the second time."""
        if self._is_received:
            return None
        self._is_received = True
        return self._request

    async def __aiter__(self) -> Any:
        message = await self.recv_message()
        if message is not None:
            yield message

    async def send_message(self, message: Any) -> None:
        """The response. Raises ProtocolError for a second one."""
        if self._is_sent:
            raise ProtocolError("Message was already sent")
        self._is_sent = True
        self._response = message

    def response(self) -> Any:
        """What was sent; None, which is INTERNAL, where nothing was."""
        return self._response


class _Deadline:
    """As grpclib's Deadline, whose constructor is private."""

    def __init__(self, at: float) -> None:
        self._timestamp = at

    def time_remaining(self) -> float:
        """Seconds left, not below 0."""
        return max(0.0, self._timestamp - time.monotonic())


# --- messages ----------------------------------------------------------------------------------------


def full_name(kind: type) -> str:
    """The protobuf name of a message class, else its Python name."""
    if issubclass(kind, Message):
        return str(kind.DESCRIPTOR.full_name)
    return kind.__name__


def encoder(kind: type) -> Callable[[Any], bytes]:
    """How messages of a class become bytes: google's and betterproto's."""
    if issubclass(kind, Message):
        return kind.SerializeToString
    return bytes


def decoder(kind: type) -> Callable[[bytes], Any]:
    """How bytes become messages of a class: google's `FromString`, betterproto's `parse`."""
    if issubclass(kind, Message):
        return kind.FromString
    betterproto: Any = kind
    parse: Callable[[bytes], Any] | None = getattr(betterproto, "FromString", None)
    return parse if parse is not None else lambda data: betterproto().parse(data)


def _json(request: Any, reply: Any) -> codec.JsonCodec | None:
    if issubclass(request, Message) and issubclass(reply, Message):
        return codec.google_json(request, reply)
    if hasattr(request, "from_dict") and hasattr(reply, "to_json"):
        return codec.JsonCodec(
            lambda data: request().from_dict(json.loads(data)), lambda message: message.to_json().encode()
        )
    return None
