"""Register (ADR-32), dispatch, drain.

`Host` serves services over one connection. A request goes from the read loop to its `Endpoint`,
which decides at once whether it is started, and then runs in a task of its own: a slow handler
never holds up the next request, and past the bound on their number a request is refused, not queued.
"""

import asyncio
import contextlib
import functools
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
import grpc.aio

from mesh import codec, metadata, scope, status, subjects, wire
from mesh.connection import Connection
from mesh.duplicates import Reply, Step, Steps, Verdict
from mesh.errors import NotConnectedError, PermissionDeniedError
from mesh.method import Method
from mesh.micro import INFO, PING, STATS, EndpointInfo, EndpointStats, ServiceInfo
from mesh.wire import RequestHead

logger = logging.getLogger("mesh.server")

Code = grpc.StatusCode
Function = Callable[[Any, Any], Awaitable[Any]]

DEFAULT_MAX_CONCURRENT = 4096
DEFAULT_MAX_MESSAGE_BYTES = 4_194_304
MAX_BYTES_IN_FLIGHT = 256 << 20
"""Of requests being served, encoded; their messages may take many times that. Our own callers wait
before they come near it (M-A6), so what is refused here is an attack or a very uneven spread."""
MAX_SKEW = 1.0
"""Seconds that two clocks may differ before `Mesh-Deadline` is ignored (M-D3)."""
BEAT_INTERVAL = 0.5
"""Seconds between two messages to ourselves, which tell how long what we read may have waited."""
ABANDON_AFTER = 1.0
"""Seconds that a stopped server waits for handlers that it cancelled."""
MAX_SECONDS = 10 * 365 * 86_400.0
"""A deadline further away is this far away: gRPC's syntax reaches 11,000 years, event loops do not."""
MAX_QUESTION_BYTES = 65_536


