"""What a servicer's method gets as its context: grpc.aio's, and grpc's for plain functions."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import grpc
import grpc.aio

from mesh.server import ServerCall, ServerStream


class ServicerContext(ServerCall, grpc.aio.ServicerContext[Any, Any]):
    """grpc.aio's servicer context of a unary call."""

    async def read(self) -> Any:
        """Raises: a unary call has its request as an argument."""
        raise grpc.aio.UsageError("read() is for streaming requests")

    async def write(self, message: Any) -> None:
        """Raises: a unary call returns its response."""
        raise grpc.aio.UsageError("write() is for streaming responses")

    def set_compression(self, compression: Any) -> None:
        """Nothing: accepted, without effect on NATS (M-C9)."""

    def disable_next_message_compression(self) -> None:
        """Nothing: see `set_compression`."""

    def peer_identities(self) -> Iterable[bytes] | None:
        """None: nothing on a NATS message proves who sent it."""
        return None

    def peer_identity_key(self) -> str | None:
        """None: see `peer_identities`."""
        return None

    def auth_context(self) -> Mapping[str, Any]:
        """Empty: see `peer_identities`."""
        return {}


class StreamServicerContext(ServerStream, ServicerContext):
    """grpc.aio's servicer context of a call with streams."""

    async def read(self) -> Any:
        """The next request, `grpc.aio.EOF` after the last. Raises CancelledError where the call was cut off."""
        request = await self.next_request()
        return grpc.aio.EOF if request is None else request

    async def write(self, message: Any) -> None:
        """Send a response; waits while the caller is a window behind.

        Raises CancelledError where the call was cut off, AbortError where the message cannot be sent: the call has
        ended then.
        """
        await self.respond(message)


class SyncServicerContext(grpc.ServicerContext):
    """grpc's context for a servicer of plain functions, which run in threads."""

    def __init__(self, call: ServerCall) -> None:
        self._call = call

    def abort(self, code: grpc.StatusCode, details: str, trailing_metadata: Any = ()) -> NoReturn:
        """End the call with this status; raises, and the handler lets that pass."""
        call = self._call
        if trailing_metadata:
            call.set_trailing_metadata(trailing_metadata)
        call.endpoint.host.loop.call_soon_threadsafe(call.fail_with, code, details)
        raise grpc.aio.AbortError(details)

    def abort_with_status(self, status: Any) -> NoReturn:
        """As `abort`, from a `grpc.Status`."""
        self.abort(status.code, status.details, status.trailing_metadata)

    def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Metadata before the response; it travels with the answer."""
        self._call.keep_initial(initial_metadata)

    def is_active(self) -> bool:
        """Whether anybody waits for the response."""
        return not (self._call.done() or self._call.cancelled())

    def cancel(self) -> bool:
        """End the call CANCELLED. False if it was over."""
        call = self._call
        was_active = self.is_active()
        call.endpoint.host.loop.call_soon_threadsafe(
            call.cut_off, grpc.StatusCode.CANCELLED, "cancelled by its handler"
        )
        return was_active

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Call `callback()` when the call is over; False if it is."""
        if self._call.done():
            return False
        loop = self._call.endpoint.host.loop
        loop.call_soon_threadsafe(self._call.add_done_callback, lambda _: callback())
        return True

    def disable_next_message_compression(self) -> None:
        """Nothing: accepted, without effect on NATS (M-C9)."""

    def set_compression(self, compression: Any) -> None:
        """Nothing: see `disable_next_message_compression`."""

    def peer_identities(self) -> Iterable[bytes] | None:
        """None: nothing on a NATS message proves who sent it."""
        return None

    def peer_identity_key(self) -> str | None:
        """None: see `peer_identities`."""
        return None

    def auth_context(self) -> Mapping[str, Any]:
        """Empty: see `peer_identities`."""
        return {}

    def invocation_metadata(self) -> Any:
        """The metadata that the caller sent."""
        return self._call.invocation_metadata()

    def peer(self) -> str:
        """As ServerCall."""
        return self._call.peer()

    def time_remaining(self) -> Any:
        """As ServerCall: None without a deadline."""
        return self._call.time_remaining()

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """As ServerCall."""
        self._call.set_trailing_metadata(trailing_metadata)

    def trailing_metadata(self) -> Any:
        """As ServerCall."""
        return self._call.trailing_metadata()

    def set_code(self, code: Any) -> None:
        """As ServerCall."""
        self._call.set_code(code)

    def set_details(self, details: str) -> None:
        """As ServerCall."""
        self._call.set_details(details)

    def code(self) -> Any:
        """As ServerCall."""
        return self._call.code()

    def details(self) -> str:
        """As ServerCall."""
        return self._call.details()
