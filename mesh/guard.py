"""nats-py's client with what a long-lived process needs and it lacks.

Measured against nats-py 2.16: one malformed header, subject or PONG raises inside its read loop and ends it for ever
while `is_connected` stays True. Here every message is dispatched under a guard; bad ones are dropped and counted. The
parser and the raw dispatch are our own because they are the hot path of everything: no coroutine, queue or header
parsing a message.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

from nats.aio.client import Client
from nats.errors import Error, ProtocolError

logger = logging.getLogger("mesh.connection")

RawHandler = Callable[[str, str, bytes, bytes], None]
"""Takes subject, reply subject, payload and header block (`b""` when none). Must not block the read loop."""

MAX_CONTROL_LINE = 65_536
"""Bytes without a line end after which the peer does not speak NATS. The longest line is the server's INFO."""


class RawSubscription:
    """A subscription that calls a function at once, with the fields nats-py reads at reconnect and close."""

    __slots__ = ("_max_msgs", "_queue", "_subject", "handler", "sid")
    _received = 1
    _wait_for_msgs_task = None
    _message_iterator = None
    _pending_next_msgs_calls = None

    def __init__(self, sid: int, subject: str, queue: str, handler: RawHandler) -> None:
        self.sid = sid
        self._subject = subject
        self._queue = queue
        self._max_msgs = 0  # 1: what is on its way still counts, but a reconnect does not make it again
        self.handler = handler


class GuardedClient(Client):
    """Survives any message; publishes and subscribes without a coroutine; buffers one write a loop turn.

    What is published while there is no connection is refused, and what was buffered when it broke is dropped: a
    request that goes out after its sender gave up is worse than one that never went (its deadline or its ownership
    may be gone).
    """

    def __init__(self) -> None:
        super().__init__()
        self.parser = Parser(self)
        self._ps = self.parser  # type: ignore[assignment]  # it has what the client calls: parse and reset
        self._out: list[bytes] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self.bad_messages = 0
        self.permission_error: Callable[[str, str], None] | None = None

    # --- out

    def send(self, command: bytes) -> None:
        """Queue one protocol command; all commands of a loop turn leave in one write."""
        if not self._out:
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
            self._loop.call_soon(self.flush_now)
        self._out.append(command)

    def flush_now(self) -> None:
        """Write what is queued, or drop it where there is no connection."""
        out = self._out
        if not out:
            return
        self._out = []
        if self._status == Client.CONNECTED and self._transport is not None:
            self._transport.write(b"".join(out) if len(out) > 1 else out[0])

    def raw_subscribe(self, subject: str, queue: str, handler: RawHandler) -> int:
        """Subscribe; made again at every reconnect. Returns the subscription's id."""
        self._sid += 1
        sub = RawSubscription(self._sid, subject, queue, handler)
        self._subs[self._sid] = sub  # type: ignore[assignment]  # it has what the client reads
        if self._status == Client.CONNECTED:
            self.send(f"SUB {subject} {queue} {self._sid}\r\n".encode())
        return self._sid

    def raw_unsubscribe(self, sid: int) -> None:
        """End a subscription; messages on their way are dropped."""
        if self._subs.pop(sid, None) is not None and self._status == Client.CONNECTED:
            self.send(f"UNSUB {sid}\r\n".encode())

    def raw_end_interest(self, sid: int) -> None:
        """Have the server end a subscription; what it has sent already is still handled, until `raw_unsubscribe`."""
        sub = self._subs.get(sid)
        if sub is not None:
            sub._max_msgs = 1
            if self._status == Client.CONNECTED:
                self.send(f"UNSUB {sid}\r\n".encode())

    @property
    def write_buffer_bytes(self) -> int:
        """Bytes accepted by the transport and not yet taken by the kernel; 0 where the transport does not tell."""
        writer = getattr(self._transport, "_io_writer", None)
        return writer.transport.get_write_buffer_size() if writer is not None else 0

    async def drain_transport(self) -> None:
        """Wait until the transport's buffer is below its high-water mark."""
        self.flush_now()
        if self._transport is not None and self._status == Client.CONNECTED:
            await self._transport.drain()  # type: ignore[no-untyped-call]

    # --- in

    def dispatch(self, sid: int, subject: bytes, reply: bytes, payload: bytes, block: bytes) -> None:
        """Hand one message to its subscription. Whatever a message or its handler does, the read loop goes on."""
        sub = self._subs.get(sid)
        if sub is None:
            return
        try:
            sub.handler(subject.decode(), reply.decode() if reply else "", payload, block)  # type: ignore[attr-defined]
        except Exception:  # the border of the read loop: nothing may pass it
            self.bad_messages += 1
            logger.exception("message on %r dropped", subject[:200])

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        """Insist on TLS where it was asked for, before CONNECT: nats-py would send credentials in the clear."""
        if initial_connection and self._wants_tls() and not info.get("tls_required"):
            if not info.get("tls_available"):
                raise Error("TLS is asked for, and the server has none")
            info["tls_required"] = True
        await super()._process_info(info, initial_connection)

    def _wants_tls(self) -> bool:
        return "tls" in self.options or (self._current_server is not None and self._current_server.uri.scheme == "tls")

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():  # whoever waited gave up: nats-py would raise InvalidStateError
            self._pongs.pop(0)
            self._pings_outstanding = 0
            return
        await super()._process_pong()

    async def _process_err(self, err_msg: str) -> None:
        text = err_msg.strip("'\" ")
        if text.lower().startswith("permissions violation") and self.permission_error is not None:
            operation = "subscription" if "subscription" in text.lower() else "publish"
            _, _, subject = text.partition('"')
            self.permission_error(operation, subject.partition('"')[0])
            return
        if self._status == Client.CONNECTED and "stale connection" not in text.lower():
            logger.error("the server says: %s", text)  # if it means it, it ends the link: nats-py would close for good
            return
        await super()._process_err(err_msg.lower())


