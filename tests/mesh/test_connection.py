"""The connection: it opens or says why not, comes back by itself, and never sends late."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
from nats.aio.client import Client

from mesh import connection as room
from mesh import headers
from mesh.connection import Connection
from mesh.errors import ConnectError, NoRespondersError, NotConnectedError
from mesh.localserver import LocalServer
from mesh.options import ConnectOptions
from tests.kit.proxy import Proxy

Received = list[tuple[str, str, bytes, bytes]]


@asynccontextmanager
async def connected(url: str, **options: object) -> AsyncIterator[Connection]:
    connection = await Connection.open(ConnectOptions(url=url, **options))  # type: ignore[arg-type]
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture
async def connection(url: str) -> AsyncIterator[Connection]:
    async with connected(url) as opened:
        yield opened


@pytest.fixture
async def proxy(url: str) -> AsyncIterator[Proxy]:
    async with Proxy(int(url.rpartition(":")[2])) as link:
        yield link


async def until(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.005)


def keep(connection: Connection, subject: str, queue: str = "") -> tuple[int, Received]:
    """A subscription and what it gets."""
    got: Received = []
    return connection.subscribe(subject, lambda *message: got.append(message), queue=queue), got


# --- opening


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    """One user with a password and few rights."""
    rights = '{publish: "ok.>", subscribe: ["ok.>", "_INBOX.>"]}'
    config = f"authorization {{ users: [ {{user: u, password: p, permissions: {rights}}} ] }}"
    with LocalServer(relaxed_sync=True, jetstream=False, config=config) as server:
        yield server.url


async def test_port_that_nobody_listens_on_is_a_connect_error_within_the_timeout() -> None:
    with socket.socket() as held:  # bound and not listening: refused
        held.bind(("127.0.0.1", 0))
        began = time.monotonic()
        with pytest.raises(ConnectError, match="is the server running") as caught:
            await Connection.open(ConnectOptions(url=f"nats://127.0.0.1:{held.getsockname()[1]}", connect_timeout=0.5))
        assert 0.4 < time.monotonic() - began < 3
        assert str(held.getsockname()[1]) in caught.value.reason


async def test_peer_that_says_nothing_is_a_connect_error_within_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(ConnectError):
            await Connection.open(
                ConnectOptions(url=f"nats://127.0.0.1:{silent.getsockname()[1]}", connect_timeout=0.5)
            )
        assert time.monotonic() - began < 3


async def test_wrong_password_is_a_connect_error_at_once(guarded: str) -> None:
    began = time.monotonic()
    with pytest.raises(ConnectError) as caught:
        await Connection.open(ConnectOptions(url=guarded, user="u", password="secret-word", connect_timeout=10))
    assert time.monotonic() - began < 2
    assert "authorization" in str(caught.value).lower()
    assert "secret-word" not in str(caught.value)


async def test_no_credentials_where_they_are_needed_is_a_connect_error_at_once(guarded: str) -> None:
    began = time.monotonic()
    with pytest.raises(ConnectError, match="(?i)authorization"):
        await Connection.open(ConnectOptions(url=guarded, connect_timeout=10))
    assert time.monotonic() - began < 2


async def test_failed_opening_leaves_no_task_behind(guarded: str) -> None:
    before = asyncio.all_tasks()
    with pytest.raises(ConnectError):
        await Connection.open(ConnectOptions(url=guarded, user="u", password="x", connect_timeout=5))
    await until(lambda: asyncio.all_tasks() == before, timeout=2)


async def test_cancelled_opening_leaves_no_task_behind() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        before = asyncio.all_tasks()
        url = f"nats://127.0.0.1:{silent.getsockname()[1]}"
        opening = asyncio.create_task(Connection.open(ConnectOptions(url=url, connect_timeout=None)))
        await asyncio.sleep(0.1)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await until(lambda: asyncio.all_tasks() == before, timeout=2)


async def test_server_that_comes_up_within_the_timeout_is_connected_to() -> None:
    server = LocalServer(relaxed_sync=True, jetstream=False)
    opening = asyncio.create_task(Connection.open(ConnectOptions(url=server.url, connect_timeout=20)))
    await asyncio.sleep(0.3)
    async with server:
        connection = await opening
        assert connection.is_connected
        assert connection.max_payload == 1 << 20
        await connection.close()
        assert connection.is_closed


# --- messages


async def test_message_comes_as_it_was_sent(connection: Connection) -> None:
    _, got = keep(connection, "a.*")
    block = headers.encode([("K", "v")])
    connection.publish("a.1", b"plain")
    connection.publish("a.2", b"full", reply="back", headers=block)
    connection.publish("a.3")
    await connection.round_trip()
    assert got == [("a.1", "", b"plain", b""), ("a.2", "back", b"full", block), ("a.3", "", b"", b"")]


async def test_queue_group_shares_its_messages(connection: Connection) -> None:
    both = [keep(connection, "shared", queue="q")[1] for _ in range(2)]
    for _ in range(50):
        connection.publish("shared")
    await connection.round_trip()
    assert sum(map(len, both)) == 50
    assert all(both)


async def test_all_of_a_loop_turn_is_one_write(proxy: Proxy) -> None:
    async with connected(proxy.url) as connection:
        client = connection._client
        writes: list[bytes] = []
        assert client._transport is not None
        write = client._transport.write
        client._transport.write = lambda data: (writes.append(data), write(data))  # type: ignore[method-assign,func-returns-value,assignment]
        for n in range(10):
            connection.publish(f"a.{n}")
        await connection.round_trip()
        assert len(writes) <= 2
        assert writes[0].count(b"PUB a.") == 10


async def test_large_message_is_whole(connection: Connection) -> None:
    _, got = keep(connection, "large")
    payload = bytes(range(256)) * 4_000
    connection.publish("large", payload)
    await connection.drain_writes()
    await connection.round_trip()
    assert [message[2] for message in got] == [payload]


async def test_handler_that_raises_is_counted_and_nothing_else(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    def raises(*_message: object) -> None:
        raise RuntimeError("a fault")

    connection.subscribe("bad", raises)
    _, got = keep(connection, "good")
    for subject in ("bad", "good", "bad", "good"):
        connection.publish(subject)
    await connection.round_trip()
    assert (len(got), connection.bad_messages) == (2, 2)
    assert "a fault" in caplog.text


async def test_unsubscribe_ends_it(connection: Connection) -> None:
    sid, got = keep(connection, "x")
    connection.publish("x")
    await connection.round_trip()
    connection.unsubscribe(sid)
    connection.unsubscribe(sid)
    connection.publish("x")
    await connection.round_trip()
    assert len(got) == 1


async def test_unsubscribe_later_still_delivers_what_was_on_its_way(
    connection: Connection, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "LINGER", 0.3)
    async with connected(proxy.url) as away:
        sid, got = keep(away, "x")
        await away.round_trip()
        proxy.stall("down")
        connection.publish("x", b"on its way")
        await connection.round_trip()
        away.unsubscribe_later(sid)
        await until(lambda: not away._client._out)
        proxy.flow()
        await until(lambda: got != [])
        await away.round_trip()
        connection.publish("x", b"after")
        await connection.round_trip()
        await away.round_trip()
        assert [message[2] for message in got] == [b"on its way"]
        await until(lambda: sid not in away._client._subs, timeout=2)


async def test_retire_returns_when_everything_sent_was_delivered(connection: Connection, proxy: Proxy) -> None:
    async with connected(proxy.url) as away:
        sids, got = zip(*(keep(away, f"x.{n}") for n in range(3)), strict=True)
        await away.round_trip()
        proxy.stall("down")
        for n in range(3):
            connection.publish(f"x.{n}")
        await connection.round_trip()
        retiring = asyncio.create_task(away.retire(sids))
        await asyncio.sleep(0)
        proxy.flow()
        await retiring
        assert [len(messages) for messages in got] == [1, 1, 1]
        connection.publish("x.0")
        await connection.round_trip()
        await away.round_trip()
        assert len(got[0]) == 1


# --- requests


async def test_request_calls_back_once_and_forget_not_at_all(connection: Connection) -> None:
    def twice(_subject: str, reply: str, data: bytes, _block: bytes) -> None:
        connection.publish(reply, data)
        connection.publish(reply, data)

    connection.subscribe("echo", twice)
    answers: list[bytes] = []
    connection.request("echo", b"1", lambda data, _block: answers.append(data))
    token = connection.request("echo", b"2", lambda data, _block: answers.append(data))
    connection.forget(token)
    connection.forget(token)
    await connection.round_trip()
    await connection.round_trip()
    assert answers == [b"1"]
    assert connection._callbacks == {}


async def test_request_many_calls_back_until_it_is_forgotten(connection: Connection) -> None:
    def answer(_subject: str, reply: str, data: bytes, _block: bytes) -> None:
        for n in range(5):
            connection.publish(reply, b"%b %d" % (data, n))

    connection.subscribe("many", answer)
    answers: list[bytes] = []

    def keep_three(data: bytes, _block: bytes) -> None:
        answers.append(data)
        if len(answers) == 3:
            connection.forget(token)

    token = connection.request_many("many", b"x", keep_three)
    await connection.round_trip()
    await connection.round_trip()
    assert answers == [b"x 0", b"x 1", b"x 2"]
    assert connection._streams == {}


async def test_ask(connection: Connection) -> None:
    connection.subscribe("echo", lambda _subject, reply, data, block: connection.publish(reply, data, headers=block))
    connection.subscribe("silent", lambda *_message: None)
    block = headers.encode([("K", "v")])
    assert await connection.ask("echo", b"x", headers=block, timeout=5) == (b"x", block)
    began = time.monotonic()
    with pytest.raises(NoRespondersError):
        await connection.ask("nobody", timeout=10)
    assert time.monotonic() - began < 2
    with pytest.raises(TimeoutError):
        await connection.ask("silent", timeout=0.05)
    assert connection._callbacks == {}


async def test_cancelled_ask_forgets_its_token(connection: Connection) -> None:
    connection.subscribe("silent", lambda *_message: None)
    asking = asyncio.create_task(connection.ask("silent", timeout=10))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert connection._callbacks == {}


# --- away and back


async def test_reconnect_makes_subscriptions_again_and_tells_it(connection: Connection, proxy: Proxy) -> None:
    async with connected(proxy.url) as away:
        states: list[str] = []
        stop = away.on_state(states.append)
        sid, got = keep(away, "x")
        ended, none = keep(away, "x")
        late, lingers = keep(away, "x")
        away.unsubscribe(ended)
        await away.round_trip()
        away.unsubscribe_later(late)
        proxy.cut()
        await until(lambda: "reconnected" in states)
        await away.round_trip()
        connection.publish("x")
        await connection.round_trip()
        await away.round_trip()
        assert (len(got), len(none), len(lingers)) == (1, 0, 0)
        assert states == ["disconnected", "reconnected"]
        stop()
        proxy.cut()
        await until(lambda: not away.is_connected)
        await until(lambda: away.is_connected)
        assert states == ["disconnected", "reconnected"]
        away.unsubscribe(sid)


async def test_what_is_published_while_away_is_refused_and_nothing_is_sent_later(
    connection: Connection, proxy: Proxy
) -> None:
    _, got = keep(connection, "late.>")
    async with connected(proxy.url) as away:
        states: list[str] = []
        away.on_state(states.append)
        proxy.refuse = True
        away.publish("late.1")  # buffered for this loop turn, and the connection breaks in it
        away._client._transport._io_writer.transport.abort()  # type: ignore[union-attr]
        await until(lambda: not away.is_connected)
        with pytest.raises(NotConnectedError):
            away.publish("late.2")
        with pytest.raises(NotConnectedError):
            away.request("late.3", b"", lambda _data, _block: None)
        with pytest.raises(NotConnectedError):
            away.request_many("late.3", b"", lambda _data, _block: None)
        with pytest.raises(NotConnectedError):
            await away.ask("late.4", timeout=5)
        with pytest.raises(NotConnectedError):
            await away.round_trip()
        assert (away._callbacks, away._streams) == ({}, {})
        proxy.refuse = False
        await until(lambda: "reconnected" in states)
        await away.round_trip()
        away.publish("late.5")
        await away.round_trip()
    await connection.round_trip()
    subjects = [message[0] for message in got]
    assert [subject for subject in subjects if subject != "late.1"] == ["late.5"]


async def test_subscription_made_while_away_is_there_afterwards(connection: Connection, proxy: Proxy) -> None:
    async with connected(proxy.url) as away:
        proxy.refuse = True
        proxy.cut()
        await until(lambda: not away.is_connected)
        _, got = keep(away, "x")
        proxy.refuse = False
        await until(lambda: away.is_connected)
        await away.round_trip()
        connection.publish("x")
        await connection.round_trip()
        await away.round_trip()
        assert len(got) == 1


async def test_state_listener_that_raises_does_not_keep_it_from_coming_back(
    proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(proxy.url) as away:

        def raises(state: str) -> None:
            raise RuntimeError(state)

        states: list[str] = []
        away.on_state(raises)
        away.on_state(states.append)
        proxy.cut()
        await until(lambda: "reconnected" in states)
        assert await away.round_trip() < 5


async def test_watchdog_ends_a_link_that_carries_nothing(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "WATCHDOG_INTERVAL", 0.1)
    async with connected(proxy.url) as away:
        states: list[str] = []
        away.on_state(states.append)
        proxy.blackhole("down")
        await until(lambda: "disconnected" in states)
        proxy.flow()
        await until(lambda: "reconnected" in states)
        assert await away.round_trip() < 5


async def test_watchdog_revives_a_dead_read_loop(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """`is_connected` stays true without one."""
    monkeypatch.setattr(room, "WATCHDOG_INTERVAL", 0.1)
    async with connected(url) as lame:
        states: list[str] = []
        lame.on_state(states.append)
        _, got = keep(lame, "x")
        await lame.round_trip()
        assert lame._client._reading_task is not None
        lame._client._reading_task.cancel()
        assert lame.is_connected
        await until(lambda: "reconnected" in states)
        await lame.round_trip()
        connection.publish("x")
        await connection.round_trip()
        await until(lambda: len(got) == 1)


async def test_closing_tells_it_once_and_wakes_who_waits_for_it(url: str) -> None:
    connection = await Connection.open(ConnectOptions(url=url))
    states: list[str] = []
    connection.on_state(states.append)
    waiting = asyncio.create_task(connection.wait_closed())
    await connection.close()
    await asyncio.wait_for(waiting, 2)
    assert connection.is_closed
    assert states.count("closed") == 1
    with pytest.raises(NotConnectedError):
        connection.publish("x")
    await connection.close()


async def test_closing_writes_what_is_queued(url: str, foreigner: Client) -> None:
    got = await foreigner.subscribe("last.words")
    await foreigner.flush()
    connection = await Connection.open(ConnectOptions(url=url))
    connection.publish("last.words", b"x")
    await connection.close()
    assert (await got.next_msg(timeout=5)).data == b"x"


async def test_closing_leaves_no_task_behind(url: str, proxy: Proxy) -> None:
    before = asyncio.all_tasks()
    for away in (False, True):
        connection = await Connection.open(ConnectOptions(url=proxy.url if away else url))
        if away:
            proxy.refuse = True
            proxy.cut()
            await until(lambda connection=connection: not connection.is_connected)  # type: ignore[misc]
        await connection.close()
    await until(lambda: asyncio.all_tasks() <= before, timeout=2)


# --- what the server refuses


async def test_refusals_are_told_with_operation_and_subject(guarded: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    async with connected(guarded, user="u", password="p") as connection:
        refused: list[tuple[str, str]] = []

        def raises(operation: str, subject: str) -> None:
            raise RuntimeError(operation)

        connection.on_permission_error(raises)
        stop = connection.on_permission_error(lambda *what: refused.append(what))
        _, got = keep(connection, "ok.x")
        connection.publish("not.allowed")
        connection.subscribe("other.>", lambda *_message: None, queue="q")
        connection.publish("ok.x")
        await until(lambda: len(refused) == 2 and got != [])
        assert sorted(refused) == [("publish", "not.allowed"), ("subscription", "other.>")]
        assert connection.is_connected
        stop()
        connection.publish("not.allowed")
        connection.publish("ok.x")
        await until(lambda: len(got) == 2)
        assert len(refused) == 2
