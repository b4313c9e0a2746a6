"""The one connection to NATS: open, publish, subscribe, request, watch over it.

Everything above works with plain functions and callbacks on bytes; nats-py stays behind this room and `guard.py`. A
connection reconnects for ever. While it is away, publishing raises NotConnectedError: nothing is held back and sent
later.
"""

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Self

from mesh import headers as header_block
from mesh.errors import ConnectError, NoRespondersError, NotConnectedError
from mesh.guard import GuardedClient, RawHandler
from mesh.options import ConnectOptions

__all__ = ["Answer", "Connection", "RawHandler"]

logger = logging.getLogger("mesh.connection")

PING_INTERVAL = 10.0
"""Seconds between pings; after two unanswered ones a link is given up (nats-py's own 120 s would take minutes)."""
RECONNECT_WAIT = 0.25
"""Seconds between two attempts at the same server."""
WATCHDOG_INTERVAL = 5.0
"""Seconds between two round trips through an own inbox: a dead read loop looks connected to anything less."""
LINGER = 5.0
"""Seconds for which messages of an ended subscription are still handled."""
WRITE_HIGH_WATER = 4 << 20
"""Bytes waiting to be written past which `drain_writes` waits. The server cuts a client at 64 MB (`max_pending`)."""


class Answer(NamedTuple):
    """What came back on a request: payload and raw header block (see `mesh.headers`)."""

    data: bytes
    headers: bytes


