"""Register (ADR-32), subscribe, answer questions, drain."""

import asyncio
import contextlib
import functools
import json
import logging
import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from mesh import subjects, wire
from mesh.connection import Connection
from mesh.duplicates import Steps
from mesh.errors import NotConnectedError, PermissionDeniedError
from mesh.micro import INFO, PING, STATS, EndpointInfo, ServiceInfo
from mesh.server.call import ServerCall
from mesh.server.endpoint import Endpoint, Handler
from mesh.session import Pipe, Pulse
from mesh.streams import HEAD, Session
from mesh.wire import RequestHead

logger = logging.getLogger("mesh.server")

Code = grpc.StatusCode

DEFAULT_MAX_CONCURRENT = 4096
DEFAULT_MAX_MESSAGE_BYTES = 4_194_304
MAX_SKEW = 1.0
"""Seconds that two clocks may differ before `Mesh-Deadline` is ignored (M-D3)."""
BEAT_INTERVAL = 0.5
"""Seconds between two messages to ourselves, which tell how long what we read may have waited."""
ABANDON_AFTER = 1.0
"""Seconds that a stopped server waits for handlers that it cancelled."""
MAX_QUESTION_BYTES = 65_536
HOLD_SECONDS = 10.0
"""For which an answer too large for one message is held until its caller fetches it."""
MAX_HELD_BYTES = 64 << 20
DEFAULT_KEEPALIVE = 10.0


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
        keepalive: float = DEFAULT_KEEPALIVE,
    ) -> None:
        if keepalive <= 0:
            raise ValueError("keepalive is seconds above 0")
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
        self.keepalive = keepalive
        self.token = secrets.token_hex(8)
        """By which callers address the frames of their sessions to this instance."""
        self.sessions: dict[int, Pipe] = {}
        self.pulse = Pulse()
        self._held: dict[str, tuple[bytes, bytes]] = {}
        self._held_bytes = 0
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
            self._subscribe(subjects.session_subject(f"{at}.*", self.token), self._on_frame)
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
        else:
            for pipe in list(self.sessions.values()):
                pipe.lose("the connection to NATS was lost")

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
            await self._hand_over_held()
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

    # --- sessions ----------------------------------------------------------------------------------

    def new_session(self) -> int:
        """A number that nobody can guess: whoever may call a service may publish to its sessions' subject."""
        return secrets.randbits(64) or 1

    def _on_frame(self, _subject: str, reply: str, data: bytes, block: bytes) -> None:
        if len(data) >= HEAD.size:
            pipe = self.sessions.get(HEAD.unpack_from(data)[1])
            if pipe is not None:
                pipe.feed(data, block)
                return
        if block and reply:
            self._hand_over(reply, block)

    def hold(self, payload: bytes, block: bytes) -> str:
        """Keep an answer for a moment; returns the name that its caller fetches it by, `""` if there is no room."""
        if self._held_bytes + len(payload) > MAX_HELD_BYTES:
            return ""
        name = secrets.token_hex(12)
        self._held[name] = (payload, block)
        self._held_bytes += len(payload)
        self.loop.call_later(HOLD_SECONDS, self._unhold, name)
        return f"{self.token}.{name}.{len(payload)}"

    def _unhold(self, name: str) -> tuple[bytes, bytes] | None:
        held = self._held.pop(name, None)
        if held is not None:
            self._held_bytes -= len(held[0])
            self.idle.set()
        return held

    async def _hand_over_held(self) -> None:
        """Callers that were just told where their answer is fetch it now, or not at all."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ABANDON_AFTER):
                while self._held:
                    self.idle.clear()
                    await self.idle.wait()
        self._held.clear()

    def _hand_over(self, reply: str, block: bytes) -> None:
        """Somebody fetches an answer: one message is always within the window, so all of it leaves at once."""
        try:
            head = wire.decode_request(block)
        except wire.BadRequestError as error:
            self.publish(reply, *wire.encode_failure(error.code, str(error)))
            return
        held = self._unhold(head.rest.partition(".")[2]) if head.stream_ms else None
        if held is None:
            self.publish(reply, *wire.encode_failure(Code.UNAVAILABLE, "the answer is not held any more"))
            return
        session = Session(
            self.new_session(), max_receive_bytes=0, frame_bytes=self.connection.max_payload, peer_window=head.window
        )
        session.accept(head.stream_ms, self.token)
        session.write(held[0])
        session.end(held[1])
        for frame in session.take_output():
            self.publish(reply, *frame)

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
