"""What all calls over one connection share: those in flight, limits, and the connection's fate."""

import asyncio
import functools
import logging
import math
import secrets
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import grpc

from mesh import scope, subjects, wire
from mesh.connection import Connection
from mesh.errors import NotConnectedError
from mesh.liveness import Liveness, Peer
from mesh.session import Pulse

logger = logging.getLogger("mesh.client")

DEFAULT_MAX_CALL = 600.0
DEFAULT_MAX_MESSAGE_BYTES = 4_194_304
"""As in gRPC (M-A3)."""
DEFAULT_RECONNECT_GRACE = 5.0
DEFAULT_KEEPALIVE = 10.0
MAX_BYTES_IN_FLIGHT = 16 << 20
"""Of requests without an answer, and of the answers as far as their size can be expected. Past it
calls wait for their turn: the server cuts off whoever has more than `max_pending` (64 MB) waiting,
the caller by answers, the service by requests of several callers (M-A6)."""
COLD_CALLS = 64
"""Calls to a method in flight before its first answer, which tells how large answers are: 1,000 at
once with answers of 1 MB each had the connection cut (ran). Twice as many after each COLD_PAUSE in
which nothing much arrived: that is a slow method, not a large answer on its way."""
COLD_PAUSE = 0.02
COLD_QUIET_BYTES = 65_536
COLD_PATIENCE = 50
"""Pauses after which more are sent in any case: what arrives may be for others."""
SWEEP_INTERVAL = 0.5
"""Seconds between two looks at the calls in flight, or less for a short keepalive."""
QUESTION_TIMEOUT = 1.0
RESEND_DELAYS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.4)
"""Seconds before a request is sent again that was not delivered though an instance serves the method."""
READY_BACKOFF = (0.02, 0.05, 0.1, 0.2, 0.5)
"""Seconds between attempts of a call with `wait_for_ready`, the last one repeated."""


@dataclass(slots=True)
class Target:
    """Where the calls of one method go, and what is known of its answers; one a method and cluster."""

    path: str
    """`pkg.Service/Method`."""
    method: str
    subject: str
    peer: Peer
    answer_bytes: int = -1
    """What an answer may be expected to have: a moving mean; -1 before the first."""
    cold_calls: int = 0
    """Calls sent before the first answer."""
    cold_limit: int = COLD_CALLS
    cold_looks: int = 0
    waiting: "list[asyncio.Future[None]]" = field(default_factory=list)
    """Calls that wait for the first answer."""

    def wake(self) -> None:
        """Let those who wait look again."""
        waiting, self.waiting = self.waiting, []
        for future in waiting:
            settle(future, None)


