"""Journals of finished runs are purged, and only those whose record holds everything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from engine import names as room
from engine.assets import Assets
from engine.records import JournalEntry, Record
from engine.store import Store
from engine.sweep import LOST_AFTER, PARALLEL, Sweeper
from mesh.connection import Connection
from mesh.options import ConnectOptions
from tests.kit.proxy import Proxy, publishes
from tests.kit.raw import Raw
from tests.kit.server import NatsServer


@pytest.fixture
async def proxy(nats_server: NatsServer) -> AsyncIterator[Proxy]:
    async with Proxy(nats_server.port) as link:
        yield link


@pytest.fixture
async def store(proxy: Proxy) -> AsyncIterator[Store]:
    connection = await Connection.open(ConnectOptions(url=proxy.url))
    yield Store(connection, (await Assets.open(connection)).names)
    await connection.close()


async def journal_of(store: Store, run: str) -> str:
    """A run with one entry; its slots."""
    slots = store.names.slots(run, "incarnation")
    ack = await store.publish(room.slot_subject(slots, 0, 1, "call", "00", "A"), b"x", b"")
    assert ack.error is None
    return slots


def final(run: str, status: str = "completed", **fields: Any) -> Record:
    fields.setdefault("journal", [JournalEntry(step=0, type="A.B")])
    return Record(run, "hello", status, **fields)


async def until_empty(raw: Raw) -> None:
    async with asyncio.timeout(10):
        while await raw.journal_messages():
            await asyncio.sleep(0.01)


async def test_journals_of_many_runs_are_purged(store: Store, raw: Raw) -> None:
    sweeper = Sweeper(store, store.names)
    runs = [f"run-{n}" for n in range(3 * PARALLEL)]
    for run in runs:
        slots = await journal_of(store, run)
        sweeper.finished(slots, store.names.shard(run), final(run, "cancelled" if run == "run-0" else "completed"))
    await until_empty(raw)


@pytest.mark.parametrize(
    "kept",
    [
        lambda run: final(run, "failed"),
        lambda run: final(run, contested=True),
        lambda run: final(run, journal=[]),
        lambda run: final(run, journal_truncated=True),
        lambda run: final(run, journal=[JournalEntry(step=0, type="A.B", elided=True)]),
    ],
    ids=["failed", "contested", "no steps", "truncated", "elided"],
)
async def test_journal_that_may_be_needed_is_kept(store: Store, raw: Raw, kept: Callable[[str], Record]) -> None:
    sweeper = Sweeper(store, store.names)
    slots = await journal_of(store, "run-1")
    sweeper.finished(slots, store.names.shard("run-1"), kept("run-1"))
    await store.connection.round_trip()
    assert await raw.journal_messages() == 1


async def test_what_comes_while_away_is_purged_afterwards(store: Store, raw: Raw, proxy: Proxy) -> None:
    sweeper = Sweeper(store, store.names)
    slots = [await journal_of(store, run) for run in ("run-1", "run-2")]
    back = asyncio.Event()
    store.connection.on_state(lambda state: back.set() if state == "reconnected" else None)
    proxy.refuse = True
    proxy.cut()
    while store.connection.is_connected:
        await asyncio.sleep(0.005)
    for run, subject in zip(("run-1", "run-2"), slots, strict=True):
        sweeper.finished(subject, store.names.shard(run), final(run))
    proxy.refuse = False
    await back.wait()
    sweeper.tick(asyncio.get_running_loop().time())
    await until_empty(raw)


async def test_purge_whose_answer_was_lost_is_made_again(store: Store, raw: Raw, proxy: Proxy) -> None:
    """The request itself may be what was lost."""
    sweeper = Sweeper(store, store.names)
    end = proxy.lose(publishes("$JS.API.STREAM.PURGE.>"))
    slots = await journal_of(store, "run-1")
    sweeper.finished(slots, store.names.shard("run-1"), final("run-1"))
    await store.connection.round_trip()
    end()
    assert await raw.journal_messages() == 1
    now = asyncio.get_running_loop().time()
    sweeper.tick(now)
    await store.connection.round_trip()
    assert await raw.journal_messages() == 1, "its answer may still come"
    sweeper.tick(now + LOST_AFTER + 1)
    await until_empty(raw)
    assert store.connection._callbacks == {}
