"""Is the instance that has a call still alive? (M-C4)

Nothing but the final answer is ever sent to a unary reply subject, so the caller asks: by a request
beneath the method's subject, which every instance gets and the one that has the call answers.
A question names calls as their instance knows them: by reply subject in the same account. Where an
account import rewrites reply subjects the service says so when it is first asked anything
(`Peer.crosses`), and later calls carry a name of their own in a header.

A service not built with `mesh` never says that it is (`Peer.is_mesh`): its calls are not asked for.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from mesh import headers, subjects, wire
from mesh.connection import Connection
from mesh.errors import NotConnectedError

ASK_AFTER = 0.4
"""Share of the keepalive after which the first question leaves, and after which silence is death:
with a look every tenth of it, the peer's death is noticed within the keepalive."""
ASK_AGAIN = 0.2
TICK = 0.1
NAMES_A_QUESTION = 100


@dataclass(slots=True)
class Peer:
    """What is known of those who serve a service at one place."""

    service_at: str
    is_mesh: bool = False
    """Whether an instance has answered a question of the mesh."""
    crosses: bool = False
    """Whether they see other reply subjects than the caller's: an account import lies between."""
    asked: float = 0.0
    """When it was last asked what it is, on the caller's clock."""


class Asked(Protocol):
    """A call in flight, as far as it is asked for."""

    started: float
    heard: float
    """When its instance last said that it has the call; 0 for never."""
    silent_since: float
    """When the first question left that nobody has answered; 0 for none."""
    last_asked: float

    @property
    def place(self) -> str:
        """The method's subject."""

    @property
    def peer(self) -> Peer:
        """Who serves it."""

    @property
    def name(self) -> str:
        """What its instance knows it by, `""` where it has no name there."""

    def die(self) -> None:
        """End UNAVAILABLE."""


class Liveness:
    """Decides which calls are asked for, asks, and ends those whose instance is gone."""

    def __init__(self, connection: Connection, keepalive: float, learn: Callable[[Peer], None]) -> None:
        self._connection = connection
        self._keepalive = keepalive
        self._learn = learn
        self._open: list[tuple[float, int]] = []  # questions: when asked, token

    @property
    def tick(self) -> float:
        """Seconds between two looks."""
        return self._keepalive * TICK

    def look(self, calls: list[Any], now: float) -> None:
        """Look at all calls in flight, in order of sending."""
        self._forget_questions(now)
        ask_after = self._keepalive * ASK_AFTER
        dead: list[Asked] = []
        questions: dict[str, list[Asked]] = {}
        for call in calls:
            if now - call.started < self.tick:
                break
            peer = call.peer
            if not peer.is_mesh:
                if now - peer.asked >= ask_after:
                    peer.asked = now
                    self._learn(peer)
            elif call.name and now - (call.heard or call.started) >= ask_after:
                self._judge(call, now, questions, dead)
        for place, asked in questions.items():
            for start in range(0, len(asked), NAMES_A_QUESTION):
                self._ask(place, asked[start : start + NAMES_A_QUESTION], now)
        for call in dead:
            call.die()

    def _judge(self, call: Asked, now: float, questions: dict[str, list[Asked]], dead: list[Asked]) -> None:
        if call.silent_since and now - call.silent_since >= self._keepalive * ASK_AFTER:
            dead.append(call)
        elif not call.silent_since or now - call.last_asked >= self._keepalive * ASK_AGAIN:
            call.silent_since = call.silent_since or now
            call.last_asked = now
            questions.setdefault(call.place, []).append(call)

    def _ask(self, place: str, calls: list[Asked], now: float) -> None:
        named = {call.name: call for call in calls}
        answered = functools.partial(self._on_answer, named, now)
        try:
            token = self._connection.request_many(subjects.call_subject(place), alive_question(named), answered)
        except NotConnectedError:
            return
        self._open.append((now, token))

    def _on_answer(self, named: dict[str, Asked], asked: float, data: bytes, block: bytes) -> None:
        if headers.is_no_responders(block) and not data:  # no instance is left, also none that drains
            for call in named.values():
                call.die()
            return
        for name in alive_names(data):
            if name in named:
                named[name].heard = max(named[name].heard, asked)
                named[name].silent_since = 0.0

    def _forget_questions(self, now: float) -> None:
        while self._open and now - self._open[0][0] >= self._keepalive:
            self._connection.forget(self._open.pop(0)[1])

    def close(self) -> None:
        """Take no interest in answers any more."""
        for _, token in self._open:
            self._connection.forget(token)
        self._open.clear()


def alive_question(names: Any) -> bytes:
    """Body of the question which of these calls are alive; its answer: `alive_names`."""
    return wire.encode_json({"alive": list(names)})


def alive_names(data: bytes) -> list[str]:
    """The names in an answer; an odd one has none."""
    try:
        found = json.loads(data)["alive"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return []
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def cancel_notice(name: str) -> bytes:
    """Body of the word that a call's caller wants no answer any more."""
    return wire.encode_json({"cancel": name})
