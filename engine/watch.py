"""Durable calls under way: is the instance that has one still alive? (E-C2, M-C4)

An instance of a service built with `mesh` that dies in mid-call is noticed within the keepalive, and the attempt is
closed and made again, long before its own time-out. Other services are bound by the time-out alone: they answer no
questions.
"""

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from engine.flight import Flight
from engine.model import Failure, Mark
from mesh import subjects, wire
from mesh.connection import Connection
from mesh.errors import NotConnectedError
from mesh.liveness import Liveness, Peer

if TYPE_CHECKING:
    from engine.run import Run

KEEPALIVE = 10.0
"""Seconds for which the death of an instance goes unnoticed at most."""


class WatchedCall:
    """One attempt of a call, as `mesh.liveness` looks at it: known to its instance by its reply subject, the slot."""

    __slots__ = ("_flight", "_run", "heard", "last_asked", "name", "peer", "place", "silent_since", "started")

    def __init__(self, run: "Run", flight: Flight, peer: Peer, place: str) -> None:
        self._run = run
        self._flight = flight
        self.peer = peer
        self.place = place
        self.name = "" if peer.crosses else run.effects.slot(flight)
        self.started = flight.sent_at
        self.heard = self.silent_since = self.last_asked = 0.0

    def die(self) -> None:
        """No instance has it any more: close the attempt, unless its answer has come."""
        flight = self._flight
        if flight.sent_at == self.started and flight.is_sent and flight.answer is None and not self._run.is_still:
            text = f"the instance of {self.place} that had the call is gone"
            self._run.effects.close_attempt(flight, Mark.TIMEOUT, Failure("UNAVAILABLE", text, "UNAVAILABLE"))


class CallWatch:
    """Looks after the calls of all runs of a processor, a tenth of the keepalive apart."""

    def __init__(self, connection: Connection, keepalive: float = KEEPALIVE) -> None:
        self._connection = connection
        self._liveness = Liveness(connection, keepalive, self._learn)
        self._peers: dict[str, Peer] = {}
        self._met: set[str] = set()
        self._next = 0.0

    def sent(self, subject: str) -> None:
        """A call goes out: whoever serves it is asked what it is now, since it may die before it is needed to know."""
        if subject not in self._met:
            self._met.add(subject)
            peer = self._peer(subject)
            if not peer.asked:
                peer.asked = time.monotonic()
                self._learn(peer)

    def _peer(self, subject: str) -> Peer:
        service_at = subject.rpartition(".")[0]
        return self._peers.setdefault(service_at, Peer(service_at))

    def tick(self, now: float, runs: Iterable["Run"]) -> None:
        """Look, if it is time."""
        if now < self._next:
            return
        self._next = now + self._liveness.tick
        calls = [
            self._watched(run, flight)
            for run in runs
            for flight in run.effects.flights.values()
            if flight.is_sent and flight.answer is None and now - flight.sent_at >= self._liveness.tick
        ]
        calls.sort(key=_started)
        self._liveness.look(calls, now)

    def close(self) -> None:
        """Take no interest in answers any more."""
        self._liveness.close()

    def _watched(self, run: "Run", flight: Flight) -> WatchedCall:
        watched: WatchedCall | None = flight.watched
        if watched is None or watched.started != flight.sent_at:
            call = flight.step.call
            assert call is not None
            watched = flight.watched = WatchedCall(run, flight, self._peer(call.subject), call.subject)
        return watched

    def _learn(self, peer: Peer) -> None:
        """Ask whether a service is built with `mesh`; whatever else answers, or nobody, leaves it as it is."""
        inbox = self._connection.reply_subject(0).rpartition(".")[0]
        subject = subjects.question_subject(peer.service_at, subjects.METHODS_QUESTION)
        try:
            self._connection.request(subject, wire.encode_json({"inbox": inbox}), _on_methods(peer))
        except NotConnectedError:
            return


def _on_methods(peer: Peer) -> Callable[[bytes, bytes], None]:
    def answered(data: bytes, block: bytes) -> None:
        answer = wire.decode_methods(data) if not block else None
        if answer is not None:
            peer.is_mesh = True
            peer.crosses = answer[1]

    return answered


def _started(call: WatchedCall) -> float:
    return call.started
