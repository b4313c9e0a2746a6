"""One request being served: what its handler may ask and say, and how it is answered."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio

from mesh import metadata, status, wire
from mesh.duplicates import Reply, Step
from mesh.wire import RequestHead

if TYPE_CHECKING:
    from mesh.server.endpoint import Endpoint

logger = logging.getLogger("mesh.server")

Code = grpc.StatusCode


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
    _rest = ""

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

    @property
    def is_answered(self) -> bool:
        """Whether the caller has its answer, whatever the handler still does."""
        return self._replied

    # --- answers ---------------------------------------------------------------------------------

    def prepare(self, response: Any) -> Reply | None:
        """The good answer of what the handler returned; None where it was answered, by a failure at the latest here."""
        if self._replied:
            return None
        if self._code is not None and self._code is not Code.OK:
            self.fail(self._code, self._details)
            return None
        payload = self.payload_of(response)
        if payload is None:
            return None
        block = b""
        is_json = self.head.is_json
        if is_json or self._initial or self._trailing:
            block = wire.encode_success(self._initial, self._trailing, as_json=is_json)
        host = self.endpoint.host
        if len(payload) + len(block) > host.room:
            self._too_large(payload, block)
            return None
        return payload, block

    def payload_of(self, response: Any) -> bytes | None:
        """What the handler returned, as bytes; None where it is not what it should be: the call has failed then."""
        endpoint = self.endpoint
        kind = endpoint.response_class
        if kind is not None and response.__class__ is not kind and not isinstance(response, kind):
            self.fail(Code.INTERNAL, f"the handler returned {_kind(response)}, not {endpoint.method.response_type}")
            return None
        try:
            payload = endpoint.encode_json(response) if self.head.is_json else endpoint.encode(response)
            if not isinstance(payload, bytes):
                raise TypeError(f"the serializer returned {_kind(payload)}, not bytes")
        except Exception as error:  # user's types and serializers raise what they like
            logger.exception("%s: the response cannot be sent", endpoint.method.path)
            self.fail(Code.INTERNAL, f"the response does not serialize: {error}")
            return None
        return payload

    def _too_large(self, payload: bytes, block: bytes) -> None:
        """One message cannot hold the answer. Its caller is told, and where it may be fetched, if it may be.

        An engine step's reply subject is a journal slot: what goes there is final.
        """
        host = self.endpoint.host
        text = host.too_large("response", len(payload), len(block))
        if len(payload) <= host.max_send_bytes and not self.head.is_json and not self.head.key:
            self._rest = host.hold(payload, block)
        self.fail(Code.RESOURCE_EXHAUSTED, text)

    def succeed(self, reply: Reply) -> None:
        """Send the good answer, unless it was answered."""
        if self._replied:
            return
        self._replied = True
        self.endpoint.host.publish(self.reply, *reply)
        if self.step is not None:
            self._answer, self._is_good = reply, True

    def fail(self, code: grpc.StatusCode, details: str) -> None:
        """Answer with a failure, unless it was answered."""
        if self._replied:
            return
        self._replied = True
        self.endpoint.stats.num_errors += 1
        self.endpoint.stats.last_error = f"{status.HTTP[code]}:{details}"[:1024]
        reply = self._answer_failure(code, details)
        if self.step is not None:
            self._answer = reply

    def _answer_failure(self, code: grpc.StatusCode, details: str) -> Reply:
        host = self.endpoint.host
        reply = failure(code, details, self._initial, self._trailing, self.head.is_json, host.room, rest=self._rest)
        host.publish(self.reply, *reply)
        return reply

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


def failure(
    code: grpc.StatusCode,
    details: str,
    initial: object,
    trailing: object,
    is_json: bool,
    room: int,
    rest: str = "",
) -> Reply:
    """The failure, without metadata where it would not fit or cannot be encoded."""
    with contextlib.suppress(ValueError, TypeError):
        reply = wire.encode_failure(code, details, initial=initial, trailing=trailing, as_json=is_json, rest=rest)
        if len(reply[0]) + len(reply[1]) <= room:
            return reply
    return wire.encode_failure(code, details, as_json=is_json, rest=rest)
