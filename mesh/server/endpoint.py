"""One method being served: decide at once whether a request is started, and run it in a task of its own."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from mesh import codec, scope, wire
from mesh.duplicates import Verdict
from mesh.method import Method
from mesh.micro import EndpointStats
from mesh.server.call import ServerCall
from mesh.server.stream import ServerStream
from mesh.wire import RequestHead

if TYPE_CHECKING:
    from mesh.server.host import Host

logger = logging.getLogger("mesh.server")

Code = grpc.StatusCode
Function = Callable[[Any, Any], Awaitable[Any]]

MAX_BYTES_IN_FLIGHT = 256 << 20
"""Of requests being served, encoded; their messages may take many times that. Our own callers wait
before they come near it (M-A6), so what is refused here is an attack or a very uneven spread."""
LARGE_REPLY = 65_536
"""Bytes from which on an answer waits for room in the connection's write buffer: 1,000 answers of 1 MB
made in one turn of the loop would be held twice, as they were queued and joined for one write."""
MAX_SECONDS = 10 * 365 * 86_400.0
"""A deadline further away is this far away: gRPC's syntax reaches 11,000 years, event loops do not."""


@dataclass(frozen=True, slots=True)
class Handler:
    """What an adapter hands over: one method, and how to serve it."""

    method: Method
    function: Function | None
    """`await function(request, call)` of a unary method, else None."""
    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]
    json: codec.JsonCodec | None = None
    response_class: type | None = None
    call_class: type[ServerCall] = ServerCall
    stream: Callable[[ServerStream], Awaitable[None]] | None = None
    """`await stream(call)` of a method with streams, else None: it reads and writes, and ends when it returns."""
    stream_class: type[ServerStream] = ServerStream


@dataclass(frozen=True, slots=True)
class Waiting:
    """A duplicate of an engine step that is running."""

    endpoint: "Endpoint"
    reply: str
    data: bytes
    head: RequestHead
    deadline: float | None

    def start(self) -> None:
        """Take it as a request of its own, with the time that is left to it."""
        head = self.head
        if self.deadline is not None:
            head.timeout, head.deadline_ms = self.deadline - time.monotonic(), None
        self.endpoint.admit(self.reply, self.data, head, time.perf_counter_ns())