class Connection:
    """One NATS connection, guarded against malformed messages, dead read loops and silent links."""

    def __init__(self, options: ConnectOptions) -> None:
        self.options = options
        self._client = GuardedClient()
        self._client.permission_error = self._permission_error
        self._callbacks: dict[int, Callable[[bytes, bytes], None]] = {}
        self._streams: dict[int, Callable[[bytes, bytes], None]] = {}
        self._token = 0
        self._inbox = ""
        self._inbox_cut = 0
        self._state_listeners: list[Callable[[str], None]] = []
        self._permission_listeners: list[Callable[[str, str], None]] = []
        self._watchdog: asyncio.Task[None] | None = None
        self._refused: Exception | None = None
        self._closed = asyncio.Event()

    # --- open and close

    @classmethod
    async def open(cls, options: ConnectOptions) -> Self:
        """Connect. Raises ConnectError when no server accepts us within `options.connect_timeout` seconds."""
        self = cls(options)
        await self._connect()
        return self

    async def _connect(self) -> None:
        timeout = self.options.connect_timeout
        connecting = asyncio.ensure_future(
            self._client.connect(
                **self.options.nats_kwargs(),
                allow_reconnect=True,
                max_reconnect_attempts=-1,
                reconnect_time_wait=RECONNECT_WAIT,  # type: ignore[arg-type]  # likewise
                ping_interval=PING_INTERVAL,  # type: ignore[arg-type]  # nats-py says int and sleeps for it
                max_outstanding_pings=2,
                error_cb=self._error,
                disconnected_cb=self._disconnected,
                reconnected_cb=self._reconnected,
                closed_cb=self._gone,
            )
        )
        deadline = time.monotonic() + timeout if timeout is not None else float("inf")
        try:
            while not connecting.done() and self._refused is None and time.monotonic() < deadline:
                await asyncio.wait([connecting], timeout=min(0.05, max(0.0, deadline - time.monotonic())))
        finally:
            if not connecting.done():
                connecting.cancel()
                await asyncio.wait([connecting])
        failed = connecting.cancelled() or connecting.exception() is not None
        if failed or not self._client.is_connected:  # nats-py takes a link that ends after CONNECT for a connection
            reason = self._refused or (connecting.exception() if failed and not connecting.cancelled() else None)
            reason = reason or self._client.last_error
            # It never was open: whatever closing says adds nothing, and it may say CancelledError.
            await asyncio.gather(self._client.close(), return_exceptions=True)
            raise ConnectError(self.options.describe(), str(reason or "no answer"))
        self._start()

    def _start(self) -> None:
        self._inbox = f"{self.options.inbox_prefix}.{self._client._nuid.next().decode()}"
        self._inbox_cut = len(self._inbox) + 1
        self.subscribe(f"{self._inbox}.*", self._on_answer)
        self._watchdog = asyncio.create_task(self._watch(), name="mesh-watchdog")

    async def close(self) -> None:
        """Write what is queued and close. Requests in flight never hear an answer."""
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        with contextlib.suppress(NotConnectedError, OSError):
            await self._client.drain_transport()
        await self._client.close()

    async def wait_closed(self) -> None:
        """Return when the connection is closed for good, by us or because it could not be mended."""
        await self._closed.wait()

    # --- what it is

    @property
    def is_connected(self) -> bool:
        """Whether a server has us at this moment."""
        return bool(self._client.is_connected)

    @property
    def is_closed(self) -> bool:
        """Whether it is closed for good."""
        return bool(self._client.is_closed)

    @property
    def max_payload(self) -> int:
        """Bytes the server takes in one message, header block and payload together."""
        return int(self._client.max_payload)

    @property
    def server_info(self) -> dict[str, Any]:
        """The server's INFO (version, cluster, …)."""
        return self._client._server_info

    @property
    def bad_messages(self) -> int:
        """Messages dropped because they or their handler raised."""
        return self._client.bad_messages

    def on_state(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Be told `disconnected`, `reconnected` or `closed`. Call what is returned to be told no more."""
        self._state_listeners.append(callback)
        return lambda: self._state_listeners.remove(callback)

    def on_permission_error(self, callback: Callable[[str, str], None]) -> Callable[[], None]:
        """Be told what the server refused: `publish` or `subscription`, and the subject. Returns as `on_state`."""
        self._permission_listeners.append(callback)
        return lambda: self._permission_listeners.remove(callback)

    # --- publish, subscribe, request

    def publish(self, subject: str, data: bytes = b"", *, reply: str = "", headers: bytes = b"") -> None:
        """Queue one message; all of a loop turn leave in one write.

        Raises NotConnectedError while there is no connection. The caller has validated the subject and checked
        `max_payload`.
        """
        client = self._client
        if client._status != 1:  # Client.CONNECTED; the property costs a call
            raise NotConnectedError
        if headers:
            size = len(headers)
            client.send(
                b"HPUB %b %b %d %d\r\n%b%b\r\n"
                % (subject.encode(), reply.encode(), size, size + len(data), headers, data)
            )
        else:
            client.send(b"PUB %b %b %d\r\n%b\r\n" % (subject.encode(), reply.encode(), len(data), data))

    def subscribe(self, subject: str, handler: RawHandler, *, queue: str = "") -> int:
        """Call `handler` with every message on `subject`, from the read loop. Returns the subscription's id.

        That the server knows it is certain after a `round_trip`; that it allows it as well (see `on_permission_error`).
        """
        return self._client.raw_subscribe(subject, queue, handler)

    def unsubscribe(self, sid: int) -> None:
        """End a subscription."""
        self._client.raw_unsubscribe(sid)

    async def retire(self, sids: Iterable[int], timeout: float = 5.0) -> None:
        """End subscriptions without losing a message that the server has sent our way already.

        Handlers are called until the server is known to have ended them, then no more.
        """
        ended = list(sids)
        for sid in ended:
            self._client.raw_end_interest(sid)
        try:
            await self.round_trip(timeout)
        except (TimeoutError, NotConnectedError):
            logger.warning("%d subscriptions ended without the server's word", len(ended))
        finally:
            for sid in ended:
                self.unsubscribe(sid)

    def unsubscribe_later(self, sid: int) -> None:
        """End a subscription and still handle what the server has already sent: nothing is lost in between."""
        self._client.raw_end_interest(sid)
        asyncio.get_running_loop().call_later(LINGER, self.unsubscribe, sid)

    def request(
        self, subject: str, data: bytes, callback: Callable[[bytes, bytes], None], *, headers: bytes = b""
    ) -> int:
        """Publish with a reply subject of our own; `callback(payload, header block)` gets the first answer, if one
        comes.

        Returns a token for `forget`. Raises NotConnectedError.
        """
        self._token += 1
        token = self._token
        self.publish(subject, data, reply=f"{self._inbox}.{token}", headers=headers)
        self._callbacks[token] = callback
        return token

    def request_many(
        self, subject: str, data: bytes, callback: Callable[[bytes, bytes], None], *, headers: bytes = b""
    ) -> int:
        """As `request`, but `callback` gets every answer until the token is forgotten."""
        self._token += 1
        token = self._token
        self.publish(subject, data, reply=f"{self._inbox}.{token}", headers=headers)
        self._streams[token] = callback
        return token

    def reply_subject(self, token: int) -> str:
        """The reply subject of a request: what its receiver knows it by, in the same account."""
        return f"{self._inbox}.{token}"

    def forget(self, token: int) -> None:
        """Take no interest in the answers to a request any more."""
        if self._callbacks.pop(token, None) is None:
            self._streams.pop(token, None)

    async def ask(self, subject: str, data: bytes = b"", *, headers: bytes = b"", timeout: float) -> Answer:
        """Request and wait for the answer.

        Raises TimeoutError after `timeout` seconds, NoRespondersError where nobody listens, NotConnectedError.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def answered(payload: bytes, block: bytes) -> None:
            if not future.done():
                future.set_result(Answer(payload, block))

        token = self.request(subject, data, answered, headers=headers)
        try:
            async with asyncio.timeout(timeout):
                answer = await future
        finally:
            self.forget(token)
        if answer.headers and header_block.is_no_responders(answer.headers):
            raise NoRespondersError(subject)
        return answer

    def _on_answer(self, subject: str, reply: str, data: bytes, block: bytes) -> None:
        token = int(subject[self._inbox_cut :])
        callback = self._callbacks.pop(token, None) or self._streams.get(token)
        if callback is not None:
            callback(data, block)

    def new_inbox(self) -> str:
        """A subject nobody else listens on, beneath this user's inbox prefix."""
        return f"{self.options.inbox_prefix}.{self._client._nuid.next().decode()}"

    async def round_trip(self, timeout: float = 5.0) -> float:
        """Seconds of a message to ourselves and back: whatever was sent before it has reached the server.

        Raises TimeoutError, NotConnectedError.
        """
        began = time.monotonic()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._token += 1
        token = self._token
        self._callbacks[token] = functools.partial(_resolve, future)
        try:
            self.publish(f"{self._inbox}.{token}")
            async with asyncio.timeout(timeout):
                await future
        finally:
            self.forget(token)
        return time.monotonic() - began

    @property
    def received_bytes(self) -> int:
        """Bytes read since it was opened, also those of a message that is not complete yet."""
        return self._client.parser.received_bytes

    @property
    def is_congested(self) -> bool:
        """Whether more than WRITE_HIGH_WATER bytes wait to be written."""
        return self._client.write_buffer_bytes > WRITE_HIGH_WATER

    async def wait_writable(self) -> None:
        """Write what is queued; return when at most WRITE_HIGH_WATER bytes wait, or there is no connection."""
        self._client.flush_now()
        with contextlib.suppress(OSError):  # it broke while we waited: whoever writes next is told
            while self.is_connected and self.is_congested:
                await self._client.drain_transport()

    async def drain_writes(self) -> None:
        """Write what is queued; wait while too much is waiting."""
        await self._client.drain_transport()

    # --- watching over it

    async def _watch(self) -> None:
        """Force a reconnect where the link looks alive and is not."""
        while True:
            await asyncio.sleep(WATCHDOG_INTERVAL)
            if not self.is_connected:
                continue
            try:
                await self.round_trip(timeout=2 * WATCHDOG_INTERVAL)
            except NotConnectedError:
                continue
            except TimeoutError:
                if self.is_connected:
                    logger.warning("no round trip in %.0f s though connected: reconnecting", 2 * WATCHDOG_INTERVAL)
                    await self._client.force_reconnect()

    def _tell(self, state: str) -> None:
        for listener in tuple(self._state_listeners):
            try:
                listener(state)
            except Exception:  # a listener's fault must not end nats-py's reconnect task
                logger.exception("listener for %s failed", state)

    async def _disconnected(self) -> None:
        self._client._out.clear()
        if not self._client.is_closed:
            logger.warning("disconnected from %s", self.options.describe())
        self._tell("disconnected")

    async def _reconnected(self) -> None:
        logger.info("reconnected to %s", self.options.describe())
        self._tell("reconnected")

    async def _gone(self) -> None:
        self._closed.set()
        self._tell("closed")

    async def _error(self, error: Exception) -> None:
        if "authorization" in str(error).lower() and not self._inbox:
            self._refused = error
        logger.debug("nats: %s", error)

    def _permission_error(self, operation: str, subject: str) -> None:
        logger.error("the server refuses this user %s to %r", operation, subject)
        for listener in tuple(self._permission_listeners):
            try:
                listener(operation, subject)
            except Exception:  # as in _tell
                logger.exception("listener for a permission error failed")


def _resolve(future: "asyncio.Future[None]", _data: bytes, _block: bytes) -> None:
    if not future.done():
        future.set_result(None)