class Caller:
    """One a connection; every `Call` registers here while it is in flight."""

    def __init__(
        self,
        connection: Connection,
        *,
        prefix: str = subjects.DEFAULT_PREFIX,
        max_call: float = DEFAULT_MAX_CALL,
        keepalive: float = DEFAULT_KEEPALIVE,
        max_send_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        max_receive_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        reconnect_grace: float = DEFAULT_RECONNECT_GRACE,
    ) -> None:
        if keepalive <= 0 or max_call <= 0:
            raise ValueError("keepalive and max_call are seconds above 0")
        self.connection = connection
        self.prefix = subjects.check_prefix(prefix)
        self.max_call = max_call
        self.max_send_bytes = max_send_bytes
        self.max_receive_bytes = max_receive_bytes
        self.reconnect_grace = reconnect_grace
        self._identity = secrets.token_hex(12)
        self._names = 0
        self.loop = asyncio.get_running_loop()
        self.pending: dict[int, Any] = {}
        """Calls by token, in order of sending: the first is the first to reach `max_call`."""
        self.bytes_in_flight = 0
        self.room = 0
        """Bytes that a message may have, headers included: the smallest limit that applies now."""
        self.sweeper: asyncio.TimerHandle | None = None
        self.keepalive = keepalive
        self.streams: set[Any] = set()
        """Open streams, each a `mesh.streamcall.StreamCall`."""
        self.pulse = Pulse()
        self._liveness = Liveness(connection, keepalive, self._learn)
        self._peers: dict[str, Peer] = {}
        self._targets: dict[tuple[str, str | None], Target] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._questions: dict[str, asyncio.Future[frozenset[str] | None]] = {}
        self._turns: list[asyncio.Future[None]] = []
        self._changes: list[asyncio.Future[None]] = []
        self._measure()
        connection.on_state(self._on_state)
        connection.on_permission_error(self._on_refused)

    def target(self, path: str, cluster: str | None = None) -> Target:
        """The target of gRPC's `/pkg.Service/Method`. Raises InvalidNameError."""
        target = self._targets.get((path, cluster))
        if target is None:
            target = self._targets[path, cluster] = self._new_target(path, cluster)
        return target

    def _new_target(self, path: str, cluster: str | None) -> Target:
        service, method = subjects.split_method(path)
        service_at = subjects.service_subject(service, self.prefix, cluster)
        subject = subjects.method_subject(service, method, self.prefix, cluster)
        peer = self._peers.get(service_at)
        if peer is None:
            # Asked what it is with the first call: an instance may die before a call has lasted.
            peer = self._peers[service_at] = Peer(service_at, asked=time.monotonic())
            self._learn(peer)
        return Target(f"{service}/{method}", method, subject, peer)

    def new_name(self) -> str:
        """A name for a call that needs one: nobody can guess it."""
        self._names += 1
        return f"{self._identity}.{self._names}"

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run what a call cannot do at once."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def close(self) -> None:
        """End everything that is under way: calls are CANCELLED."""
        for call in [*self.pending.values(), *self.streams]:
            call.cancel()
        for task in self._tasks:
            task.cancel()
        if self.sweeper is not None:
            self.sweeper.cancel()
            self.sweeper = None
        self._liveness.close()

    # --- time ------------------------------------------------------------------------------------

    def arm(self) -> None:
        """Look after calls in flight until none is left."""
        self.sweeper = self.loop.call_later(min(SWEEP_INTERVAL, self._liveness.tick), self._sweep)

    def _sweep(self) -> None:
        self.sweeper = None
        now = time.monotonic()
        overdue = []
        for call in self.pending.values():  # in order of sending
            if now - call.started < self.max_call:
                break
            overdue.append(call)
        for call in overdue:
            call.expire()
        if self.pending:
            self._liveness.look(list(self.pending.values()), now)
            self.arm()

    def _learn(self, peer: Peer) -> None:
        self.spawn(self._ask_peer(peer))

    async def _ask_peer(self, peer: Peer) -> None:
        await self.methods_at(peer)

    # --- the connection's fate -------------------------------------------------------------------

    async def state_change(self) -> None:
        """Wait until the connection is lost, found again or closed."""
        change: asyncio.Future[None] = self.loop.create_future()
        self._changes.append(change)
        await change

    def _measure(self) -> None:
        self.room = min(self.max_send_bytes, self.connection.max_payload)

    def _on_state(self, state: str) -> None:
        changes, self._changes = self._changes, []
        for change in changes:
            settle(change, None)
        if state == "reconnected":
            self._measure()
            self._give_turns()
            return
        text = "the connection to NATS was lost; whether the call was executed is not known"
        for call in [*self.pending.values(), *self.streams]:
            call.fail(grpc.StatusCode.UNAVAILABLE, text)
        for question in list(self._questions.values()):
            settle(question, None)
        if state == "closed":
            self._give_turns()

    def _on_refused(self, operation: str, subject: str) -> None:
        if operation != "publish":
            return
        if (question := self._questions.get(subject)) is not None:
            settle(question, None)
        text = f"the NATS server does not allow this user to publish to {subject}"
        for call in [call for call in (*self.pending.values(), *self.streams) if call.publishes_to(subject)]:
            call.fail(grpc.StatusCode.PERMISSION_DENIED, text)

    # --- bytes in flight -------------------------------------------------------------------------

    def learn(self, target: Target, answer_bytes: int) -> None:
        """An answer came: expect the next ones to be like it. Of the first one: also those that are under way."""
        if target.answer_bytes >= 0:
            target.answer_bytes += (answer_bytes - target.answer_bytes) >> 3
            return
        target.answer_bytes = answer_bytes
        for call in self.pending.values():
            if call.target is target:
                call.size += answer_bytes
                self.bytes_in_flight += answer_bytes
        target.wake()

    async def wait_warm(self, target: Target) -> None:
        """Wait until the first answer of a method is there, or one more call may be sent without it."""
        while target.answer_bytes < 0 and target.cold_calls >= target.cold_limit:
            if not target.waiting:
                self._look_again(target)
            future: asyncio.Future[None] = self.loop.create_future()
            target.waiting.append(future)
            await future

    def _look_again(self, target: Target) -> None:
        target.cold_looks += 1
        self.loop.call_later(COLD_PAUSE, self._widen, target, self.connection.received_bytes)

    def _widen(self, target: Target, received_before: int) -> None:
        if target.answer_bytes >= 0 or not target.waiting:
            return
        is_quiet = self.connection.received_bytes - received_before < COLD_QUIET_BYTES
        if is_quiet or target.cold_looks % COLD_PATIENCE == 0:
            target.cold_limit *= 2
            target.wake()
        else:
            self._look_again(target)

    def release(self, size: int) -> None:
        """A request of `size` bytes is in flight no more: the next that waits may go."""
        self.bytes_in_flight -= size
        while self._turns and self.bytes_in_flight <= MAX_BYTES_IN_FLIGHT:
            turn = self._turns.pop(0)
            if not turn.done():
                turn.set_result(None)
                return

    def _give_turns(self) -> None:
        turns, self._turns = self._turns, []
        for turn in turns:
            settle(turn, None)

    async def wait_turn(self, grace: float | None) -> bool:
        """Wait for a connection and for room in flight. False where there is none within `grace` seconds (None: wait).

        Whoever waited calls `release(0)` when it has sent, or does not: there may be room for another.
        """
        end = None if grace is None else self.loop.time() + grace
        while True:
            connected = self.connection.is_connected
            if connected and self.bytes_in_flight <= MAX_BYTES_IN_FLIGHT:
                return True
            if self.connection.is_closed:
                return False
            turn: asyncio.Future[None] = self.loop.create_future()
            self._turns.append(turn)
            try:
                async with asyncio.timeout_at(None if connected else end):
                    await turn
            except TimeoutError:
                return False
            finally:
                if turn in self._turns:
                    self._turns.remove(turn)

    # --- questions -------------------------------------------------------------------------------

    async def methods_at(self, peer: Peer) -> frozenset[str] | None:
        """The methods that an instance of the service has, None where no instance answers.

        Many calls that find nobody at once share one question. The answer tells what the peer is.
        """
        subject = subjects.question_subject(peer.service_at, subjects.METHODS_QUESTION)
        question = self._questions.get(subject)
        if question is None:
            question = self._questions[subject] = self.loop.create_future()
            timer = self.loop.call_later(QUESTION_TIMEOUT, settle, question, None)
            question.add_done_callback(functools.partial(self._forget_question, subject, timer))
            inbox = self.connection.reply_subject(0).rpartition(".")[0]
            answered = functools.partial(_on_methods, question, peer)
            try:
                self.connection.request(subject, wire.encode_json({"inbox": inbox}), answered)
            except NotConnectedError:
                question.set_result(None)
        return await asyncio.shield(question)

    async def after_undelivered(
        self, target: Target, times: int, *, wait_for_ready: bool
    ) -> tuple[float, grpc.StatusCode | None, str]:
        """Nobody took a request. Seconds until it is sent again where that makes sense, else the code and text that
        it ends with (M-C8, M-C10, M-D6)."""
        methods = await self.methods_at(target.peer)
        if methods is not None and target.method not in methods:
            return 0.0, grpc.StatusCode.UNIMPLEMENTED, f"the service has no method {target.path}"
        if methods is not None and times < len(RESEND_DELAYS):
            return RESEND_DELAYS[times], None, ""
        if wait_for_ready:
            return READY_BACKOFF[min(times, len(READY_BACKOFF) - 1)], None, ""
        text = f"no instance of {target.path} is listening on {target.subject}"
        return 0.0, grpc.StatusCode.UNAVAILABLE, text

    def call_deadline(self, timeout: float | None) -> tuple[float | None, bool]:
        """When a call must be done, on `time.monotonic`, and whether `max_call` says so and not the caller.

        None: the caller set no limit. A deadline of the handler we are in is inherited (M-A7). Raises ValueError for
        a timeout that is not a number.
        """
        if timeout is not None and math.isnan(timeout):
            raise ValueError("timeout is not a number")
        now = time.monotonic()
        if timeout != math.inf:
            inherited = scope.inherited_deadline()
            if inherited is not None and (timeout is None or inherited - now < timeout):
                timeout = inherited - now
        if timeout is None or timeout == math.inf:
            return None, True
        return now + min(timeout, self.max_call), timeout > self.max_call

    def _forget_question(self, subject: str, timer: asyncio.TimerHandle, _question: object) -> None:
        timer.cancel()
        self._questions.pop(subject, None)


def settle(future: "asyncio.Future[Any]", value: Any) -> None:
    """Give a future its value, unless it has one or nobody wants it."""
    if not future.done():
        future.set_result(value)


def _on_methods(question: "asyncio.Future[frozenset[str] | None]", peer: Peer, data: bytes, block: bytes) -> None:
    methods = None
    if wire.outcome(data, block).ok:
        if (answer := wire.decode_methods(data)) is not None:
            methods, peer.crosses = answer
            peer.is_mesh = True
        else:
            logger.warning("a service answered which methods it has by %r", data[:100])
    settle(question, methods)