class Endpoint:
    """One method being served."""

    def __init__(self, host: "Host", handler: Handler, stats: EndpointStats) -> None:
        self.host = host
        self.method = handler.method
        self.stats = stats
        self.response_class = handler.response_class
        self.encode = handler.encode
        self.decode = handler.decode
        self._json = handler.json
        self._function = handler.function
        self._call_class = handler.call_class
        self._stream = handler.stream
        self._stream_class = handler.stream_class
        self._create_task: Callable[..., asyncio.Task[None]] = host.loop.create_task

    # --- admit -----------------------------------------------------------------------------------

    def receive(self, _subject: str, reply: str, data: bytes, block: bytes) -> None:
        """A request, from the read loop."""
        began_ns = time.perf_counter_ns()
        self.stats.num_requests += 1
        head = wire.EMPTY_HEAD
        if block:
            try:
                head = wire.decode_request(block)
            except wire.BadRequestError as error:
                self.stats.malformed += 1
                self._refuse(reply, head, began_ns, error.code, str(error))
                return
        self.admit(reply, data, head, began_ns)

    def admit(self, reply: str, data: bytes, head: RequestHead, began_ns: int) -> None:
        """Start a request, or answer why not."""
        host = self.host
        deadline = None
        if head is not wire.EMPTY_HEAD:
            left = host.time_left(head)
            if left is not None:
                if left <= 0:
                    self.stats.expired += 1
                    text = "the deadline had passed when the request was read; it was not started"
                    self._refuse(reply, head, began_ns, Code.DEADLINE_EXCEEDED, text)
                    return
                deadline = time.monotonic() + min(left, MAX_SECONDS)
        call = (self._stream_class if head.stream_ms else self._call_class)(self, reply, head, began_ns)
        if host.in_flight >= host.max_concurrent:
            self.stats.rejected += 1
            text = f"the server has its maximum of {host.max_concurrent} concurrent calls"
            call.fail(Code.RESOURCE_EXHAUSTED, text)
        elif host.bytes_in_flight + len(data) > MAX_BYTES_IN_FLIGHT:
            self.stats.rejected += 1
            text = f"the server has requests of {host.bytes_in_flight} bytes in flight, {MAX_BYTES_IN_FLIGHT} at most"
            call.fail(Code.RESOURCE_EXHAUSTED, text)
        elif len(data) > host.max_receive_bytes:
            text = wire.too_large("request", len(data), host.max_receive_bytes, wire.RECEIVE_LIMIT)
            call.fail(Code.RESOURCE_EXHAUSTED, text)
        elif isinstance(call, ServerStream):
            self._start_stream(call, data, deadline)
        elif self._function is None:
            text = f"{self.method.path} is a stream: it is called by a channel of the mesh, not by one message"
            call.fail(Code.UNIMPLEMENTED, text)
        else:
            self._start(self._function, call, data, deadline)

    def _refuse(self, reply: str, head: RequestHead, began_ns: int, code: grpc.StatusCode, text: str) -> None:
        self._call_class(self, reply, head, began_ns).fail(code, text)

    def _claim(self, call: ServerCall, data: bytes, deadline: float | None) -> bool:
        """Whether a request of an engine step is to be executed; if not it is dealt with."""
        head = call.head
        key = f"{self.method.path} {head.key}"
        verdict, step = self.host.steps.admit(key, head.run, call)
        if verdict is Verdict.EXECUTE:
            call.step = (key, step)
            return True
        if verdict is Verdict.REFUSE:
            text = f"run {head.run} of this step is over: run {step.run} has called since"
            call.fail(Code.ABORTED, text)
        elif verdict is Verdict.ANSWER and step.reply is not None:
            self.host.publish(call.reply, *step.reply)
        else:
            step.waiting.append(Waiting(self, call.reply, data, head, deadline))
            step.owner.outlast(deadline)
        return False

    # --- run -------------------------------------------------------------------------------------

    def _start(self, function: Function, call: ServerCall, data: bytes, deadline: float | None) -> None:
        try:
            request = self._decode_json(data) if call.head.is_json else self.decode(data)
        except Exception as error:  # noqa: BLE001  # a decoder raises what it likes; the request is at fault
            self.stats.malformed += 1
            name = self.method.request_type or codec.type_name(self.decode)
            call.fail(Code.INVALID_ARGUMENT, f"the request does not decode as {name}: {error}")
            return
        if call.head.run >= 0 and not self._claim(call, data, deadline):
            return
        self._begin(function, call, request, len(data), deadline)

    def _start_stream(self, call: ServerStream, opening: bytes, deadline: float | None) -> None:
        if call.head.is_json:
            call.fail(Code.INVALID_ARGUMENT, "streams carry protobuf, not JSON")
        elif call.accept(self.host.new_session(), opening):
            self._begin(self._converse, call, None, len(opening), deadline)

    async def _converse(self, _request: None, call: Any) -> None:
        """Serve a session: a method with streams, or a unary one whose request was too large for one message."""
        if self._stream is not None:
            await self._stream(call)
        elif self._function is not None:
            response = await self._function(await call.only_request(), call)
            if not call.is_answered and call.code() in (None, Code.OK):
                await call.respond(response)

    def _begin(self, function: Function, call: ServerCall, request: Any, size: int, deadline: float | None) -> None:
        if deadline is not None:
            call.bound_by(deadline)
        host = self.host
        host.in_flight += 1
        call.size = size
        host.bytes_in_flight += call.size
        self.stats.in_flight += 1
        host.calls.add(call)
        call.task = self._create_task(self._run(function, call, request))

    async def _run(self, function: Function, call: ServerCall, request: Any) -> None:
        call._entered = True  # noqa: SLF001  # a task cancelled before its first step would run no line of this
        scope.serving.set(call)
        try:
            if call.cancelled():
                return
            response = await function(request, call)
        except asyncio.CancelledError:
            call.fail(Code.CANCELLED, "the handler was cancelled")
        except grpc.aio.AbortError:
            pass  # answered by abort()
        except Exception as error:  # noqa: BLE001  # the top of a handler's task
            self._raised(call, error)
        else:
            reply = call.prepare(response)
            if reply is not None:
                if len(reply[0]) > LARGE_REPLY:
                    await self._wait_for_room(call)
                call.succeed(reply)
        finally:
            self._finish(call)

    async def _wait_for_room(self, call: ServerCall) -> None:
        try:
            await self.host.connection.wait_writable()
        except asyncio.CancelledError:
            call.fail(Code.CANCELLED, "the call was cancelled")

    def _raised(self, call: ServerCall, error: Exception) -> None:
        if not call.is_answered:
            logger.error("%s raised", self.method.path, exc_info=error)
        code = call.code()
        text = f"Unexpected {type(error)}: {error}"
        call.fail(Code.UNKNOWN if code in (None, Code.OK) else code, text)

    def _finish(self, call: ServerCall) -> None:
        host = self.host
        host.in_flight -= 1
        host.bytes_in_flight -= call.size
        host.calls.discard(call)
        stats = self.stats
        stats.in_flight -= 1
        stats.processing_time_ns += time.perf_counter_ns() - call.began_ns
        call.finish()
        if not host.calls and host.is_stopping:
            host.idle.set()

    # --- JSON ------------------------------------------------------------------------------------

    def _decode_json(self, data: bytes) -> Any:
        if self._json is None:
            raise ValueError("the types of this method are not known here; send protobuf")
        return self._json.decode_request(data)

    def encode_json(self, response: Any) -> bytes:
        """The response as ProtoJSON."""
        if self._json is None:
            raise ValueError("the types of this method are not known here")
        return self._json.encode_response(response)
