"""The lease: renewed by answered in-progress acks only, and counted from when they were sent."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable

import pytest

from engine import keepalive as room
from engine.keepalive import Keepalive
from mesh.options import ConnectOptions
from tests.kit.proxy import Proxy
from tests.kit.raw import Raw
from tests.kit.server import NatsServer

ACK_WAIT = 0.6
PROGRESS = "acks.1"


@pytest.fixture
async def proxy(nats_server: NatsServer) -> AsyncIterator[Proxy]:
    async with Proxy(nats_server.port) as link:
        yield link


@pytest.fixture
async def keepalive(proxy: Proxy) -> AsyncIterator[Keepalive]:
    """One whose connection can be disturbed."""
    made = Keepalive(ConnectOptions(url=proxy.url), ACK_WAIT)
    made.start()
    yield made
    await asyncio.to_thread(made.stop)
    assert not made._thread.is_alive()


async def until(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.005)


async def stays_alive(keepalive: Keepalive, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not keepalive.is_alive():
            return False
        await asyncio.sleep(0.005)
    return True


async def test_lease_begins_at_once_and_goes_on_with_nothing_held(keepalive: Keepalive) -> None:
    assert keepalive.is_alive()
    assert await stays_alive(keepalive, 2 * ACK_WAIT)
    assert keepalive.lapses == 0


async def test_everything_held_gets_in_progress_acks_until_it_is_released(keepalive: Keepalive, raw: Raw) -> None:
    seen: list[bytes] = []
    every = asyncio.Event()

    async def answer(message: object) -> None:
        seen.append(message.data)  # type: ignore[attr-defined]
        await message.respond(b"")  # type: ignore[attr-defined]
        if len(seen) >= 3:
            every.set()

    await raw.client.subscribe(PROGRESS, cb=answer)
    await raw.client.flush()
    keepalive.hold(PROGRESS)
    await asyncio.wait_for(every.wait(), 5)
    assert set(seen) == {b"+WPI"}
    assert keepalive.is_alive()
    keepalive.release(PROGRESS)
    keepalive.release(PROGRESS)
    await asyncio.sleep(ACK_WAIT / 2)
    count = len(seen)
    assert await stays_alive(keepalive, ACK_WAIT)
    assert len(seen) == count


async def test_no_answer_is_no_lease(keepalive: Keepalive, raw: Raw, caplog: pytest.LogCaptureFixture) -> None:
    async def silent(_message: object) -> None:
        return None

    await raw.client.subscribe(PROGRESS, cb=silent)
    await raw.client.flush()
    keepalive.hold(PROGRESS)
    await until(lambda: not keepalive.is_alive(), timeout=2 * ACK_WAIT)
    await until(lambda: "no answer" in caplog.text)
    keepalive.release(PROGRESS)
    await until(keepalive.is_alive)
    assert keepalive.lapses == 1


async def test_nobody_to_hear_an_ack_is_no_lease(keepalive: Keepalive) -> None:
    """A consumer without a leader: the server says at once that nobody listens, and the consumer's time goes on."""
    keepalive.hold("$JS.ACK.COMMANDS.nobody.1.1.1.1.1")
    await until(lambda: not keepalive.is_alive(), timeout=2 * ACK_WAIT)


async def test_link_that_carries_nothing_ends_the_lease_and_its_return_begins_another(
    keepalive: Keepalive, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    await until(lambda: proxy.connections == 1)
    proxy.stall()
    await until(lambda: not keepalive.is_alive(), timeout=2 * ACK_WAIT)
    # A round that left in time and is answered within a third of ack_wait still renews the lease: wait until none can.
    await until(lambda: "no answer to in-progress acks" in caplog.text)
    proxy.flow()
    await until(keepalive.is_alive)
    assert keepalive.lapses == 1


async def test_expired_lease_is_a_lapse_when_it_comes_back(keepalive: Keepalive) -> None:
    keepalive.expire()
    assert not keepalive.is_alive()
    await until(keepalive.is_alive)
    assert keepalive.lapses == 1


async def test_blocked_event_loop_costs_no_lease_and_is_named(
    keepalive: Keepalive, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, raw: Raw
) -> None:
    monkeypatch.setattr(room, "BLOCKED_AFTER", 0.3)
    await asyncio.sleep(0.1)
    keepalive.enter("run-1")
    caplog.set_level(logging.WARNING)
    keepalive._busy = ("run-1", time.monotonic() - 1)
    await until(lambda: "run-1" in caplog.text)
    keepalive.leave()
    assert caplog.text.count("run-1") == 1
    assert await stays_alive(keepalive, ACK_WAIT)


async def test_server_that_is_away_when_it_starts_is_waited_for(nats_server: NatsServer) -> None:
    nats_server.kill()
    made = Keepalive(ConnectOptions(url=nats_server.url, connect_timeout=0.2), ACK_WAIT)
    made.start()
    try:
        await until(lambda: not made.is_alive())
        nats_server.start()
        await until(made.is_alive)
    finally:
        await asyncio.to_thread(made.stop)