class Parser:
    """Cuts the byte stream into messages (`MSG`, `HMSG`) and the few control lines. Stands in for nats-py's parser."""

    def __init__(self, client: GuardedClient) -> None:
        self._client = client
        self.received_bytes = 0
        self.reset()

    def reset(self) -> None:
        """Forget half a message: a new connection begins."""
        self._chunks: list[bytes] = []
        self._missing = 0  # bytes still to come before the kept chunks can be a whole message; 0: not known

    async def parse(self, data: bytes = b"") -> None:
        """Take the next bytes off the wire. Raises ProtocolError where they are not NATS."""
        self.received_bytes += len(data)
        if self._chunks:
            self._chunks.append(data)
            self._missing -= len(data)
            if self._missing > 0:  # in a large payload: neither search nor join again and again
                return
            data = b"".join(self._chunks)
            self._chunks = []
        pos, end = 0, len(data)
        dispatch = self._client.dispatch
        while pos < end:
            eol = data.find(b"\r\n", pos)
            if eol < 0:
                self._keep_line(data[pos:])
                return
            first = data[pos]
            if first not in (77, 72):  # neither MSG nor HMSG
                await self._control(data[pos:eol])
                pos = eol + 2
                continue
            args = data[pos:eol].split(b" ")  # MSG subject sid [reply] size, HMSG subject sid [reply] header-size size
            start = eol + 2
            try:
                sid, stop = int(args[2]), start + int(args[-1])
                if stop < start or (first == 72 and not start <= start + int(args[-2]) <= stop):
                    raise ProtocolError
                if stop + 2 > end:
                    self._keep(data[pos:], stop + 2 - end)
                    return
                if first == 77:
                    dispatch(sid, args[1], args[3] if len(args) == 5 else b"", data[start:stop], b"")
                else:
                    body = start + int(args[-2])
                    dispatch(sid, args[1], args[3] if len(args) == 6 else b"", data[body:stop], data[start:body])
            except (ValueError, IndexError):
                raise ProtocolError from None
            pos = stop + 2

    def _keep_line(self, rest: bytes) -> None:
        if len(rest) > MAX_CONTROL_LINE:
            raise ProtocolError
        self._keep(rest, 0)

    def _keep(self, rest: bytes, missing: int) -> None:
        self._chunks = [rest]
        self._missing = missing

    async def _control(self, line: bytes) -> None:
        client = self._client
        word = line[:4].upper()
        if word == b"PING":
            client.send(b"PONG\r\n")
        elif word == b"PONG":
            await client._process_pong()
        elif word == b"-ERR":
            await client._process_err(line[4:].decode("utf-8", "replace").strip())
        elif word == b"INFO":
            try:
                info: dict[str, Any] = json.loads(line[4:])
                client._server_info.update(info)
            except (ValueError, TypeError):  # of anything else nats-py's read loop would die, and look alive
                raise ProtocolError from None
            await client._process_info(info)
        elif not word.startswith(b"+OK"):
            raise ProtocolError
