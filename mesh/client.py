"""One call: publish, await, deadline, 503. And the question what a service is.

A call is a published message, an entry in a dict and, once somebody awaits it, a future: no task.
What is not the plain case (no connection, no instance, too many bytes in flight) goes on in a task.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Generator
from typing import Any

import grpc

from mesh import codec, headers, liveness, metadata, streams, subjects, wire
from mesh.caller import MAX_BYTES_IN_FLIGHT, Caller, Target
from mesh.connection import Connection
from mesh.errors import NotConnectedError, ProtocolError, RpcError
from mesh.liveness import Peer
from mesh.metadata import Pairs
from mesh.streamcall import StreamCall, ask_once

Code = grpc.StatusCode


class Call:
    """One unary call: sent when made, awaited by whoever wants the answer.

    Not slotted: class attributes are the defaults, so that a plain call writes only what it needs
    (guarded by `make bench`).
    """

    error_class: type[RpcError] = RpcError
    size = 0
    """Bytes in flight that it counts for: its request's, and what its answer may be expected to have."""
    started = 0.0
    heard = 0.0
    silent_since = 0.0
    last_asked = 0.0
    _token = 0
    _call_name = ""
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
    _metadata: list[tuple[str, str]] = []  # noqa: RUF012  # header pairs; never written to
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
        target = self.target
        expected = target.answer_bytes
        if size > caller.room or caller.bytes_in_flight > MAX_BYTES_IN_FLIGHT or expected < 0 or target.peer.crosses:
            self._start_otherwise(size)
            return
        try:
            token = caller.connection.request(target.subject, data, self._on_reply)
        except NotConnectedError:
            self._start_otherwise(size)
            return
        size += expected
        self._token = token
        self.size = size
        self.started = time.monotonic()
        caller.pending[token] = self
        caller.bytes_in_flight += size
        if caller.sweeper is None:
            caller.arm()

    def start_with(self, timeout: float | None, user_metadata: object = None, *, wait_for_ready: bool = False) -> None:
        """Send with what a call may have. A deadline of the handler we are in is inherited (M-A7).

        Raises ValueError or TypeError for metadata that gRPC does not allow; nothing is sent then.
        """
        self._wait_for_ready = wait_for_ready
        try:
            if user_metadata:
                self._metadata = metadata.encode(user_metadata)
        except metadata.MetadataTooLargeError as error:
            self.fail(Code.RESOURCE_EXHAUSTED, str(error))
            return
        if not self._set_deadline(timeout):
            self.fail(Code.DEADLINE_EXCEEDED, "the deadline had passed before the call; nothing was sent")
            return
        self._start_otherwise(len(self._data))

    def _set_deadline(self, timeout: float | None) -> bool:
        """False where it has passed already."""
        self._deadline, self._limited_by_max_call = self._caller.call_deadline(timeout)
        if self._deadline is None:
            return True
        left = self._deadline - time.monotonic()
        if left <= 0:
            return False
        self._timer = self._caller.loop.call_later(left, self.expire)
        return True

    def _start_otherwise(self, size: int) -> None:
        caller, target = self._caller, self.target
        is_warm = target.answer_bytes >= 0 or target.cold_calls < target.cold_limit
        if size > caller.room:
            self._too_large(size)
        elif is_warm and caller.connection.is_connected and caller.bytes_in_flight <= MAX_BYTES_IN_FLIGHT:
            self._send()
        else:
            self._wait_turn()

    def _wait_turn(self) -> None:
        caller = self._caller
        if self._timer is None:  # in the queue nobody looks after it
            self._timer = caller.loop.call_later(caller.max_call, self.expire)
        self._later = caller.spawn(self._send_in_turn())

    def _too_large(self, size: int) -> None:
        """Over the limit, or only too large for one message: then it goes in pieces, on a session."""
        caller = self._caller
        if len(self._data) > caller.max_send_bytes:
            text = wire.too_large("request", size, caller.max_send_bytes, wire.SEND_LIMIT)
            self.fail(Code.RESOURCE_EXHAUSTED, text)
        else:
            self._later = caller.spawn(self._converse(len(self._data)))

    async def _converse(self, size: int, rest: str = "") -> None:
        """Send a large request and read its answer on a session, or fetch a large answer (`rest`).

        `size` counts as bytes in flight meanwhile.
        """
        caller = self._caller
        counted = 0
        try:
            has_turn = await caller.wait_turn(None if self._wait_for_ready else caller.reconnect_grace)
            if not has_turn:
                self.fail(Code.UNAVAILABLE, f"no connection to NATS within {caller.reconnect_grace:g} s")
                return
            counted = size
            caller.bytes_in_flight += counted
            caller.release(0)
            await self._ask_on_session(rest)
        finally:
            caller.release(counted)

    async def _ask_on_session(self, rest: str) -> None:
        session = StreamCall(self._caller, self.target, None)
        if rest:
            session.session.widen(int(rest.rpartition(".")[2]) + 4)  # it is counted: all of it may come at once
            at = subjects.session_subject(self.target.subject, rest.partition(".")[0])
            session.start_encoded([], self._deadline, open_subject=at, rest=rest.rpartition(".")[0], has_turn=True)
        else:
            session.put(self._data)
            session.start_encoded(self._metadata, self._deadline, wait_for_ready=self._wait_for_ready, has_turn=True)
        try:
            response = await ask_once(session)
        except asyncio.CancelledError:
            session.cancel()
            raise
        except RpcError as error:
            self._initial, self._trailing = session.initial, session.trailing
            self.fail(error.code(), error.details() or "")
        else:
            self._initial, self._trailing = session.initial, session.trailing
            self._take(response)

    async def _send_in_turn(self) -> None:
        caller = self._caller
        try:
            await caller.wait_warm(self.target)
            has_turn = await caller.wait_turn(None if self._wait_for_ready else caller.reconnect_grace)
        except asyncio.CancelledError:
            caller.release(0)
            raise
        if not has_turn:
            grace = caller.reconnect_grace
            self.fail(Code.UNAVAILABLE, f"no connection to NATS within {grace:g} s; nothing was sent")
        elif not self._done:
            self._send()
        caller.release(0)

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
            self._wait_turn()
            return
        if self.target.answer_bytes < 0:
            self.target.cold_calls += 1
        else:
            size += self.target.answer_bytes
        self._token = token
        self.size = size
        if not self.started:
            self.started = time.monotonic()
        caller.pending[token] = self
        caller.bytes_in_flight += size
        if caller.sweeper is None:
            caller.arm()

    def _headers(self) -> bytes:
        """Nothing for a plain call; a name where an account import lies between (see `mesh.liveness`)."""
        if self.target.peer.crosses:
            self._call_name = self._caller.new_name()
        left = deadline_ms = None
        if self._deadline is not None:
            left = max(1e-6, self._deadline - time.monotonic())
            deadline_ms = int((time.time() + left) * 1000)
        return wire.encode_request(
            timeout=left, deadline_ms=deadline_ms, call_name=self._call_name, encoded_metadata=self._metadata
        )

    # --- end -------------------------------------------------------------------------------------

    def _on_reply(self, data: bytes, block: bytes) -> None:
        caller = self._caller
        caller.pending.pop(self._token, None)
        caller.release(self.size)
        self._token = 0
        caller.learn(self.target, len(data))
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
        elif outcome.rest and (size := _rest_size(outcome.rest)) <= self._caller.max_receive_bytes:
            self._later = self._caller.spawn(self._converse(size, outcome.rest))
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
        times = self._undelivered_times
        self._undelivered_times += 1
        delay, code, text = await self._caller.after_undelivered(
            self.target, times, wait_for_ready=self._wait_for_ready
        )
        if code is not None:
            self.fail(code, text)
            return
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
        notice = liveness.cancel_notice(self.name or self._reply_subject())
        with contextlib.suppress(NotConnectedError):
            self._caller.connection.publish(subjects.call_subject(self.target.subject), notice)

    def _reply_subject(self) -> str:
        return self._caller.connection.reply_subject(self._token)

    # --- what `mesh.liveness` asks for -------------------------------------------------------------

    @property
    def place(self) -> str:
        """The method's subject."""
        return self.target.subject

    @property
    def peer(self) -> Peer:
        """Who serves it."""
        return self.target.peer

    @property
    def name(self) -> str:
        """What its instance knows it by: its name, or its reply subject where that arrives as it is."""
        return self._call_name or ("" if self.target.peer.crosses else self._reply_subject())

    def publishes_to(self, subject: str) -> bool:
        """Whether a refusal of this subject is the end of it."""
        return self.target.subject == subject

    def die(self) -> None:
        """End the call: its instance is gone."""
        self.fail(
            Code.UNAVAILABLE, f"the instance that had the call to {self.target.path} is gone; it may have executed it"
        )

    def _finish(self) -> None:
        self._done = True
        if self._token:
            self._caller.connection.forget(self._token)
            self._caller.pending.pop(self._token, None)
            self._caller.release(self.size)
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


