"""Pulling: as much as there is room for, through withdrawn requests, lost ones and reconnects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import pytest

from engine import pull as room
from engine.pull import Delivery, Puller
from mesh.connection import Connection
from mesh.options import ConnectOptions
from tests.kit.proxy import Frame, Proxy, publishes
from tests.kit.raw import Raw
from tests.kit.server import NatsServer


class Work:
    """What a puller delivers to, with as much room as the test gives."""

    def __init__(self, connection: Connection, size: int, consumer: str = "w") -> None:
        self.connection = connection
        self.size = size
        self.got: list[Delivery] = []
        self.finished = 0
        self.puller = Puller(connection, "WORK", consumer, self.got.append, lambda: self.size - self.held)
        self.most = 0

    @property
    def held(self) -> int:
        return len(self.got) - self.finished

    async def count(self, number: int) -> None:
        await until(lambda: len(self.got) >= number)
        self.most = max(self.most, self.held)

    def finish(self, number: int) -> None:
        for delivery in self.got[self.finished : self.finished + number]:
            self.connection.publish(delivery.ack, b"+ACK")
        self.finished += number
        self.puller.fill()


async def until(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
async def stream(raw: Raw) -> Raw:
    await raw.api("STREAM.CREATE.WORK", {"name": "WORK", "subjects": ["work.>"], "retention": "workqueue"})
    config = {"durable_name": "w", "ack_policy": "explicit", "ack_wait": 30_000_000_000, "max_deliver": -1}
    await raw.api("CONSUMER.DURABLE.CREATE.WORK.w", {"stream_name": "WORK", "config": config})
    return raw


@pytest.fixture
async def proxy(nats_server: NatsServer) -> AsyncIterator[Proxy]:
    async with Proxy(nats_server.port) as link:
        yield link


@pytest.fixture
async def connection(proxy: Proxy) -> AsyncIterator[Connection]:
    opened = await Connection.open(ConnectOptions(url=proxy.url))
    yield opened
    await opened.close()


async def add(raw: Raw, count: int, first: int = 0) -> None:
    for n in range(first, first + count):
        await raw.publish(f"work.{n}", b"%d" % n)


async def waiting(raw: Raw) -> int:
    return int((await raw.api("CONSUMER.INFO.WORK.w"))["num_ack_pending"])


async def test_messages_come_whole_and_in_order(stream: Raw, connection: Connection) -> None:
    work = Work(connection, 100)
    work.puller.fill()
    await add(stream, 20)
    await work.count(20)
    assert [delivery.data for delivery in work.got] == [b"%d" % n for n in range(20)]
    assert [(d.sequence, d.count, d.subject) for d in work.got[:2]] == [(1, 1, "work.0"), (2, 1, "work.1")]
    assert all(delivery.time_ns > 1_700_000_000 * 10**9 for delivery in work.got)


async def test_never_more_than_there_is_room_for(stream: Raw, connection: Connection) -> None:
    await add(stream, 30)
    work = Work(connection, 4)
    work.puller.fill()
    for n in range(4, 31):
        await work.count(min(n, 30))
        await connection.round_trip()
        assert work.held <= 4
        assert await waiting(stream) <= 4, "messages that nobody can take wait at the server, not here"
        work.finish(1)
    assert len(work.got) == 30


async def test_full_house_withdraws_its_request(stream: Raw, connection: Connection) -> None:
    """A message that came to a full processor would wait for it though another is idle."""
    work = Work(connection, 4)
    work.puller.fill()
    await connection.round_trip()
    work.size = 0
    work.puller.fill()
    await connection.round_trip()
    await add(stream, 2)
    await connection.round_trip()
    assert work.got == []
    assert await waiting(stream) == 0
    work.size = 4
    work.puller.fill()
    await work.count(2)


async def test_message_on_its_way_while_a_request_is_withdrawn_is_delivered(
    stream: Raw, connection: Connection, proxy: Proxy
) -> None:
    work = Work(connection, 4)
    work.puller.fill()
    await connection.round_trip()
    proxy.stall("down")
    await add(stream, 1)
    work.size = 0
    work.puller.fill()
    proxy.flow()
    await work.count(1)


async def test_stopped_puller_takes_nothing_more(stream: Raw, connection: Connection) -> None:
    work = Work(connection, 4)
    work.puller.fill()
    await connection.round_trip()
    work.puller.stop()
    await connection.round_trip()
    await add(stream, 1)
    await connection.round_trip()
    work.puller.fill()
    work.puller.restart()
    work.puller.tick(1e9)
    assert (work.got, await waiting(stream)) == ([], 0)


async def test_request_that_expires_is_made_again(
    stream: Raw, connection: Connection, monkeypatch: pytest.MonkeyPatch, proxy: Proxy
) -> None:
    monkeypatch.setattr(room, "EXPIRES", 0.3)
    monkeypatch.setattr(room, "HEARTBEAT", 0.1)
    requests: list[Frame] = []
    asks = publishes("$JS.API.CONSUMER.MSG.NEXT.>")
    proxy.witness(lambda frame: requests.append(frame) if asks(frame) else None)
    work = Work(connection, 4)
    work.puller.fill()
    await until(lambda: len(requests) >= 3)
    assert {json.loads(frame.payload)["batch"] for frame in requests} == {4}
    await add(stream, 1)
    await work.count(1)


async def test_lost_request_is_noticed_by_missing_heartbeats(
    stream: Raw, connection: Connection, monkeypatch: pytest.MonkeyPatch, proxy: Proxy
) -> None:
    monkeypatch.setattr(room, "HEARTBEAT", 0.2)
    work = Work(connection, 4)
    end = proxy.lose(publishes("$JS.API.CONSUMER.MSG.NEXT.>"))
    work.puller.fill()
    await connection.round_trip()
    end()
    await add(stream, 1)
    loop = asyncio.get_running_loop()
    work.puller.tick(loop.time())
    await connection.round_trip()
    assert work.got == [], "its heartbeats may still come"
    work.puller.tick(loop.time() + 1)
    await work.count(1)


async def test_after_a_reconnect_it_pulls_anew(stream: Raw, connection: Connection, proxy: Proxy) -> None:
    work = Work(connection, 4)
    connection.on_state(lambda state: work.puller.restart() if state == "reconnected" else None)
    work.puller.fill()
    await connection.round_trip()
    proxy.cut()
    await until(lambda: not connection.is_connected)
    work.puller.fill()
    await add(stream, 3)
    await work.count(3)


async def test_consumer_that_is_missing_is_asked_for_again_at_a_pause(
    stream: Raw, connection: Connection, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(room, "RETRY", 0.2)
    requests: list[Frame] = []
    asks = publishes("$JS.API.CONSUMER.MSG.NEXT.>")
    proxy.witness(lambda frame: requests.append(frame) if asks(frame) else None)
    work = Work(connection, 4, consumer="late")
    work.puller.fill()
    await until(lambda: "503" in caplog.text)
    for _ in range(20):
        work.puller.tick(asyncio.get_running_loop().time())
    await connection.round_trip()
    assert len(requests) == 1
    await stream.api("CONSUMER.DELETE.WORK.w")
    config = {"durable_name": "late", "ack_policy": "explicit"}
    await stream.api("CONSUMER.DURABLE.CREATE.WORK.late", {"stream_name": "WORK", "config": config})
    await add(stream, 1)
    async with asyncio.timeout(10):
        while not work.got:
            work.puller.tick(asyncio.get_running_loop().time())
            await asyncio.sleep(0.02)
