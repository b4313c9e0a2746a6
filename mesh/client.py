"""One call: publish, await, deadline, 503. And questions to a service.

`Caller` keeps what all calls of a connection share; `Call` is one of them, whatever stub made it.
A call is a published message, an entry in a dict and, once somebody awaits it, a future: no task.
What is not the plain case (no connection, no instance, too many bytes in flight) goes on in a task.
"""

import asyncio
import functools
import json
import logging
import math
import time
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any

import grpc

from mesh import codec, headers, scope, subjects, wire
from mesh.connection import Connection
from mesh.errors import NotConnectedError, RpcError
from mesh.metadata import MetadataTooLargeError, Pairs

logger = logging.getLogger("mesh.client")

Code = grpc.StatusCode

DEFAULT_MAX_CALL = 600.0
DEFAULT_MAX_MESSAGE_BYTES = 4_194_304
"""As in gRPC (M-A3)."""
DEFAULT_RECONNECT_GRACE = 5.0
DEFAULT_KEEPALIVE = 10.0
MAX_BYTES_IN_FLIGHT = 32 << 20
"""Of requests without an answer. Past it calls wait for their turn: the server cuts a client off
that has more than `max_pending` (64 MB) waiting (M-A6)."""
SWEEP_INTERVAL = 0.5
"""Seconds between two looks at calls that have no timer of their own."""
QUESTION_TIMEOUT = 1.0
RESEND_DELAYS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.4)
"""Seconds before a request is sent again that was not delivered though an instance serves the method."""
READY_BACKOFF = (0.02, 0.05, 0.1, 0.2, 0.5)
"""Seconds between attempts of a call with `wait_for_ready`, the last one repeated."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where the calls of one method go; made once a stub's method."""

    path: str
    """`pkg.Service/Method`."""
    method: str
    subject: str
    service_at: str
    """What all subjects of the service begin with."""

    @classmethod
    def of(cls, path: str, prefix: str, cluster: str | None) -> "Target":
        """The target of gRPC's `/pkg.Service/Method`. Raises InvalidNameError."""
        service, method = subjects.split_method(path)
        return cls(
            f"{service}/{method}",
            method,
            subjects.method_subject(service, method, prefix, cluster),
            subjects.service_subject(service, prefix, cluster),
        )


