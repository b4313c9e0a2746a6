"""The byte stream of a connection: however it is cut, and whatever stands in it."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Self

import pytest
from nats.errors import ProtocolError

from mesh.connection import Connection
from mesh.guard import MAX_CONTROL_LINE, GuardedClient, Parser
from mesh.localserver import LocalServer
from mesh.options import ConnectOptions

Message = tuple[str, str, bytes, bytes]

STREAM = (
    b"MSG a.b 1 0\r\n\r\n"
    b"PING\r\n"
    b"MSG a.b 1 reply.x 5\r\nhello\r\n"
    b"+OK\r\n"
    b"HMSG a 1 12 17\r\nNATS/1.0\r\n\r\nhello\r\n"
    b"-ERR 'Permissions Violation for Publish to \"secret\"'\r\n"
    b"HMSG a 1 re 22 22\r\nNATS/1.0\r\nK: value\r\n\r\n\r\n"
    b'INFO {"max_payload": 99}\r\n'
    b"MSG a 1 14\r\nMSG a 1 2\r\nhi\r\r\n"
    b"pong\r\n"
    b"MSG gone 2 2\r\nno\r\n"
    b"MSG last 1 4\r\n\r\n\r\n\r\n"
)
MESSAGES: list[Message] = [
    ("a.b", "", b"", b""),
    ("a.b", "reply.x", b"hello", b""),
    ("a", "", b"hello", b"NATS/1.0\r\n\r\n"),
    ("a", "re", b"", b"NATS/1.0\r\nK: value\r\n\r\n"),
    ("a", "", b"MSG a 1 2\r\nhi\r", b""),
    ("last", "", b"\r\n\r\n", b""),
]


class Seen:
    """A client without a connection, whose one subscription keeps what it is given."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.refused: list[tuple[str, str]] = []
        self.client = GuardedClient()
        self.client._process_info = self._keep_info  # type: ignore[method-assign]  # it would connect by it
        self.client.permission_error = lambda *what: self.refused.append(what)
        self.client.raw_subscribe("any", "", lambda *message: self.messages.append(message))
        self.parser = Parser(self.client)

    async def _keep_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        self.info = info

    async def feed(self, *pieces: bytes) -> None:
        for piece in pieces:
            await self.parser.parse(piece)

    @property
    def pongs(self) -> int:
        return self.client._out.count(b"PONG\r\n")


async def assert_same(*pieces: bytes) -> None:
    seen = Seen()
    await seen.feed(*pieces)
    assert seen.messages == MESSAGES, pieces
    assert (seen.pongs, seen.refused) == (1, [("publish", "secret")])
    assert seen.info == {"max_payload": 99}


async def test_whole_stream_at_once() -> None:
    await assert_same(STREAM)


async def test_stream_cut_at_any_one_byte() -> None:
    for cut in range(1, len(STREAM)):
        await assert_same(STREAM[:cut], STREAM[cut:])


async def test_stream_cut_at_any_two_bytes() -> None:
    for first in range(1, len(STREAM), 3):
        for second in range(first + 1, len(STREAM), 2):
            await assert_same(STREAM[:first], STREAM[first:second], STREAM[second:])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
async def test_stream_in_pieces_of_one_size(size: int) -> None:
    await assert_same(*(STREAM[at : at + size] for at in range(0, len(STREAM), size)))


async def test_empty_reads_change_nothing() -> None:
    await assert_same(b"", STREAM[:40], b"", STREAM[40:], b"")


async def test_large_payload_in_many_chunks_is_joined_once() -> None:
    """In time that grows with its size: searching and joining at each chunk took minutes for 8 MB."""
    draw = random.Random(7)
    payload = draw.randbytes(8 << 20)
    stream = b"MSG big 1 %d\r\n%b\r\nMSG after 1 2\r\nok\r\n" % (len(payload), payload)
    seen = Seen()
    joined = 0
    at = 0
    while at < len(stream):
        size = draw.randrange(1, 4096)
        await seen.feed(stream[at : at + size])
        joined += seen.parser._chunks != [] and len(seen.parser._chunks) == 1
        at += size
    assert [(subject, len(data)) for subject, _, data, _ in seen.messages] == [("big", 8 << 20), ("after", 2)]
    assert seen.messages[0][2] == payload
    assert joined < 10


@pytest.mark.parametrize(
    "line",
    [
        b"HELLO\r\n",
        b"\r\n",
        b"\x00\x01\r\n",
        b"MSG\r\n",
        b"MSG a\r\n",
        b"MSG a x 5\r\nhello\r\n",
        b"MSG a 1 five\r\nhello\r\n",
        b"MSG a 1 -9\r\nhello\r\n",
        b"HMSG a 1 9 5\r\nhello\r\n",
        b"HMSG a 1 -1 5\r\nhello\r\n",
        b"INFO nonsense\r\n",
        b"INFO \r\n",
        b"INFO [1]\r\n",
        b"INFO 5\r\n",
        b'INFO "\xff"\r\n',
        b"x" * (MAX_CONTROL_LINE + 1),
    ],
    ids=lambda line: repr(line[:20]),
)
async def test_what_is_not_nats_is_a_protocol_error(line: bytes) -> None:
    """Of any other exception nats-py's read loop dies, and the connection looks alive."""
    seen = Seen()
    with pytest.raises(ProtocolError):
        await seen.feed(b"MSG a 1 2\r\nhi\r\n" + line)
    assert seen.messages == [("a", "", b"hi", b"")]
    seen.parser.reset()
    await seen.feed(b"MSG a 1 2\r\nok\r\n")
    assert seen.messages[1:] == [("a", "", b"ok", b"")]


