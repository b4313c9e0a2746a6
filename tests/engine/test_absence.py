"""Services that nobody serves: one probe a subject, and everything that waits goes out when one succeeds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from engine import absence as room
from engine.absence import Absences
from mesh import headers
from mesh.connection import Connection
from mesh.options import ConnectOptions
from tests.kit.proxy import Proxy
from tests.kit.server import NatsServer


class Attempt:
    """A run with one attempt on a subject, which knows how often it was sent and how often nobody listened."""

    def __init__(self, absences: Absences, connection: Connection, subject: str) -> None:
        self._absences = absences
        self._connection = connection
        self.subject = subject
        self.sent = 0
        self.answered = asyncio.Event()
        self.wanted = True
        self.flight: Any = SimpleNamespace(undelivered=0)

    def wait(self) -> None:
        self._absences.wait(self.subject, self, self.flight)

    def resend(self, flight: Any) -> bool:
        if not self.wanted:
            return False
        self.sent += 1
        self._connection.request(self.subject, b"", self._on_answer)
        return True

    def _on_answer(self, _data: bytes, block: bytes) -> None:
        if headers.is_no_responders(block):
            self.flight.undelivered += 1
            self.wait()
        else:
            self.answered.set()


@pytest.fixture
async def proxy(nats_server: NatsServer) -> AsyncIterator[Proxy]:
    async with Proxy(nats_server.port) as link:
        yield link


@pytest.fixture
async def connection(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Connection]:
    monkeypatch.setattr(room, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(room, "LAST_PAUSE", 0.05)
    opened = await Connection.open(ConnectOptions(url=proxy.url))
    yield opened
    await opened.close()


@pytest.fixture
async def absences(connection: Connection) -> AsyncIterator[Absences]:
    made = Absences(connection)
    yield made
    made.stop()


def serve(connection: Connection, subject: str) -> None:
    connection.subscribe(subject, lambda _subject, reply, _data, _block: connection.publish(reply, b"ok"))


async def test_one_attempt_probes_for_all_that_wait(absences: Absences, connection: Connection) -> None:
    attempts = [Attempt(absences, connection, "svc.a") for _ in range(50)]
    for attempt in attempts:
        attempt.wait()
    assert len(absences._probes) == 1
    while sum(attempt.sent for attempt in attempts) < 5:
        await asyncio.sleep(0.005)
    assert not any(attempt.answered.is_set() for attempt in attempts)
    assert sum(attempt.sent for attempt in attempts) < 20, "the others keep still"
    serve(connection, "svc.a")
    await asyncio.wait_for(asyncio.gather(*(attempt.answered.wait() for attempt in attempts)), 5)
    await until_idle(absences)


async def until_idle(absences: Absences) -> None:
    async with asyncio.timeout(5):
        while absences._probes or absences._waiting:
            await asyncio.sleep(0.005)


async def test_subjects_do_not_wait_for_each_other(absences: Absences, connection: Connection) -> None:
    here, gone = Attempt(absences, connection, "svc.here"), Attempt(absences, connection, "svc.gone")
    gone.wait()
    here.wait()
    serve(connection, "svc.here")
    await asyncio.wait_for(here.answered.wait(), 5)
    assert not gone.answered.is_set()


async def test_attempt_that_no_longer_matters_is_forgotten(absences: Absences, connection: Connection) -> None:
    attempt = Attempt(absences, connection, "svc.a")
    attempt.wanted = False
    attempt.wait()
    await until_idle(absences)
    assert attempt.sent == 0
    attempt.wanted = True
    attempt.wait()
    serve(connection, "svc.a")
    await asyncio.wait_for(attempt.answered.wait(), 5)


async def test_lost_connection_does_not_end_the_waiting_of_others(
    absences: Absences, connection: Connection, proxy: Proxy
) -> None:
    attempts = [Attempt(absences, connection, "svc.a") for _ in range(3)]
    for attempt in attempts:
        attempt.wait()
    while not any(attempt.sent for attempt in attempts):
        await asyncio.sleep(0.005)
    serve(connection, "svc.a")
    proxy.cut()
    await asyncio.wait_for(attempts[-1].answered.wait(), 10)


async def test_stopping_ends_all_probes(absences: Absences, connection: Connection) -> None:
    for subject in ("svc.a", "svc.b"):
        Attempt(absences, connection, subject).wait()
    probes = list(absences._probes.values())
    absences.stop()
    await asyncio.gather(*probes, return_exceptions=True)
    assert (absences._probes, absences._waiting) == ({}, {})
