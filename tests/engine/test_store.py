"""Reads say up to where they are complete; writes end with a known outcome, also where an answer was lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from engine import journal, names
from engine import store as room
from engine.assets import Assets
from engine.errors import PayloadTooLargeError, StoreError
from engine.records import Record
from engine.store import REFUSED, PubAck, Read, Store, Stored, read_ack
from mesh.connection import Connection
from mesh.errors import NotConnectedError
from mesh.options import ConnectOptions
from tests.kit.proxy import Proxy, publishes
from tests.kit.raw import Raw
from tests.kit.server import NatsServer

RUN = "run-1"
RECORDS = "$KV.EXECUTION_STATE.>"


@pytest.fixture
async def proxy(nats_server: NatsServer) -> AsyncIterator[Proxy]:
    async with Proxy(nats_server.port) as link:
        yield link


@pytest.fixture
async def store(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
    """One whose link can be disturbed, and which loses its patience soon."""
    monkeypatch.setattr(room, "WRITE_TIMEOUT", 0.3)
    monkeypatch.setattr(room, "READ_TIMEOUT", 0.3)
    connection = await Connection.open(ConnectOptions(url=proxy.url))
    assets = await Assets.open(connection)
    yield Store(connection, assets.names)
    await connection.close()


def record(status: str = "running", **fields: Any) -> Record:
    return Record(RUN, "hello", status, incarnation="incarnation", **fields)


def slots(store: Store) -> str:
    return store.names.slots(RUN, "incarnation")


async def fill(store: Store, step: int, data: bytes = b"x") -> PubAck:
    subject = names.slot_subject(slots(store), step, 1, "call", "00", "A")
    return await store.publish(subject, data, b"")


async def told(begin: Callable[[Callable[[Any], None]], object]) -> Any:
    """What a callback is told."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    begin(future.set_result)
    return await asyncio.wait_for(future, 5)


# --- records


async def test_record_is_written_by_compare_and_set(store: Store) -> None:
    assert await store.read_record(RUN) == Stored(None, 0)
    first = await store.write_record(record(), 0)
    assert first > 0
    assert await store.write_record(record("failed"), 0) == 0, "somebody was first"
    second = await store.write_record(record("completed"), first)
    assert second > first
    stored = await store.read_record(RUN)
    assert (stored.revision, stored.record.status if stored.record else "") == (second, "completed")
    assert await told(lambda done: store.fetch_record(RUN, done)) == stored
    assert await told(lambda done: store.fetch_record("none", done)) == Stored(None, 0)


async def test_write_whose_answer_was_lost_is_found_to_have_succeeded(store: Store, proxy: Proxy) -> None:
    end = proxy.lose_answers(RECORDS)
    writing = asyncio.create_task(store.write_record(record(), 0))
    await asyncio.sleep(0.5)
    end()
    revision = await asyncio.wait_for(writing, 10)
    assert revision > 0
    assert (await store.read_record(RUN)).revision == revision


async def test_write_whose_answer_was_lost_and_which_came_second_is_found_to_have_failed(
    store: Store, proxy: Proxy
) -> None:
    first = await store.write_record(record(), 0)
    lost = proxy.lose(publishes(RECORDS))
    writing = asyncio.create_task(store.write_record(record("completed"), first))
    await asyncio.sleep(0.1)
    lost()
    other = proxy.trap(publishes(RECORDS))
    await other.wait(10)
    winner = await _direct(store, first)
    other.release()
    assert await asyncio.wait_for(writing, 10) == 0
    assert (await store.read_record(RUN)).revision == winner


async def _direct(store: Store, revision: int) -> int:
    """The same store's bucket by another way than through the proxy."""
    port = store.connection.server_info["port"]
    connection = await Connection.open(ConnectOptions(url=f"nats://127.0.0.1:{port}"))
    try:
        return await Store(connection, store.names).write_record(record("failed"), revision)
    finally:
        await connection.close()


async def test_write_waits_for_a_connection(store: Store, proxy: Proxy) -> None:
    proxy.refuse = True
    proxy.cut()
    while store.connection.is_connected:
        await asyncio.sleep(0.005)
    with pytest.raises(NotConnectedError):
        store.put_record(b"x", b"", RUN, lambda _ack: None)
    writing = asyncio.create_task(store.write_record(record(), 0))
    await asyncio.sleep(0.1)
    assert not writing.done()
    proxy.refuse = False
    assert await asyncio.wait_for(writing, 10) > 0


async def test_record_that_does_not_fit_is_refused_before_it_is_sent(store: Store) -> None:
    with pytest.raises(PayloadTooLargeError) as caught:
        await store.write_record(record(input=b"x" * (1 << 20)), 0)
    assert caught.value.limit == 1 << 20


