"""One call with streams: open, read, write, end.

Serves every cardinality: a request of one message is written and the half closed before it is
opened, a response of one message is read to its end. What users hold is a thin object of an
adapter; the call lives here and in its caller's list of streams, so that it can be ended when theirs
is dropped.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any, NoReturn

import grpc

from mesh import codec, headers, liveness, metadata, subjects, wire
from mesh.caller import MAX_BYTES_IN_FLIGHT, Caller, Target
from mesh.errors import NotConnectedError, RpcError
from mesh.metadata import Pairs
from mesh.session import FIRST_WINDOW_BYTES, Pipe, PipeClosedError, keepalive_ms, share
from mesh.streams import ALIVE, Event, Fault, Session

Code = grpc.StatusCode


class StreamCall:
    """A call on a session. Made, then started; read, written and cancelled by whoever has it."""

    def __init__(
        self,
        caller: Caller,
        target: Target,
        decode: Callable[[bytes], Any] | None,
        error_class: type[RpcError] = RpcError,
    ) -> None:
        self.target = target
        self._caller = caller
        self._decode = decode
        self._error_class = error_class
        self._connection = caller.connection
        frame_bytes = caller.connection.max_payload
        self.session = Session(max_receive_bytes=caller.max_receive_bytes, frame_bytes=frame_bytes)
        self.pipe = Pipe(caller.connection, self.session, self._send, self._on_event, caller.keepalive, caller.streams)
        self.error: RpcError | None = None
        self.initial: Pairs = ()
        self.trailing: Pairs = ()
        self.deadline: float | None = None
        self._metadata: list[tuple[str, str]] = []
        self._limited_by_max_call = True
        self._wait_for_ready = False
        self._undelivered_times = 0
        self._opening: bytes | None = None
        self._open_subject = target.subject
        self._rest = ""
        self._subject = ""
        self._token = 0
        self._done = False
        self._cancelled = False
        self._has_initial = asyncio.Event()
        self._ended = asyncio.Event()
        self._callbacks: list[Callable[[], None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # --- start -----------------------------------------------------------------------------------

    def start(self, timeout: float | None, user_metadata: object = None, *, wait_for_ready: bool = False) -> None:
        """Open it. Raises ValueError or TypeError for metadata that gRPC does not allow; nothing is sent then."""
        try:
            if user_metadata:
                self._metadata = metadata.encode(user_metadata)
            deadline, limited = self._caller.call_deadline(timeout)
        except metadata.MetadataTooLargeError as error:
            self.fail(Code.RESOURCE_EXHAUSTED, str(error))
            return
        self.start_encoded(self._metadata, deadline, limited_by_max_call=limited, wait_for_ready=wait_for_ready)

    def start_encoded(
        self,
        encoded_metadata: list[tuple[str, str]],
        deadline: float | None,
        *,
        limited_by_max_call: bool = False,
        wait_for_ready: bool = False,
        has_turn: bool = False,
        open_subject: str = "",
        rest: str = "",
    ) -> None:
        """Open it with header pairs and a deadline on `time.monotonic`; at one instance where a subject is given."""
        caller = self._caller
        if self._done:  # its only message was too large
            return
        caller.streams.add(self)
        self._metadata = encoded_metadata
        self._wait_for_ready = wait_for_ready
        self._open_subject = open_subject or self.target.subject
        self._rest = rest
        self.deadline, self._limited_by_max_call = deadline, limited_by_max_call
        left = caller.max_call if deadline is None else deadline - time.monotonic()
        if left <= 0:
            self.fail(Code.DEADLINE_EXCEEDED, "the deadline had passed before the call; nothing was sent")
            return
        self._timer = caller.loop.call_later(left, self.expire)
        if caller.connection.is_connected and (has_turn or caller.bytes_in_flight <= MAX_BYTES_IN_FLIGHT):
            self._open()
        else:
            self.spawn(self._open_in_turn())

    def spawn(self, work: Any) -> asyncio.Task[None]:
        """Run what belongs to the call; cancelled at its end."""
        task: asyncio.Task[None] = self._caller.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _open_in_turn(self) -> None:
        caller = self._caller
        grace = caller.reconnect_grace
        try:
            has_turn = await caller.wait_turn(None if self._wait_for_ready else grace)
            if not has_turn:
                self.fail(Code.UNAVAILABLE, f"no connection to NATS within {grace:g} s; nothing was sent")
            elif not self._done:
                self._open()
        finally:
            caller.release(0)

    def _open(self) -> None:
        if not self._rest:
            self.session.window = share(len(self._caller.streams), FIRST_WINDOW_BYTES)
        block = self._headers()
        if self._opening is None:
            self._opening = self.session.opening(self._connection.max_payload - len(block))
        try:
            self._token = self._connection.request_many(
                self._open_subject, self._opening, self._on_message, headers=block
            )
        except NotConnectedError:
            self.spawn(self._open_in_turn())
            return
        self.pipe.heard = self.pipe.said = self._caller.loop.time()
        self._caller.pulse.add(self.pipe)

    def _headers(self) -> bytes:
        left = deadline_ms = None
        if self.deadline is not None:
            left = max(1e-6, self.deadline - time.monotonic())
            deadline_ms = int((time.time() + left) * 1000)
        return wire.encode_request(
            timeout=left,
            deadline_ms=deadline_ms,
            stream_ms=keepalive_ms(self._caller.keepalive),
            window=self.session.window,
            rest=self._rest,
            encoded_metadata=self._metadata,
        )

    def _send(self, payload: bytes, block: bytes) -> None:
        """A frame of ours. A sign of life carries a reply subject: the server says at once if nobody takes it."""
        reply = self._connection.reply_subject(self._token) if payload[0] == ALIVE else ""
        self._connection.publish(self._subject, payload, reply=reply, headers=block)

    # --- what comes --------------------------------------------------------------------------------

    def _on_message(self, payload: bytes, block: bytes) -> None:
        if self._done:
            return
        if not self.session.ident and block:
            self._refused(payload, block)
        elif block and not payload and headers.is_no_responders(block):
            self.fail(Code.UNAVAILABLE, f"the instance that had the call to {self.target.path} is gone")
        else:
            self.pipe.feed(payload, block)

    def _refused(self, payload: bytes, block: bytes) -> None:
        """An answer that is no session: a failure, or somebody who knows no sessions."""
        if not payload and headers.is_no_responders(block):
            self._drop_token()
            self.spawn(self._undelivered())
            return
        outcome = wire.outcome(payload, block)
        self.initial, self.trailing = outcome.initial_metadata, outcome.trailing_metadata
        if outcome.ok:
            self.fail(Code.INTERNAL, f"{self.target.path} was answered by one message that opens no stream")
        else:
            self.fail(outcome.code, outcome.details)

    async def _undelivered(self) -> None:
        if self._rest:
            self.fail(Code.UNAVAILABLE, "the instance that holds the answer is gone")
            return
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
            self._open()

    def _on_event(self, event: Event) -> None:
        session = self.session
        if event & Event.ACCEPTED:
            self._subject = subjects.session_subject(self.target.subject, session.token)
            self.pipe.keepalive = min(self._caller.keepalive, session.keepalive_ms / 1000)
            self._caller.pulse.add(self.pipe)
        if event & Event.INITIAL:
            self.initial = wire.outcome(b"", session.initial_block or b"").initial_metadata
        if event & (Event.INITIAL | Event.DATA):
            self._has_initial.set()
        if event & Event.ENDED:
            self._end(wire.outcome(b"", session.end_block or b""))
        elif event & Event.BROKEN:
            self._broken()

    def _end(self, outcome: wire.Outcome) -> None:
        self.trailing = outcome.trailing_metadata
        self.initial = self.initial or outcome.initial_metadata
        if outcome.ok:
            self._finish()
        else:
            self.fail(outcome.code, outcome.details)

    def _broken(self) -> None:
        session, path = self.session, self.target.path
        self._tell_cancelled()
        session.received.clear()
        if session.fault is Fault.TOO_LARGE:
            limit = self._caller.max_receive_bytes
            text = wire.too_large("reply", int(session.fault_text), limit, wire.RECEIVE_LIMIT)
            self.fail(Code.RESOURCE_EXHAUSTED, text)
        elif session.fault is Fault.LOST:
            self.fail(Code.UNAVAILABLE, f"the stream of {path} broke: {session.fault_text}")
        else:
            self.fail(Code.INTERNAL, f"the stream of {path} broke: {session.fault_text}")

    # --- read and write ----------------------------------------------------------------------------

    async def read(self) -> Any:
        """The next message, decoded; None after the last one of a call that ended well.

        Raises RpcError, or CancelledError if the call was cancelled; cancelling the task that reads
        cancels the call, as with grpc.aio.
        """
        try:
            data = await self.pipe.read()
        except PipeClosedError:
            data = None
        except asyncio.CancelledError:
            self.cancel()
            raise
        if data is not None:
            return self._decoded(data)
        await self.settled()
        self.raise_for_status()
        return None

    def _decoded(self, data: bytes) -> Any:
        if self._decode is None:
            return data
        try:
            return self._decode(data)
        except Exception as error:  # noqa: BLE001  # whatever a decoder raises: the call ends
            self._tell_cancelled()
            name = codec.type_name(self._decode)
            self.session.received.clear()
            self._done = False  # it may have ended well, as far as its instance knows
            self.fail(Code.INTERNAL, f"the reply does not decode as {name}: {error}")
        self.raise_for_status()
        raise AssertionError

    async def write(self, data: bytes) -> None:
        """Send a message; waits while the reader is a window behind.

        Raises RpcError or CancelledError where the call has ended, asyncio.InvalidStateError where it ended well.
        """
        limit = self._caller.max_send_bytes
        if len(data) > limit and not self._done:
            self._tell_cancelled()
            self.fail(Code.RESOURCE_EXHAUSTED, wire.too_large("request", len(data), limit, wire.SEND_LIMIT))
        try:
            await self.pipe.write(data)
        except PipeClosedError:
            await self.settled()
            self.raise_for_status()
            raise asyncio.InvalidStateError("the call has ended") from None
        except asyncio.CancelledError:
            self.cancel()
            raise

    def refuse(self, what: str) -> NoReturn:
        """Raise INTERNAL: its instance sent what the method does not have, whatever status it gave or will give."""
        self._tell_cancelled()
        self._done = False
        self.fail(Code.INTERNAL, f"{self.target.path} ended with {what}")
        self.raise_for_status()
        raise AssertionError

    def put(self, data: bytes) -> None:
        """The only message, before the call is started: written, and our half closed."""
        limit = self._caller.max_send_bytes
        if len(data) > limit:
            self.fail(Code.RESOURCE_EXHAUSTED, wire.too_large("request", len(data), limit, wire.SEND_LIMIT))
            return
        self.session.write(data)
        self.session.half_close()

    def half_close(self) -> None:
        """Nothing more will be written."""
        if not self._done:
            self.session.half_close()
            self.pipe.flush_soon()

    def raise_for_status(self) -> None:
        """Raise what the call ended with, nothing where that was OK."""
        if self._cancelled:
            raise asyncio.CancelledError
        if self.error is not None:
            raise self.error

    # --- end -------------------------------------------------------------------------------------

    @property
    def is_done(self) -> bool:
        """Whether it has ended; messages may still be there to be read."""
        return self._done

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` ended it."""
        return self._cancelled

    def publishes_to(self, subject: str) -> bool:
        """Whether a refusal of this subject is the end of it."""
        return subject in (self._open_subject, self._subject)

    def expire(self) -> None:
        """The deadline, or `max_call`, is reached."""
        if self._done:
            return
        self._tell_cancelled()
        self.session.received.clear()
        if self._limited_by_max_call:
            text = f"the call reached max_call, {self._caller.max_call:g} s"
        else:
            text = "the deadline of the call has passed"
        self.fail(Code.DEADLINE_EXCEEDED, text)

    def cancel(self, details: str = "the call was cancelled by its caller") -> bool:
        """End it CANCELLED and tell its instance. False if it had ended."""
        if self._done:
            return False
        self._cancelled = True
        self._tell_cancelled()
        self.session.received.clear()
        self.fail(Code.CANCELLED, details)
        return True

    def abandon(self) -> None:
        """Its user has dropped it: cancel it soon. From any thread, since a collector of garbage runs in any."""
        if not self._done:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and so is everything on it
                self._caller.loop.call_soon_threadsafe(self.cancel)

    def _tell_cancelled(self) -> None:
        if not self._token:
            return
        with contextlib.suppress(NotConnectedError):
            if self._subject:
                self.session.cancel()
                for payload, block in self.session.take_output():
                    self._send(payload, block)
            elif not self._rest:  # it may have been taken, and we do not know yet by whom
                notice = liveness.cancel_notice(self._connection.reply_subject(self._token))
                self._connection.publish(subjects.call_subject(self.target.subject), notice)

    def fail(self, code: grpc.StatusCode, details: str) -> None:
        """End it with this code, unless it has ended."""
        if self._done:
            return
        self.error = self._error_class(code, details, initial_metadata=self.initial, trailing_metadata=self.trailing)
        self._finish()

    def _finish(self) -> None:
        self._done = True
        self._caller.streams.discard(self)
        self._caller.pulse.discard(self.pipe)
        self._drop_token()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.pipe.close()
        self._has_initial.set()
        self._ended.set()
        current = asyncio.current_task() if self._tasks else None
        for task in self._tasks:
            if task is not current:
                task.cancel()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            self._caller.loop.call_soon(callback)

    def _drop_token(self) -> None:
        if self._token:
            self._connection.forget(self._token)
            self._token = 0

    async def settled(self) -> None:
        """Wait for the end without raising what it was."""
        await self._ended.wait()

    async def has_initial(self) -> None:
        """Wait until initial metadata, a message or the end has come."""
        await self._has_initial.wait()

    def add_done_callback(self, callback: Callable[[], None]) -> None:
        """Call `callback()` when it has ended, at the next loop turn if it has."""
        if self._done:
            self._caller.loop.call_soon(callback)
        else:
            self._callbacks.append(callback)


async def ask_once(call: StreamCall) -> Any:
    """The one response of a started call. Raises as `StreamCall.read`, INTERNAL where none or more than one came."""
    response = await call.read()
    if response is None or await call.read() is not None:
        call.refuse("no response" if response is None else "more than one response")
    return response
