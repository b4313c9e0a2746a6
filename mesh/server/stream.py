"""One call with streams being served: the same context, with a session for its answer."""

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from mesh import codec, metadata, wire
from mesh.duplicates import Reply
from mesh.server.call import ServerCall, failure
from mesh.session import FIRST_WINDOW_BYTES, Pipe, PipeClosedError, share
from mesh.streams import Event, Fault, Session
from mesh.wire import RequestHead

if TYPE_CHECKING:
    from mesh.server.endpoint import Endpoint

Code = grpc.StatusCode


class ServerStream(ServerCall):
    """A call on a session: reads and writes messages, ends with a status."""

    pipe: Pipe
    _is_refused = True
    """Until a session is made: then failures are plain replies."""

    def __init__(self, endpoint: "Endpoint", reply: str, head: RequestHead, began_ns: int) -> None:
        super().__init__(endpoint, reply, head, began_ns)
        self._initial_sent = False

    def accept(self, ident: int, opening: bytes) -> bool:
        """Take the session. False where its opening is none: it is answered then."""
        host = self.endpoint.host
        session = Session(
            ident,
            max_receive_bytes=host.max_receive_bytes,
            frame_bytes=host.connection.max_payload,
            window=share(len(host.sessions) + 1, FIRST_WINDOW_BYTES),
            peer_window=self.head.window,
        )
        keepalive = min(host.keepalive, self.head.stream_ms / 1000)
        self.pipe = Pipe(host.connection, session, self._send, self._on_event, keepalive, host.sessions)
        self._is_refused = False
        session.accept(round(keepalive * 1000), host.token)
        host.sessions[ident] = self.pipe
        host.pulse.add(self.pipe)
        self.pipe.happened(session.receive_opening(opening))
        self.pipe.flush()
        return not self._replied

    def _send(self, payload: bytes, block: bytes) -> None:
        self.endpoint.host.connection.publish(self.reply, payload, headers=block)

    def _on_event(self, event: Event) -> None:
        session = self.pipe.session
        if event & Event.CANCELLED:
            self.cut_off(Code.CANCELLED, "the call was cancelled by its caller")
        elif event & Event.BROKEN:
            if session.fault is Fault.TOO_LARGE:
                limit = self.endpoint.host.max_receive_bytes
                text = wire.too_large("request", int(session.fault_text), limit, wire.RECEIVE_LIMIT)
                self.cut_off(Code.RESOURCE_EXHAUSTED, text)
            elif session.fault is Fault.LOST:
                self.cut_off(Code.UNAVAILABLE, f"the stream broke: {session.fault_text}")
            else:
                self.endpoint.stats.malformed += 1
                self.cut_off(Code.INTERNAL, f"the stream broke: {session.fault_text}")

    # --- read and write ----------------------------------------------------------------------------

    async def next_request(self) -> Any:
        """The next message, decoded; None after the last.

        Raises AbortError where it does not decode, which ends the call, CancelledError where the call was cut off.
        """
        try:
            data = await self.pipe.read()
        except PipeClosedError:
            raise self._over() from None
        return None if data is None else self._decoded(data)

    def _decoded(self, data: bytes) -> Any:
        try:
            return self.endpoint.decode(data)
        except Exception as error:  # noqa: BLE001  # a decoder raises what it likes; the request is at fault
            self.endpoint.stats.malformed += 1
            name = self.endpoint.method.request_type or codec.type_name(self.endpoint.decode)
            self.fail(Code.INVALID_ARGUMENT, f"the request does not decode as {name}: {error}")
        raise grpc.aio.AbortError

    async def only_request(self) -> Any:
        """The one message of a caller that sends one. Raises as `next_request`, and AbortError where there is none."""
        request = await self.next_request()
        if request is None:
            self.fail(Code.INTERNAL, "the caller sent no request")
            raise grpc.aio.AbortError
        return request

    async def respond(self, response: Any) -> None:
        """Send a message; waits while the caller is a window behind. Raises as `next_request`."""
        if self._replied:
            raise self._over()
        payload = self._encoded(response)
        if payload is None:
            raise grpc.aio.AbortError
        if self._initial and not self._initial_sent:
            self._send_initial()
        try:
            await self.pipe.write(payload)
        except PipeClosedError:
            raise self._over() from None

    def _encoded(self, response: Any) -> bytes | None:
        payload = self.payload_of(response)
        host = self.endpoint.host
        if payload is not None and len(payload) > host.max_send_bytes:
            self.fail(Code.RESOURCE_EXHAUSTED, host.too_large("response", len(payload), 0))
            return None
        return payload

    def _over(self) -> BaseException:
        if self._cut_off:
            return asyncio.CancelledError()
        return grpc.aio.UsageError("the call is over")

    # --- metadata and the end ------------------------------------------------------------------------

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Metadata before the first message, at once. Raises ValueError or TypeError for what gRPC does not allow."""
        self.keep_initial(initial_metadata)
        self._send_initial()

    def _send_initial(self) -> None:
        if self._initial_sent or self._replied:
            return
        self._initial_sent = True
        self.pipe.session.send_initial(wire.encode_success(self._initial))
        self.pipe.flush_soon()

    def keep_initial(self, initial_metadata: Any) -> None:
        """Metadata that leaves before the first message."""
        if self._initial_sent:
            raise grpc.aio.UsageError("initial metadata was sent")
        super().keep_initial(initial_metadata)

    def prepare(self, response: Any) -> Reply | None:
        """The good end; None where it was answered, by a failure at the latest here."""
        if self._replied:
            return None
        if self._code is not None and self._code is not Code.OK:
            self.fail(self._code, self._details)
            return None
        initial = None if self._initial_sent else self._initial
        try:
            return b"", wire.encode_success(initial, self._trailing)
        except (ValueError, TypeError, metadata.MetadataTooLargeError) as error:
            self.fail(Code.INTERNAL, f"the metadata cannot be sent: {error}")
            return None

    def succeed(self, reply: Reply) -> None:
        """End it well, unless it has ended."""
        if not self._replied:
            self._replied = True
            self._end(reply[1])

    def _answer_failure(self, code: grpc.StatusCode, details: str) -> Reply:
        if self._is_refused:
            return super()._answer_failure(code, details)
        initial = None if self._initial_sent else self._initial
        reply = failure(code, details, initial, self._trailing, False, self.endpoint.host.room)
        self._end(reply[1])
        return reply

    def _end(self, block: bytes) -> None:
        pipe = self.pipe
        pipe.session.end(block)
        pipe.flush()
        self._release()
        pipe.close()

    def _release(self) -> None:
        host = self.endpoint.host
        host.sessions.pop(self.pipe.session.ident, None)
        host.pulse.discard(self.pipe)