async def test_deleted_record_is_none_with_a_revision(store: Store, raw: Raw) -> None:
    await store.write_record(record(), 0)
    marker = await raw.publish(store.names.record(RUN), b"", {"KV-Operation": "DEL"})
    assert await store.read_record(RUN) == Stored(None, marker)
    assert await store.write_record(record(), marker) > marker


async def test_missing_bucket_is_said(store: Store, raw: Raw) -> None:
    await raw.api("STREAM.DELETE.KV_EXECUTION_STATE")
    with pytest.raises(StoreError, match="stream not found"):
        await asyncio.wait_for(store.read_record(RUN), 5)
    assert await told(lambda done: store.fetch_record(RUN, done)) is None


# --- the journal


async def test_slot_is_filled_once(store: Store) -> None:
    assert (await fill(store, 0, b"first")).error is None
    second = await fill(store, 0, b"second")
    assert second.error is not None
    assert second.error.err_code == REFUSED
    subject = names.slot_subject(slots(store), 0, 1, "call", "00", "A")
    shard = store.names.shard(RUN)
    assert await store.slot_sequence(shard, subject) > 0
    assert await store.slot_sequence(shard, subject.replace(".0.1.", ".1.1.")) == 0


async def test_read_says_up_to_where_it_is_complete(store: Store) -> None:
    shard = store.names.shard(RUN)
    nothing = await store.read_journal(shard, [slots(store)])
    assert nothing.entries == []
    assert nothing.up_to > 0, "the anchor alone says it"
    acks = [await fill(store, step) for step in range(3)]
    read = await store.read_journal(shard, [slots(store)], acks[-1].seq)
    assert sorted(entry.step for entry in read.entries) == [0, 1, 2]
    assert read.up_to >= acks[-1].seq
    some: Read = await told(lambda done: store.fetch_journal(shard, [f"{slots(store)}.1.>"], done))
    assert [entry.step for entry in some.entries] == [1]
    assert some.up_to >= acks[-1].seq


async def test_read_asks_again_until_it_reaches_what_is_known(store: Store, proxy: Proxy) -> None:
    ack = await fill(store, 0)
    end = proxy.lose_answers("$JS.API.DIRECT.GET.>")
    reading = asyncio.create_task(store.read_journal(store.names.shard(RUN), [slots(store)], ack.seq))
    await asyncio.sleep(0.4)
    assert not reading.done()
    end()
    assert len((await asyncio.wait_for(reading, 10)).entries) == 1
    assert store.connection._streams == {}


async def test_long_journal_is_read_page_by_page(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PAGE", 200)
    connection, total = store.connection, 1100
    pending = total
    done = asyncio.Event()

    def stored(ack: PubAck) -> None:
        nonlocal pending
        assert ack.error is None
        pending -= 1
        if pending == 0:
            done.set()

    for step in range(total):
        store.put(names.slot_subject(slots(store), step, 1, "call", "00", "A"), b"x", b"", stored)
        if step % 200 == 0:
            await connection.drain_writes()
    await asyncio.wait_for(done.wait(), 20)
    read = await asyncio.wait_for(store.read_journal(store.names.shard(RUN), [slots(store)]), 20)
    assert sorted(entry.step for entry in read.entries) == list(range(total))
    assert read.up_to >= max(entry.sequence for entry in read.entries)
    assert (connection._streams, connection._callbacks) == ({}, {})


async def test_purge_removes_what_matches_and_nothing_else(store: Store) -> None:
    await fill(store, 0)
    shard = store.names.shard(RUN)
    await store.purge(store.names.journal(shard), f"{slots(store)}.>")
    read = await store.read_journal(shard, [slots(store)])
    assert read.entries == []
    assert read.up_to > 0, "the anchor is left"


# --- commands


async def test_command_is_there_until_it_is_acknowledged(store: Store) -> None:
    ack = await store.publish(store.names.command("hello", RUN, 1), b"", b"")
    assert await store.has_command(ack.seq)
    await store.purge(store.names.commands, store.names.commands_of(RUN))
    assert not await store.has_command(ack.seq)


async def test_publish_that_nobody_takes_is_an_error_of_the_ack(store: Store) -> None:
    ack = await store.publish_once("nobody.takes.it", b"", b"")
    assert ack.error is not None
    assert ack.error.code == 503


@pytest.mark.parametrize("data", [b"", b"garbage", b"[]", b'{"seq": "x"}', b"\xff"])
def test_acknowledgement_that_is_none_is_an_error(data: bytes) -> None:
    ack = read_ack(data, b"")
    assert ack.error is not None
    assert ack.error.code == 500
    assert journal.field(b"", b"x") == ""