class ServerCall:
    """One request being served, and what its handler knows of it.

    Not slotted: class attributes are the defaults, so that a plain request writes only what it needs.
    """

    deadline: float | None = None
    task: "asyncio.Task[None] | None" = None
    step: "tuple[str, Step] | None" = None
    size = 0
    """Bytes of the request while it is being served."""
    _replied = False
    _done = False
    _cut_off = False
    _entered = False
    _code: grpc.StatusCode | None = None
    _details = ""
    _initial: object = None
    _trailing: object = None
    _callbacks: list[Callable[[Any], None]] | None = None
    _timer: asyncio.TimerHandle | None = None
    _answer: Reply = (b"", b"")
    _is_good = False

    def __init__(self, endpoint: "Endpoint", reply: str, head: RequestHead, began_ns: int) -> None:
        self.endpoint = endpoint
        self.mesh = endpoint.host.mesh
        self.reply = reply
        self.head = head
        self.began_ns = began_ns

    @property
    def names(self) -> tuple[str, ...]:
        """What its caller may call it in a question."""
        return tuple(name for name in (self.reply, self.head.call_name) if name)

    # --- answers ---------------------------------------------------------------------------------

    def succeed(self, response: Any) -> None:
        """Answer with what the handler returned, unless it was answered."""
        if self._replied:
            return
        if self._code is not None and self._code is not Code.OK:
            self.fail(self._code, self._details)
            return
        endpoint = self.endpoint
        kind = endpoint.response_class
        if kind is not None and response.__class__ is not kind and not isinstance(response, kind):
            self.fail(Code.INTERNAL, f"the handler returned {_kind(response)}, not {endpoint.method.response_type}")
            return
        is_json = self.head.is_json
        try:
            payload = endpoint.encode_json(response) if is_json else endpoint.encode(response)
            if not isinstance(payload, bytes):
                raise TypeError(f"the serializer returned {_kind(payload)}, not bytes")
            block = b""
            if is_json or self._initial or self._trailing:
                block = wire.encode_success(self._initial, self._trailing, as_json=is_json)
        except Exception as error:  # user's types and serializers raise what they like
            logger.exception("%s: the response cannot be sent", endpoint.method.path)
            self.fail(Code.INTERNAL, f"the response does not serialize: {error}")
            return
        host = endpoint.host
        if len(payload) + len(block) > host.room:
            self.fail(Code.RESOURCE_EXHAUSTED, host.too_large("response", len(payload), len(block)))
            return
        self._replied = True
        host.publish(self.reply, payload, block)
        if self.step is not None:
            self._answer, self._is_good = (payload, block), True

    def fail(self, code: grpc.StatusCode, details: str) -> None:
        """Answer with a failure, unless it was answered."""
        if self._replied:
            return
        self._replied = True
        self.endpoint.stats.num_errors += 1
        self.endpoint.stats.last_error = f"{status.HTTP[code]}:{details}"[:1024]
        host = self.endpoint.host
        payload, block = _failure(code, details, self._initial, self._trailing, self.head.is_json, host.room)
        host.publish(self.reply, payload, block)
        if self.step is not None:
            self._answer = (payload, block)

    def fail_with(self, code: grpc.StatusCode, details: str) -> None:
        """As `fail`, for a code that a user chose."""
        if code is Code.OK:
            code, details = Code.UNKNOWN, details or "abort() was called with StatusCode.OK"
        self._code, self._details = code, details
        self.fail(code, details)

    def cut_off(self, code: grpc.StatusCode, details: str) -> None:
        """Answer with a failure now and cancel the handler."""
        if self._done or self._cut_off:
            return
        self._cut_off = True
        self.fail(code, details)
        if self.task is not None and self._entered:  # else its task ends itself: see Endpoint._run
            self.task.cancel()

    def expire(self) -> None:
        """The deadline is reached."""
        self._timer = None
        self.cut_off(Code.DEADLINE_EXCEEDED, "the deadline of the call has passed")

    def bound_by(self, deadline: float | None) -> None:
        """End it at `deadline` on `time.monotonic`; None: no deadline."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.deadline = deadline
        if deadline is not None:
            loop = self.endpoint.host.loop
            self._timer = loop.call_later(deadline - time.monotonic(), self.expire)

    def outlast(self, deadline: float | None) -> None:
        """A duplicate joined: go on until its deadline, if that is later."""
        if self.deadline is not None and not self._cut_off and (deadline is None or deadline > self.deadline):
            self.bound_by(deadline)

    def finish(self) -> None:
        """The handler's task is over."""
        self._done = True
        if self.step is not None:
            self._finish_step(*self.step)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for callback in self._callbacks or ():
            self.endpoint.host.loop.call_soon(callback, self)

    def _finish_step(self, key: str, step: Step) -> None:
        """Answer whoever joined. A call that was cut off says nothing about them: they start anew."""
        host = self.endpoint.host
        for waiting in host.steps.finish(key, step, self._answer if self._is_good else None):
            if self._cut_off and not host.is_stopping:
                waiting.start()
            else:
                host.publish(waiting.reply, *self._answer)

    # --- what gRPC's servicer context has ----------------------------------------------------------

    def invocation_metadata(self) -> Any:
        """The metadata that the caller sent: (key, value) pairs, `-bin` values as bytes."""
        return self.head.metadata

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Metadata before the response; of a unary call it travels with the answer.

        Raises ValueError or TypeError for what gRPC does not allow.
        """
        self.keep_initial(initial_metadata)

    def keep_initial(self, initial_metadata: Any) -> None:
        """As `send_initial_metadata`, for a synchronous handler."""
        pairs = metadata.pairs_of(initial_metadata)
        metadata.encode(pairs)
        self._initial = pairs

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """Metadata after the response. Raises ValueError or TypeError for what gRPC does not allow."""
        pairs = metadata.pairs_of(trailing_metadata)
        metadata.encode(pairs, metadata.TRAILER_PREFIX)
        self._trailing = pairs

    def trailing_metadata(self) -> Any:
        """What `set_trailing_metadata` was given."""
        return self._trailing or ()

    def set_code(self, code: Any) -> None:
        """The status that the call ends with, a `grpc.StatusCode` or its number."""
        self._code = code if isinstance(code, Code) else status.from_number(int(code))

    def set_details(self, details: str) -> None:
        """The text of the status that the call ends with."""
        self._details = str(details)

    def code(self) -> Any:
        """The status set so far, None if none was."""
        return self._code

    def details(self) -> str:
        """The text set so far."""
        return self._details

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        """End the call with this status, at once: what the handler does after it changes nothing.

        Raises grpc.aio.AbortError, which the handler lets pass.
        """
        self.abort_now(code, details, trailing_metadata)

    def abort_now(self, code: grpc.StatusCode, details: str, trailing_metadata: Any = ()) -> NoReturn:
        """As `abort`, for a synchronous handler."""
        if trailing_metadata:
            self.set_trailing_metadata(trailing_metadata)
        self.fail_with(code, details)
        raise grpc.aio.AbortError(details)

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """As `abort`, from a `grpc.Status` (rich status details)."""
        self.abort_now(status.code, status.details, status.trailing_metadata)

    def time_remaining(self) -> Any:
        """Seconds left to the caller's deadline, None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def peer(self) -> str:
        """`nats:` and the subject that the answer goes to: NATS does not name its publishers."""
        return f"nats:{self.reply}"

    def cancelled(self) -> bool:
        """Whether caller, deadline or a stopping server ended the call."""
        return self._cut_off

    def done(self) -> bool:
        """Whether the call is over."""
        return self._done

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call `callback(context)` when the call is over."""
        if self._done:
            self.endpoint.host.loop.call_soon(callback, self)
        elif self._callbacks is None:
            self._callbacks = [callback]
        else:
            self._callbacks.append(callback)


def _kind(value: object) -> str:
    return type(value).__name__


def _failure(code: grpc.StatusCode, details: str, initial: object, trailing: object, is_json: bool, room: int) -> Reply:
    """The failure, without metadata where it would not fit or cannot be encoded."""
    with contextlib.suppress(ValueError, TypeError):
        reply = wire.encode_failure(code, details, initial=initial, trailing=trailing, as_json=is_json)
        if len(reply[0]) + len(reply[1]) <= room:
            return reply
    return wire.encode_failure(code, details, as_json=is_json)


@dataclass(frozen=True, slots=True)
class Handler:
    """What an adapter hands over: one method, and how to serve it."""

    method: Method
    function: Function | None
    """`await function(request, call)`; None for a cardinality that is not served."""
    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]
    json: codec.JsonCodec | None = None
    response_class: type | None = None
    call_class: type[ServerCall] = ServerCall


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


@dataclass(frozen=True, slots=True)
class ServiceDefinition:
    """A service that an adapter hands over."""

    service: str
    """Full name."""
    handlers: tuple[Handler, ...]
    version: str = ""
    description: str = ""
    descriptors: bytes | None = None
    """A serialized FileDescriptorSet, None where there is none."""


class Endpoint:
    """One method being served."""

    def __init__(self, host: "Host", handler: Handler, stats: EndpointStats) -> None:
        self.host = host
        self.method = handler.method
        self.stats = stats
        self.response_class = handler.response_class
        self.encode = handler.encode
        self._decode = handler.decode
        self._json = handler.json
        self._function = handler.function
        self._call_class = handler.call_class
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
        call = self._call_class(self, reply, head, began_ns)
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
        elif self._function is None:
            call.fail(Code.UNIMPLEMENTED, f"{self.method.path} is a stream: streams are not there yet")
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
            request = self._decode_json(data) if call.head.is_json else self._decode(data)
        except Exception as error:  # noqa: BLE001  # a decoder raises what it likes; the request is at fault
            self.stats.malformed += 1
            name = self.method.request_type or codec.type_name(self._decode)
            call.fail(Code.INVALID_ARGUMENT, f"the request does not decode as {name}: {error}")
            return
        if call.head.run >= 0 and not self._claim(call, data, deadline):
            return
        if deadline is not None:
            call.bound_by(deadline)
        host = self.host
        host.in_flight += 1
        call.size = len(data)
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
            call.succeed(response)
        finally:
            self._finish(call)

    def _raised(self, call: ServerCall, error: Exception) -> None:
        if not call.cancelled():
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


@dataclass(slots=True)
class HostedService:
    """One micro service: one service of protobuf, with an id of its own (M-B3)."""

    service: str
    """Full name."""
    info: ServiceInfo
    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    descriptors: bytes | None = None

    @property
    def name(self) -> str:
        """Its name in the services API: the short name."""
        return self.info.name

    @property
    def id(self) -> str:
        """The id of this instance."""
        return self.info.id


class Host:
    """Serves services over one connection, from `start` to `stop`."""

    def __init__(
        self,
        mesh: Any,
        connection: Connection,
        *,
        prefix: str = subjects.DEFAULT_PREFIX,
        queue_group: str = subjects.DEFAULT_QUEUE_GROUP,
        cluster: str | None = None,
        max_concurrent: int = DEFAULT_MAX_CONCURRENT,
        max_send_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        max_receive_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        service_version: str = "",
    ) -> None:
        self.mesh = mesh
        self.connection = connection
        self.prefix = subjects.check_prefix(prefix)
        self.queue_group = subjects.check_queue_group(queue_group)
        self.cluster = None if cluster is None else subjects.check_cluster(cluster)
        self.max_concurrent = max_concurrent
        self.max_send_bytes = max_send_bytes
        self.max_receive_bytes = max_receive_bytes
        self.service_version = service_version
        self.loop = asyncio.get_running_loop()
        self.services: list[HostedService] = []
        self.calls: set[ServerCall] = set()
        self.in_flight = 0
        self.bytes_in_flight = 0
        self.steps = Steps()
        self.idle = asyncio.Event()
        """Set when the last call ends, and when a stop is to look again."""
        self.is_started = False
        self._draining: asyncio.Task[None] | None = None
        self.stopped = asyncio.Event()
        self._stop_at = math.inf
        self._sids: list[int] = []
        self._last_sids: list[int] = []
        """Of questions about calls: asked and answered as long as one is being served."""
        self._subjects: set[str] = set()
        self._refused: list[PermissionDeniedError] = []
        self._skew_told = 0.0
        self._beating: asyncio.Task[None] | None = None
        self._beat_sent = time.monotonic()
        """When the last message to ourselves that came back had left."""
        self.room = 0
        """Bytes that a message may have, headers included: the smallest limit that applies now."""
        self._measure()
        self._listening = [
            connection.on_state(self._on_state),
            connection.on_permission_error(self._on_refused),
        ]

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._draining is not None

    def add(self, definition: ServiceDefinition) -> HostedService:
        """Take a service in; before `start`. Raises RuntimeError after it, ValueError for one twice."""
        if self.is_started:
            raise RuntimeError("services are added before the server is started")
        if any(hosted.service == definition.service for hosted in self.services):
            raise ValueError(f"{definition.service} is served already")
        info = ServiceInfo(
            subjects.short_name(definition.service),
            version=definition.version or self.service_version or "0.0.0",
            description=definition.description,
            metadata=self._service_metadata(definition.service),
        )
        hosted = HostedService(definition.service, info, descriptors=definition.descriptors)
        for handler in definition.handlers:
            method = handler.method
            endpoint = EndpointInfo(
                method.name,
                subjects.method_subject(method.service, method.name, self.prefix),
                self.queue_group,
                method.endpoint_metadata(),
            )
            info.endpoints.append(endpoint)
            hosted.endpoints[method.name] = Endpoint(self, handler, endpoint.stats)
        self.services.append(hosted)
        return hosted

    def _service_metadata(self, service: str) -> dict[str, str]:
        found = {"proto.service": service, "proto.package": subjects.package(service)}
        return found if self.cluster is None else found | {"cluster": self.cluster}

    # --- start -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Subscribe; return when the server has confirmed all of it.

        Raises PermissionDeniedError where it does not allow one, TimeoutError, NotConnectedError;
        nothing is subscribed then.
        """
        if self.is_started:
            raise RuntimeError("a server is started once")
        self.is_started = True
        for hosted in self.services:
            self._subscribe_service(hosted)
        try:
            await self.connection.round_trip()
            if self._refused:
                raise self._refused[0]
            self._beating = self.loop.create_task(self._beat())
        except BaseException:
            for sid in self._sids + self._last_sids:
                self.connection.unsubscribe(sid)
            self._sids, self._last_sids = [], []
            raise

    def _subscribe_service(self, hosted: HostedService) -> None:
        for verb in (PING, INFO, STATS):
            handler = functools.partial(self._on_control, hosted, verb)
            for subject in hosted.info.control_subjects(verb):
                self._subscribe(subject, handler)
        for cluster in (None,) if self.cluster is None else (None, self.cluster):
            at = subjects.service_subject(hosted.service, self.prefix, cluster)
            self._subscribe(
                subjects.question_subject(at, "*"), functools.partial(self._on_question, hosted), self.queue_group
            )
            self._subscribe(subjects.call_subject(f"{at}.*"), self._on_call_question)
            self._last_sids.append(self._sids.pop())
            for name, endpoint in hosted.endpoints.items():
                subject = subjects.method_subject(hosted.service, name, self.prefix, cluster)
                self._subscribe(subject, endpoint.receive, self.queue_group)

    def _subscribe(self, subject: str, handler: Callable[[str, str, bytes, bytes], None], queue: str = "") -> None:
        self._subjects.add(subject)
        self._sids.append(self.connection.subscribe(subject, handler, queue=queue))

    def _on_refused(self, operation: str, subject: str) -> None:
        if operation == "subscription" and subject in self._subjects:
            self._refused.append(PermissionDeniedError(operation, subject))

    def _on_state(self, state: str) -> None:
        if state == "reconnected":
            self._measure()
        elif state == "closed":
            self._end()
            for call in list(self.calls):
                call.cut_off(Code.UNAVAILABLE, "the connection was closed")

    def _measure(self) -> None:
        self.room = min(self.max_send_bytes, self.connection.max_payload)

    # --- stop ------------------------------------------------------------------------------------

    async def stop(self, grace: float | None) -> None:
        """Take no new request, finish those that were delivered, for at most `grace` seconds, then cancel.

        Every request that the NATS server handed to this instance is answered; afterwards there are
        no responders here. A second call with a smaller grace makes it shorter.
        """
        self._stop_at = min(self._stop_at, self.loop.time() + (grace or 0.0))
        self.idle.set()
        if self._draining is None:
            self._draining = self.loop.create_task(self._drain())
        await asyncio.shield(self._draining)  # it goes on, should whoever waits for it give up

    async def _drain(self) -> None:
        try:
            sids, self._sids = self._sids, []
            if sids:
                await self.connection.retire(sids)
            await self._finish_calls()
            await self._cut_off_calls()
            if self._last_sids:
                await self.connection.retire(self._last_sids)
        finally:
            for stop_listening in self._listening:
                stop_listening()
            self._end()

    def _end(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
            self._beating = None
        self.stopped.set()

    async def _finish_calls(self) -> None:
        while self.calls and self._stop_at > self.loop.time():
            self.idle.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._stop_at):
                    await self.idle.wait()

    async def _cut_off_calls(self) -> None:
        left = [call for call in self.calls if call.task is not None]
        if not left:
            return
        for call in left:
            call.cut_off(Code.UNAVAILABLE, "the server was stopped")
        _, stuck = await asyncio.wait([call.task for call in left if call.task], timeout=ABANDON_AFTER)
        if stuck:
            logger.warning("%d handlers do not end though cancelled; they are left alone", len(stuck))

    # --- what endpoints need ------------------------------------------------------------------------

    def publish(self, reply: str, payload: bytes, block: bytes) -> None:
        """Send an answer, if somebody waits for one. Without a connection it is lost, as a packet would be."""
        if not reply:
            return
        try:
            self.connection.publish(reply, payload, headers=block)
        except NotConnectedError:
            logger.debug("an answer was lost: no connection")

    def too_large(self, what: str, size: int, headers_size: int) -> str:
        """The text of a message over the limit that applies to it."""
        if size > self.max_send_bytes:
            return wire.too_large(what, size, self.max_send_bytes, wire.SEND_LIMIT)
        return wire.too_large(what, size + headers_size, self.connection.max_payload, wire.SERVER_LIMIT)

    def time_left(self, head: RequestHead) -> float | None:
        """Seconds until a request must be done, by `Grpc-Timeout` and `Mesh-Deadline` (M-D3); None for ever."""
        timeout, deadline_ms = head.timeout, head.deadline_ms
        if timeout is None or deadline_ms is None:
            return timeout
        left = deadline_ms / 1000 - time.time()
        age = timeout - left  # since it was sent, if the clocks agree
        # Whatever the NATS server sent us after our last beat has waited no longer than since that
        # left. An older request was written by another clock, not held up on its way to us.
        may_have_waited = time.monotonic() - self._beat_sent + BEAT_INTERVAL
        if -MAX_SKEW <= age <= max(MAX_SKEW, may_have_waited):
            return min(timeout, left)
        self._tell_skew(age)
        return timeout

    async def _beat(self) -> None:
        while True:
            sent = time.monotonic()
            with contextlib.suppress(TimeoutError, NotConnectedError):
                await self.connection.round_trip(timeout=60.0)
                self._beat_sent = sent
            await asyncio.sleep(BEAT_INTERVAL)

    def _tell_skew(self, age: float) -> None:
        now = time.monotonic()
        if now - self._skew_told > 60:
            self._skew_told = now
            logger.warning("a caller's clock differs from ours by %.1f s: its Mesh-Deadline is ignored", age)

    # --- questions -------------------------------------------------------------------------------

    def _on_control(
        self, hosted: HostedService, verb: str, _subject: str, reply: str, _data: bytes, _block: bytes
    ) -> None:
        self.publish(reply, hosted.info.answer(verb), b"")

    def _on_question(self, hosted: HostedService, subject: str, reply: str, data: bytes, _block: bytes) -> None:
        question = subject.rpartition(".")[2]
        if question == subjects.METHODS_QUESTION:
            self.publish(reply, wire.encode_json(self._methods_answer(hosted, reply, data)), b"")
        elif question != subjects.DESCRIPTOR_QUESTION:
            self.publish(reply, *wire.encode_failure(Code.UNIMPLEMENTED, "no such question"))
        elif hosted.descriptors is None:
            text = f"{hosted.service} has no descriptors in this process"
            self.publish(reply, *wire.encode_failure(Code.NOT_FOUND, text))
        elif len(hosted.descriptors) > self.room:
            text = self.too_large("descriptor set", len(hosted.descriptors), 0)
            self.publish(reply, *wire.encode_failure(Code.RESOURCE_EXHAUSTED, text))
        else:
            self.publish(reply, hosted.descriptors, b"")

    def _methods_answer(self, hosted: HostedService, reply: str, data: bytes) -> dict[str, Any]:
        answer: dict[str, Any] = {"id": hosted.id, "methods": list(hosted.endpoints)}
        inbox = _question(data).get("inbox")
        if isinstance(inbox, str):
            answer["crosses"] = not reply.startswith(f"{inbox}.")
        return answer

    def _on_call_question(self, _subject: str, reply: str, data: bytes, _block: bytes) -> None:
        """A caller names calls, by reply subject or by the name it gave: cancel it, or are they alive?"""
        question = _question(data)
        cancelled, asked = question.get("cancel"), question.get("alive")
        if isinstance(cancelled, str):
            for call in [call for call in self.calls if cancelled in call.names]:
                call.cut_off(Code.CANCELLED, "the call was cancelled by its caller")
        elif isinstance(asked, list):
            alive = {name for call in self.calls for name in call.names}
            found = [name for name in asked if isinstance(name, str) and name in alive]
            if found:
                self.publish(reply, wire.encode_json({"alive": found}), b"")


def _question(data: bytes) -> dict[str, Any]:
    """The JSON object of a question, `{}` for anything else."""
    if not data or len(data) > MAX_QUESTION_BYTES:
        return {}
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