class Caller:
    """What all calls over one connection share: those in flight, limits, the connection's fate."""

    def __init__(
        self,
        connection: Connection,
        *,
        prefix: str = subjects.DEFAULT_PREFIX,
        max_call: float = DEFAULT_MAX_CALL,
        keepalive: float = DEFAULT_KEEPALIVE,
        max_send_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        max_receive_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        reconnect_grace: float = DEFAULT_RECONNECT_GRACE,
    ) -> None:
        self.connection = connection
        self.prefix = subjects.check_prefix(prefix)
        self.max_call = max_call
        self.keepalive = keepalive
        self.max_send_bytes = max_send_bytes
        self.max_receive_bytes = max_receive_bytes
        self.reconnect_grace = reconnect_grace
        self.loop = asyncio.get_running_loop()
        self.pending: dict[int, Call] = {}
        """By token, in order of sending: the first is the first to reach `max_call`."""
        self.bytes_in_flight = 0
        self.room = 0
        """Bytes that a message may have, headers included: the smallest limit that applies now."""
        self.sweeper: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._questions: dict[str, asyncio.Future[frozenset[str] | None]] = {}
        self._turns: list[asyncio.Future[None]] = []
        self._changes: list[asyncio.Future[None]] = []
        self._measure()
        connection.on_state(self._on_state)
        connection.on_permission_error(self._on_refused)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run what a call cannot do at once."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def close(self) -> None:
        """End everything that is under way: calls are CANCELLED."""
        for call in list(self.pending.values()):
            call.cancel()
        for task in self._tasks:
            task.cancel()
        if self.sweeper is not None:
            self.sweeper.cancel()
            self.sweeper = None

    # --- time ------------------------------------------------------------------------------------

    def arm(self) -> None:
        """Look after calls without a timer until none is left."""
        self.sweeper = self.loop.call_later(SWEEP_INTERVAL, self._sweep)

    def _sweep(self) -> None:
        self.sweeper = None
        now = time.monotonic()
        overdue = []
        for call in self.pending.values():  # in order of sending
            if now - call.started < self.max_call:
                break
            overdue.append(call)
        for call in overdue:
            call.expire()
        if self.pending:
            self.arm()

    # --- the connection's fate -------------------------------------------------------------------

    async def state_change(self) -> None:
        """Wait until the connection is lost, found again or closed."""
        change: asyncio.Future[None] = self.loop.create_future()
        self._changes.append(change)
        await change

    def _measure(self) -> None:
        self.room = min(self.max_send_bytes, self.connection.max_payload)

    def _on_state(self, state: str) -> None:
        changes, self._changes = self._changes, []
        for change in changes:
            _settle(change, None)
        if state == "reconnected":
            self._measure()
            self._give_turns()
            return
        text = "the connection to NATS was lost; whether the call was executed is not known"
        for call in list(self.pending.values()):
            call.fail(Code.UNAVAILABLE, text)
        for question in list(self._questions.values()):
            _settle(question, None)
        if state == "closed":
            self._give_turns()

    def _on_refused(self, operation: str, subject: str) -> None:
        if operation != "publish":
            return
        question = self._questions.get(subject)
        if question is not None and not question.done():
            question.set_result(None)
        text = f"the NATS server does not allow this user to publish to {subject}"
        for call in [call for call in self.pending.values() if call.target.subject == subject]:
            call.fail(Code.PERMISSION_DENIED, text)

    def _give_turns(self) -> None:
        turns, self._turns = self._turns, []
        for turn in turns:
            _settle(turn, None)

    def release(self, size: int) -> None:
        """A request of `size` bytes is in flight no more."""
        self.bytes_in_flight -= size
        if self._turns and self.bytes_in_flight <= MAX_BYTES_IN_FLIGHT:
            _settle(self._turns.pop(0), None)

    async def wait_turn(self) -> bool:
        """Wait for a connection and for room in flight. False where there is no connection within the grace."""
        grace = self.loop.time() + self.reconnect_grace
        while True:
            connected = self.connection.is_connected
            if connected and self.bytes_in_flight <= MAX_BYTES_IN_FLIGHT:
                return True
            if self.connection.is_closed:
                return False
            turn: asyncio.Future[None] = self.loop.create_future()
            self._turns.append(turn)
            try:
                async with asyncio.timeout_at(None if connected else grace):
                    await turn
            except TimeoutError:
                return False
            finally:
                if turn in self._turns:
                    self._turns.remove(turn)

    # --- questions -------------------------------------------------------------------------------

    async def methods_at(self, service_at: str) -> frozenset[str] | None:
        """The methods that an instance of the service has, None where no instance answers.

        Many calls that find nobody at once share one question.
        """
        subject = subjects.question_subject(service_at, subjects.METHODS_QUESTION)
        question = self._questions.get(subject)
        if question is None:
            question = self._questions[subject] = self.loop.create_future()
            timer = self.loop.call_later(QUESTION_TIMEOUT, _settle, question, None)
            question.add_done_callback(functools.partial(self._forget_question, subject, timer))
            try:
                self.connection.request(subject, b"", functools.partial(_on_methods, question))
            except NotConnectedError:
                question.set_result(None)
        return await asyncio.shield(question)

    def _forget_question(self, subject: str, timer: asyncio.TimerHandle, _question: object) -> None:
        timer.cancel()
        self._questions.pop(subject, None)


