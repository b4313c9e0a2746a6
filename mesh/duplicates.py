"""What an instance remembers of engine steps: run numbers, and answers for duplicates. Pure.

A step is sent again with the same key by whoever takes its invocation over, and by a zombie that
has not noticed yet. An instance that has seen the key never executes a request with a lower run
number than it saw; it answers a duplicate of a finished step without executing it, and lets a
duplicate of a running one wait for the same answer. A zombie's too: its reply subject may be the
very journal slot that its successor waits for, and a refusal there would be taken for the answer.
Only good answers are remembered: a failed attempt is meant to be repeated. It is one instance's
memory, bounded by count and bytes; whoever has not seen the step executes it, and there only the
handler's own use of the key protects.
"""

import enum
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

Reply = tuple[bytes, bytes]
"""Payload and header block."""


class Verdict(enum.Enum):
    """What to do with a request that carries a key."""

    EXECUTE = enum.auto()
    JOIN = enum.auto()
    """The step is running: wait for its answer."""
    ANSWER = enum.auto()
    """The step is done: send the remembered reply."""
    REFUSE = enum.auto()
    """A higher run number has been seen, and the step does not run: a zombie asks."""


@dataclass(slots=True)
class Step:
    """What is known of one key."""

    run: int
    """The highest run number seen; never falls while the key is remembered."""
    owner: Any = None
    """The call that executes it, while it runs."""
    reply: Reply | None = None
    waiting: list[Any] = field(default_factory=list)
    """Requests that joined; the owner of the memory puts and answers them."""


class Steps:
    """Memory of at most `max_count` keys with at most `max_bytes` of replies, the oldest forgotten first."""

    def __init__(self, max_count: int = 20_000, max_bytes: int = 32 << 20) -> None:
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._steps: OrderedDict[str, Step] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def size(self) -> int:
        """Bytes of remembered replies."""
        return self._bytes

    def admit(self, key: str, run: int, owner: object) -> tuple[Verdict, Step]:
        """Judge a request. EXECUTE makes `owner` run the step: whoever asked ends it by `finish`."""
        step = self._steps.get(key)
        if step is None:
            step = self._steps[key] = Step(run)
        else:
            if step.owner is not None:
                step.run = max(step.run, run)
                return Verdict.JOIN, step
            if run < step.run:
                return Verdict.REFUSE, step
            step.run = run
            self._steps.move_to_end(key)
            if step.reply is not None:
                return Verdict.ANSWER, step
        step.owner = owner
        self._forget_oldest()
        return Verdict.EXECUTE, step

    def finish(self, key: str, step: Step, reply: Reply | None) -> list[Any]:
        """The step ended: remember a good `reply` (None: it failed). Returns who joined it."""
        step.owner = None
        waiting, step.waiting = step.waiting, []
        if reply is not None and self._steps.get(key) is step:
            size = len(reply[0]) + len(reply[1])
            if size <= self._max_bytes // 8:
                step.reply = reply
                self._bytes += size
                self._forget_oldest()
        return waiting

    def _forget_oldest(self) -> None:
        excess = len(self._steps) - self._max_count
        victims = []
        for key, step in self._steps.items():  # the oldest first
            if excess <= 0 and self._bytes <= self._max_bytes:
                break
            if step.owner is None:  # those that run are bounded by the server's concurrency
                victims.append(key)
                excess -= 1
                if step.reply is not None:
                    self._bytes -= len(step.reply[0]) + len(step.reply[1])
        for key in victims:
            del self._steps[key]
