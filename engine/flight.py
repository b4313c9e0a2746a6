"""What this process has under way for one open step: an attempt that was sent, a timer, a function, a write."""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any, Protocol

from engine.clock import NANOS
from engine.model import Call, Step
from mesh import metadata as grpc_metadata

FIRST_LOOK = 1.0
"""Seconds until an outstanding step is looked for in the journal; then with a growing pause."""


class _Run(Protocol):
    id: str
    incarnation: str
    number: int


class Flight:
    """One attempt of one step; `answer` is what its slot should hold: a service's direct copy, or what we wrote."""

    __slots__ = (
        "_later",
        "_pause",
        "_timer",
        "answer",
        "attempt",
        "body",
        "is_sent",
        "is_writing",
        "look_at",
        "reason",
        "sent_at",
        "step",
        "undelivered",
        "watched",
    )

    def __init__(self, step: Step, attempt: int) -> None:
        self.step = step
        self.attempt = attempt
        self.is_sent = False
        self.is_writing = False
        self.answer: tuple[bytes, bytes] | None = None
        self.body: asyncio.Future[Any] | None = None
        self.look_at = float("inf")
        self.undelivered = 0
        self.reason = ""
        self.sent_at = 0.0
        self.watched: Any = None  # engine.watch's view of it, once it has lasted
        self._pause = FIRST_LOOK
        self._timer: asyncio.TimerHandle | None = None
        self._later: tuple[Callable[..., None], tuple[Any, ...]] | None = None

    def delay(self, now_ns: int) -> float:
        """Seconds of back-off left before this attempt, counted from when the last one failed."""
        step = self.step
        policy = step.call.policy if step.call is not None else step.body.policy if step.body is not None else None
        if policy is None or self.attempt == 1:
            return 0.0
        due_ns = step.failed_ns + int(policy.backoff(self.attempt - 1, random.random()) * NANOS)  # noqa: S311  # jitter
        return (due_ns - now_ns) / NANOS

    def after(self, delay: float, callback: Callable[..., None], *args: Any) -> None:
        """Call back after `delay` seconds, unless it is cancelled."""
        self._cancel_timer()
        self._timer = asyncio.get_running_loop().call_later(delay, callback, *args)

    def put_off(self, callback: Callable[..., None], *args: Any) -> None:
        """It was time, and the run is held: call back when it goes on."""
        self._cancel_timer()
        self._later = (callback, args)

    def wake(self) -> None:
        """The run goes on: call back what was put off."""
        later, self._later = self._later, None
        if later is not None:
            later[0](*later[1])

    def sent(self, now: float, timeout: float, timed_out: Callable[["Flight"], None]) -> None:
        """The request went out."""
        self.is_sent = True
        self.sent_at = now
        self.look_at = now + self._pause
        self.after(timeout, timed_out, self)

    def unsent(self) -> None:
        """Nobody received it."""
        self.is_sent = False
        self.undelivered += 1
        self.look_at = float("inf")
        self._cancel_timer()

    def writes(self, data: bytes, headers: bytes, now: float) -> None:
        """We write the slot ourselves."""
        self._cancel_timer()
        self.is_writing = True
        self.answer = (data, headers)
        self.look_at = now + FIRST_LOOK

    def looked(self, now: float, most: float) -> None:
        """It was looked for; look again later."""
        self._pause = min(self._pause * 2, most)
        self.look_at = now + self._pause

    def cancel(self) -> None:
        """Nothing of it matters any more: its function, if one runs here, is cancelled."""
        self._cancel_timer()
        body, self.body = self.body, None
        if body is not None:
            body.cancel()

    def _cancel_timer(self) -> None:
        self._later = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def request_headers(run: _Run, step: Step, call: Call) -> bytes:
    """The headers of a durable call: the step's key (equal in all attempts), the run number (the fencing token), the
    time left.

    Never `Nats-Msg-Id` or anything else that a service could echo to the store's harm.
    """
    key = f"{run.id}-{run.incarnation}-{step.number}"
    deadline_ms = int((time.time() + call.timeout) * 1000)
    block = (
        f"NATS/1.0\r\nIdempotency-Key: {key}\r\nGrpc-Timeout: {grpc_metadata.encode_timeout(call.timeout)}\r\n"
        f"Mesh-Deadline: {deadline_ms}\r\nGrpc-Metadata-mesh-invocation-id: {run.id}\r\n"
        f"Grpc-Metadata-mesh-run: {run.number}\r\n"
    )
    for name, value in call.metadata:
        block += f"{name}: {value}\r\n"
    return (block + "\r\n").encode()
