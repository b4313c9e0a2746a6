"""Services that nobody serves at present: one probe a subject notices their return, however many runs wait.

The probe is a real request of one of the waiting attempts. It costs nothing while nobody listens, since the server
says so at once.
"""

import asyncio
from collections import deque
from typing import Protocol

from engine.flight import Flight
from mesh.connection import Connection
from mesh.errors import NotConnectedError

FIRST_PAUSE = 0.1
LAST_PAUSE = 1.0
"""Seconds between probes: a service that comes back is noticed within this."""


class Waiting(Protocol):
    """A run, as far as it waits here."""

    def resend(self, flight: Flight) -> bool:
        """Send the attempt again if it still matters; whether it was sent."""


class Absences:
    """The attempts that wait for a service, by subject."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: dict[str, deque[tuple[Waiting, Flight]]] = {}
        self._probes: dict[str, asyncio.Task[None]] = {}

    def wait(self, subject: str, run: Waiting, flight: Flight) -> None:
        """Nobody listens on `subject`: send this attempt again when somebody does."""
        self._waiting.setdefault(subject, deque()).append((run, flight))
        if subject not in self._probes:
            self._probes[subject] = asyncio.create_task(self._probe(subject), name=f"mesh-probe {subject}")

    def stop(self) -> None:
        """End all probes."""
        for probe in self._probes.values():
            probe.cancel()
        self._probes.clear()
        self._waiting.clear()

    async def _probe(self, subject: str) -> None:
        pause = FIRST_PAUSE
        waiting = self._waiting[subject]
        try:
            while waiting:
                await asyncio.sleep(pause)
                pause = min(pause * 2, LAST_PAUSE)
                flight = self._resend_first(waiting)
                if flight is None:
                    continue
                before = flight.undelivered
                try:
                    await self._connection.round_trip()  # a "nobody listens" would have come before it
                except (TimeoutError, NotConnectedError):
                    continue
                if flight.undelivered == before:
                    self._release(waiting)
        finally:
            self._probes.pop(subject, None)
            self._waiting.pop(subject, None)

    @staticmethod
    def _resend_first(waiting: deque[tuple[Waiting, Flight]]) -> Flight | None:
        """The first attempt that still matters, sent; those that do not are passed over without a pause."""
        while waiting:
            run, flight = waiting.popleft()
            if run.resend(flight):
                return flight
        return None

    @staticmethod
    def _release(waiting: deque[tuple[Waiting, Flight]]) -> None:
        while waiting:
            run, flight = waiting.popleft()
            run.resend(flight)