def _settle(future: "asyncio.Future[Any]", value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _on_methods(question: "asyncio.Future[frozenset[str] | None]", data: bytes, block: bytes) -> None:
    methods = None
    if wire.outcome(data, block).ok:
        try:
            methods = frozenset(map(str, json.loads(data)["methods"]))
        except (ValueError, LookupError, TypeError):
            logger.warning("a service answered which methods it has by %r", data[:100])
    _settle(question, methods)


class Call:
    """One unary call: sent when made, awaited by whoever wants the answer.

    Not slotted: class attributes are the defaults, so that a plain call writes only what it needs
    (guarded by `make bench`).
    """

    error_class: type[RpcError] = RpcError
    started = 0.0
    _token = 0
    _size = 0
    _done = False
    _cancelled = False
    _response: Any = None
    _error: RpcError | None = None
    _initial: Pairs = ()
    _trailing: Pairs = ()
    _future: "asyncio.Future[None] | None" = None
    _callbacks: list[Callable[[Any], None]] | None = None
    _timer: asyncio.TimerHandle | None = None
    _later: asyncio.Task[None] | None = None
    _deadline: float | None = None
    _limited_by_max_call = True
    _metadata: object = None
    _wait_for_ready = False
    _undelivered_times = 0

    def __init__(self, caller: Caller, target: Target, data: bytes, decode: Callable[[bytes], Any] | None) -> None:
        self._caller = caller
        self.target = target
        self._data = data
        self._decode = decode

    # --- send ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Send a call without timeout, metadata or a deadline to inherit: no headers."""
        caller = self._caller
        data = self._data
        size = len(data)
        if size > caller.room or caller.bytes_in_flight > MAX_BYTES_IN_FLIGHT:
            self._start_otherwise(size)
            return
        try:
            token = caller.connection.request(self.target.subject, data, self._on_reply)
        except NotConnectedError:
            self._start_otherwise(size)
            return
        self._token = token
        self._size = size
        self.started = time.monotonic()
        caller.pending[token] = self
        caller.bytes_in_flight += size
        if caller.sweeper is None:
            caller.arm()

    def start_with(self, timeout: float | None, metadata: object = None, *, wait_for_ready: bool = False) -> None:
        """Send with what a call may have. A deadline of the handler we are in is inherited (M-A7).

        Raises ValueError or TypeError for metadata that gRPC does not allow; nothing is sent then.
        """
        self._metadata = metadata
        self._wait_for_ready = wait_for_ready
        try:
            wire.encode_request(user_metadata=metadata)
        except MetadataTooLargeError as error:
            self.fail(Code.RESOURCE_EXHAUSTED, str(error))
            return
        if not self._set_deadline(timeout):
            self.fail(Code.DEADLINE_EXCEEDED, "the deadline had passed before the call; nothing was sent")
            return
        self._start_otherwise(len(self._data))

    def _set_deadline(self, timeout: float | None) -> bool:
        """False where it has passed already."""
        if timeout is not None and math.isnan(timeout):
            raise ValueError("timeout is not a number")
        now = time.monotonic()
        if timeout != math.inf:
            inherited = scope.inherited_deadline()
            if inherited is not None and (timeout is None or inherited - now < timeout):
                timeout = inherited - now
        if timeout is None or timeout == math.inf:
            return True
        if timeout <= 0:
            return False
        self._limited_by_max_call = timeout > self._caller.max_call
        timeout = min(timeout, self._caller.max_call)
        self._deadline = now + timeout
        self._timer = self._caller.loop.call_later(timeout, self.expire)
        return True

    def _start_otherwise(self, size: int) -> None:
        caller = self._caller
        if size > caller.room:
            self._too_large(size)
        elif caller.connection.is_connected and caller.bytes_in_flight <= MAX_BYTES_IN_FLIGHT:
            self._send()
        else:
            self._later = caller.spawn(self._send_in_turn())

    def _too_large(self, size: int) -> None:
        caller = self._caller
        if size > caller.max_send_bytes:
            text = wire.too_large("request", size, caller.max_send_bytes, wire.SEND_LIMIT)
        else:
            text = wire.too_large("request", size, caller.connection.max_payload, wire.SERVER_LIMIT)
        self.fail(Code.RESOURCE_EXHAUSTED, text)

    async def _send_in_turn(self) -> None:
        if await self._caller.wait_turn():
            if not self._done:
                self._send()
        else:
            grace = self._caller.reconnect_grace
            self.fail(Code.UNAVAILABLE, f"no connection to NATS within {grace:g} s; nothing was sent")

    def _send(self) -> None:
        caller = self._caller
        block = self._headers()
        size = len(self._data) + len(block)
        if size > caller.room and size > caller.connection.max_payload:
            self._too_large(size)
            return
        try:
            token = caller.connection.request(self.target.subject, self._data, self._on_reply, headers=block)
        except NotConnectedError:
            self._later = caller.spawn(self._send_in_turn())
            return
        self._token = token
        self._size = size
        if not self.started:
            self.started = time.monotonic()
        caller.pending[token] = self
        caller.bytes_in_flight += size
        if caller.sweeper is None:
            caller.arm()

    def _headers(self) -> bytes:
        if self._deadline is None:
            return wire.encode_request(user_metadata=self._metadata) if self._metadata else b""
        left = max(1e-6, self._deadline - time.monotonic())
        return wire.encode_request(
            timeout=left,
            deadline_ms=int((time.time() + left) * 1000),
            user_metadata=self._metadata,
        )

    # --- end -------------------------------------------------------------------------------------

    def _on_reply(self, data: bytes, block: bytes) -> None:
        caller = self._caller
        caller.pending.pop(self._token, None)
        caller.release(self._size)
        self._token = 0
        if self._done:
            return
        if block:
            self._read(data, block)
        else:
            self._take(data)

    def _read(self, data: bytes, block: bytes) -> None:
        outcome = wire.outcome(data, block)
        self._initial = outcome.initial_metadata
        self._trailing = outcome.trailing_metadata
        if outcome.ok:
            self._take(data)
        elif not data and headers.is_no_responders(block):
            self._later = self._caller.spawn(self._undelivered())
        else:
            self.fail(outcome.code, outcome.details)

    def _take(self, data: bytes) -> None:
        limit = self._caller.max_receive_bytes
        if len(data) > limit:
            self.fail(Code.RESOURCE_EXHAUSTED, wire.too_large("reply", len(data), limit, wire.RECEIVE_LIMIT))
            return
        if self._decode is None:
            self._response = data
        else:
            try:
                self._response = self._decode(data)
            except Exception as error:  # noqa: BLE001  # whatever a decoder raises: the call ends, the read loop goes on
                self.fail(Code.INTERNAL, f"the reply does not decode as {codec.type_name(self._decode)}: {error}")
                return
        self._finish()

    async def _undelivered(self) -> None:
        """Nobody took the request. Safe to send again, where it makes sense (M-C8, M-C10, M-D6)."""
        methods = await self._caller.methods_at(self.target.service_at)
        if self._done:
            return
        times = self._undelivered_times
        self._undelivered_times += 1
        if methods is not None and self.target.method not in methods:
            self.fail(Code.UNIMPLEMENTED, f"the service has no method {self.target.path}")
        elif methods is not None and times < len(RESEND_DELAYS):
            await self._send_after(RESEND_DELAYS[times])
        elif self._wait_for_ready:
            await self._send_after(READY_BACKOFF[min(times, len(READY_BACKOFF) - 1)])
        else:
            self.fail(Code.UNAVAILABLE, f"no instance of {self.target.path} is listening on {self.target.subject}")

    async def _send_after(self, delay: float) -> None:
        await asyncio.sleep(delay)
        if not self._done:
            self._send()

    def expire(self) -> None:
        """The deadline, or `max_call`, is reached."""
        if self._done:
            return
        if self._limited_by_max_call:
            text = f"the call reached max_call, {self._caller.max_call:g} s"
            if self._deadline is None:
                self._tell_cancelled()
        else:
            text = "the deadline of the call has passed"
        self.fail(Code.DEADLINE_EXCEEDED, text)

    def fail(self, code: grpc.StatusCode, details: str) -> None:
        """End the call with this code, unless it has ended."""
        if self._done:
            return
        self._error = self.error_class(code, details, initial_metadata=self._initial, trailing_metadata=self._trailing)
        self._finish()

    def cancel(self) -> bool:
        """End the call CANCELLED and tell its instance, as well as that can be done. False if it had ended."""
        if self._done:
            return False
        self._cancelled = True
        self._tell_cancelled()
        self.fail(Code.CANCELLED, "the call was cancelled by its caller")
        return True

    def _tell_cancelled(self) -> None:
        """Ask every instance of the method to cancel the call with our reply subject.

        Where an account import rewrites reply subjects, nobody knows it and the handler runs on to
        its end or its deadline.
        """
        if not self._token:
            return
        connection = self._caller.connection
        try:
            connection.publish(
                subjects.call_subject(self.target.subject),
                wire.encode_json({"cancel": connection.reply_subject(self._token)}),
            )
        except NotConnectedError:
            return

    def _finish(self) -> None:
        self._done = True
        if self._token:
            self._caller.connection.forget(self._token)
            self._caller.pending.pop(self._token, None)
            self._caller.release(self._size)
            self._token = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        later = self._later
        if later is not None:
            self._later = None
            if later is not asyncio.current_task():
                later.cancel()
        future = self._future
        if future is not None and not future.done():
            future.set_result(None)
        if self._callbacks:
            for callback in self._callbacks:
                self._caller.loop.call_soon(callback, self)

    # --- await -----------------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, None, Any]:
        """The response. Raises RpcError, or CancelledError if the call was cancelled.

        Cancelling the task that awaits cancels the call, as with grpc.aio.
        """
        if not self._done:
            future = self._future
            if future is None:
                future = self._future = self._caller.loop.create_future()
            try:
                yield from future
            except asyncio.CancelledError:
                self.cancel()
                raise
        if self._error is not None:
            if self._cancelled:
                raise asyncio.CancelledError
            raise self._error
        return self._response

    async def settled(self) -> None:
        """Wait for the end without raising what it was."""
        if not self._done:
            if self._future is None:
                self._future = self._caller.loop.create_future()
            await asyncio.shield(self._future)

    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._done

    def cancelled(self) -> bool:
        """Whether `cancel` ended it."""
        return self._cancelled

    def time_remaining(self) -> float | None:
        """Seconds left to the deadline, None without one."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call `callback(call)` when it has ended, at the next loop turn if it has."""
        if self._done:
            self._caller.loop.call_soon(callback, self)
        elif self._callbacks is None:
            self._callbacks = [callback]
        else:
            self._callbacks.append(callback)


async def describe_service(
    connection: Connection,
    service: str,
    *,
    prefix: str = subjects.DEFAULT_PREFIX,
    cluster: str | None = None,
    timeout: float = 2.0,
) -> bytes:
    """A serialized FileDescriptorSet of a service, from the service itself: its file and its imports.

    It is asked on `<prefix>.<full service name>._mesh.descriptor`, beneath the service's subject, so
    that whoever may call the service may ask, through imports too, and `nats micro` never sees it.

    Raises NoRespondersError where no instance of ours lives, RpcError (NOT_FOUND) where it has no
    descriptors, TimeoutError, InvalidNameError.
    """
    subject = subjects.question_subject(
        subjects.service_subject(service, prefix, cluster), subjects.DESCRIPTOR_QUESTION
    )
    answer = await connection.ask(subject, timeout=timeout)
    outcome = wire.outcome(answer.data, answer.headers)
    if not outcome.ok:
        raise RpcError(outcome.code, outcome.details)
    return outcome.data