async def test_line_that_never_ends_is_given_up_in_pieces_too() -> None:
    seen = Seen()
    with pytest.raises(ProtocolError):
        await seen.feed(*(b"x" * 1000 for _ in range(100)))


async def test_handler_that_raises_costs_its_message_only(caplog: pytest.LogCaptureFixture) -> None:
    seen = Seen()

    def raises(*_message: Any) -> None:
        raise RuntimeError("fault of a handler")

    seen.client.raw_subscribe("bad", "", raises)
    await seen.feed(b"MSG bad 2 1\r\nx\r\nMSG a 1 2\r\nok\r\nMSG bad 2 1\r\nx\r\n")
    assert seen.messages == [("a", "", b"ok", b"")]
    assert seen.client.bad_messages == 2
    assert "fault of a handler" in caplog.text


async def test_subject_that_is_not_utf8_costs_its_message_only() -> None:
    seen = Seen()
    await seen.feed(b"MSG \xff\xfe 1 1\r\nx\r\nMSG a 1 \xff 1\r\nx\r\nMSG a 1 2\r\nok\r\n")
    assert seen.messages == [("a", "", b"ok", b"")]
    assert seen.client.bad_messages == 2


async def test_message_of_an_ended_subscription_is_dropped_silently() -> None:
    seen = Seen()
    seen.client.raw_unsubscribe(1)
    await seen.feed(b"MSG a 1 2\r\nhi\r\n")
    assert (seen.messages, seen.client.bad_messages) == ([], 0)


async def test_pong_for_a_flush_that_was_given_up() -> None:
    """nats-py would raise InvalidStateError in its read loop."""
    client = GuardedClient()
    given_up, waits = asyncio.get_running_loop().create_future(), asyncio.get_running_loop().create_future()
    given_up.cancel()
    client._pongs = [given_up, waits]
    client._pings_outstanding = 2
    parser = Parser(client)
    await parser.parse(b"PONG\r\n")
    assert not waits.done()
    await parser.parse(b"PONG\r\nPONG\r\n")
    assert waits.result() is True
    assert client._pings_outstanding == 0


async def test_permission_errors_of_all_forms_name_their_subject() -> None:
    seen = Seen()
    await seen.feed(
        b'-ERR \'Permissions Violation for Subscription to "a.>" using queue "q"\'\r\n'
        b"-ERR 'Permissions Violation for Publish to \"b\"'\r\n"
        b"-ERR 'Permissions Violation for Publish with Reply of \"c\"'\r\n"
    )
    assert seen.refused == [("subscription", "a.>"), ("publish", "b"), ("publish", "c")]


# --- a peer that does not speak NATS


class Peer:
    """A server that greets as NATS does, and then says what the test wants, once for each connection."""

    def __init__(self, *says: bytes) -> None:
        self._says = list(says)
        self._listener: asyncio.Server | None = None
        self.connections = 0
        self.heard: list[bytes] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        assert self._listener is not None
        return f"nats://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        assert self._listener is not None
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        port = self.url.rpartition(":")[2]
        info = {"server_id": "x", "version": "2.12.0", "headers": True, "max_payload": 1 << 20, "port": int(port)}
        writer.write(b"INFO " + json.dumps(info).encode() + b"\r\n")
        try:
            while line := await reader.readline():
                self.heard.append(line)
                if line == b"PING\r\n":
                    writer.write(b"PONG\r\n")
                    if self._says:
                        writer.write(self._says.pop(0))
        except OSError:
            pass
        finally:
            writer.transport.abort()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Connection]:
    connection = await Connection.open(ConnectOptions(url=url, connect_timeout=10))
    try:
        yield connection
    finally:
        await connection.close()


async def until(condition: Callable[[], bool], timeout: float = 15.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("garbage", [b"HELLO\r\n", b"MSG a b c\r\n", b"INFO x\r\n", b"MSG a 1 -100\r\n"])
async def test_peer_that_stops_speaking_nats_is_left_and_connected_to_again(garbage: bytes) -> None:
    async with Peer(b"", garbage) as peer, connected(peer.url) as connection:
        states: list[str] = []
        connection.on_state(states.append)
        await connection._client.flush(timeout=10)  # the garbage comes behind its answer
        await until(lambda: states[-1:] == ["reconnected"])
        assert states == ["disconnected", "reconnected"]
        assert peer.connections == 2
        assert any(line.startswith(b"SUB ") for line in peer.heard[-3:]), "its inbox was subscribed again"


async def test_error_that_the_server_means_ends_the_link_and_not_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A message over the server's limit makes it say so and hang up; nats-py would stay closed for good."""
    caplog.set_level(logging.ERROR)
    async with LocalServer(relaxed_sync=True, jetstream=False, max_payload=1024) as server:
        async with connected(server.url) as connection:
            states: list[str] = []
            connection.on_state(states.append)
            connection.publish("a", b"x" * 2000)
            await until(lambda: "reconnected" in states)
            assert await connection.round_trip() < 5
            assert not connection.is_closed
    assert "maximum payload violation" in caplog.text.lower()


async def test_error_that_costs_nothing_leaves_the_link_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    async with Peer(b"", b"-ERR 'Invalid Publish Subject'\r\n") as peer, connected(peer.url) as connection:
        await connection._client.flush(timeout=5)
        await until(lambda: "Invalid Publish Subject" in caplog.text)
        assert connection.is_connected
        assert peer.connections == 1