def _rest_size(rest: str) -> int:
    """Size of an answer that is held, as its name says it; a name that is none is over any limit."""
    token, _, size = rest.partition(".")[0], *rest.rpartition(".")[1:]
    return int(size) if streams.is_token(token.encode()) and size.isascii() and size.isdigit() else 1 << 63


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
    return await _ask_service(connection, service, subjects.DESCRIPTOR_QUESTION, prefix, cluster, timeout)


async def methods_of(
    connection: Connection,
    service: str,
    *,
    prefix: str = subjects.DEFAULT_PREFIX,
    cluster: str | None = None,
    timeout: float = 2.0,
) -> frozenset[str]:
    """The methods that an instance of the service has, asked on `….<full service name>._mesh.methods`.

    So a method that nobody serves is told from a service that nobody serves. Raises as `describe_service`,
    and ProtocolError for an answer that is none.
    """
    answer = await _ask_service(connection, service, subjects.METHODS_QUESTION, prefix, cluster, timeout)
    methods = wire.decode_methods(answer)
    if methods is None:
        raise ProtocolError(f"{service} answered which methods it has by {answer[:80]!r}")
    return methods[0]


async def _ask_service(
    connection: Connection, service: str, question: str, prefix: str, cluster: str | None, timeout: float
) -> bytes:
    subject = subjects.question_subject(subjects.service_subject(service, prefix, cluster), question)
    answer = await connection.ask(subject, timeout=timeout)
    outcome = wire.outcome(answer.data, answer.headers)
    if not outcome.ok:
        raise RpcError(outcome.code, outcome.details)
    return outcome.data
