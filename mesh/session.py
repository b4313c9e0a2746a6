"""A session (`mesh.streams`) over a connection: waits, writes, keeps alive. The same for both sides."""

import asyncio
from collections.abc import Callable, Sized
from typing import Final

from mesh.connection import Connection
from mesh.errors import MeshError, NotConnectedError
from mesh.streams import MIN_WINDOW_BYTES, WINDOW_BYTES, Event, Fault, Session

FLUSH_BYTES: Final = 32_768
"""Written and not sent, from which on frames leave before the turn of the loop ends."""
SAY_AFTER = 0.25
"""Share of the keepalive after which a silent side says that it is there."""
DEAD_AFTER = 0.85
"""Share of the keepalive after which a silent peer is dead; with TICK it is noticed within the keepalive."""
TICK = 0.1
WINDOWS_BYTES = 16 << 20
"""Of all sessions of one side of a connection together, shared evenly: the server cuts off whoever has more
than `max_pending` (64 MB) waiting. 300 streams that were a whole window ahead had it cut (ran)."""
FIRST_WINDOW_BYTES = 262_144
"""At most, before the first grant: the session may be the first of many."""
MIN_KEEPALIVE_MS = 100
MAX_KEEPALIVE_MS = 3_600_000


def keepalive_ms(seconds: float) -> int:
    """As it is sent."""
    return min(MAX_KEEPALIVE_MS, max(MIN_KEEPALIVE_MS, round(seconds * 1000)))


def share(sessions: int, most: int = WINDOW_BYTES) -> int:
    """The window of one of so many sessions."""
    return min(most, max(MIN_WINDOW_BYTES, WINDOWS_BYTES // (sessions or 1)))


class PipeClosedError(MeshError):
    """The session is over: nothing more can be written or read."""


class Pipe:
    """Reads and writes messages of one session; owned by a call, which is told what happens to it."""

    def __init__(
        self,
        connection: Connection,
        session: Session,
        send: Callable[[bytes, bytes], None],
        on_event: Callable[[Event], None],
        keepalive: float,
        siblings: Sized,
    ) -> None:
        self._siblings = siblings
        self.session = session
        self.keepalive = keepalive
        """Seconds; the smaller one of both sides'."""
        self.is_closed = False
        self._connection = connection
        self._send = send
        self._on_event = on_event
        self._loop = asyncio.get_running_loop()
        self._readers: list[asyncio.Future[None]] = []
        self._writers: list[asyncio.Future[None]] = []
        self._is_flushing = False
        self.heard = self.said = self._loop.time()

    # --- in --------------------------------------------------------------------------------------

    def feed(self, payload: bytes, block: bytes) -> None:
        """A frame from the peer, from the read loop."""
        self.heard = self._loop.time()
        self.happened(self.session.receive(payload, block))

    def happened(self, event: Event) -> None:
        """What a frame has changed: wake who waits for it, tell the owner what concerns it."""
        if event & (Event.DATA | Event.ENDED):
            _wake(self._readers)
        if event & (Event.CREDIT | Event.ACCEPTED):
            _wake(self._writers)
        if event & ~Event.CREDIT:
            self._on_event(event)
        if self.session.has_output:
            self.flush_soon()

    async def read(self) -> bytes | None:
        """The next message; None after the last one. Raises PipeClosedError where it was closed before that."""
        session = self.session
        while not session.received:
            if session.peer_closed:
                return None
            if self.is_closed:
                raise PipeClosedError
            await self._wait(self._readers)
        message = session.read()
        if session.has_output:
            self.flush_soon()
        return message

    # --- out -------------------------------------------------------------------------------------

    async def write(self, message: bytes) -> None:
        """Send a message; waits while the peer's reader is a window behind. Raises PipeClosedError."""
        session = self.session
        size = len(message)
        while not session.can_write(size):
            self._check_open()
            session.want()
            self.flush_soon()
            await self._wait(self._writers)
        self._check_open()
        session.write(message)
        if session.out_bytes < FLUSH_BYTES:
            self.flush_soon()
            return
        self.flush()
        while session.is_stuck:  # larger than the window: it leaves as its reader takes it
            self._check_open()
            session.want()
            self.flush()
            await self._wait(self._writers)
            self.flush()
        if self._connection.is_congested:
            await self._connection.wait_writable()

    def _check_open(self) -> None:
        if self.is_closed or self.session.is_over or self.session.end_block is not None:
            raise PipeClosedError

    def flush_soon(self) -> None:
        """Send what there is at the end of this turn of the loop."""
        if not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send what there is."""
        self._is_flushing = False
        self.session.window = share(len(self._siblings))
        frames = self.session.take_output()
        if not frames:
            return
        self.said = self._loop.time()
        try:
            for payload, block in frames:
                self._send(payload, block)
        except NotConnectedError:
            self.lose("the connection to NATS was lost")

    def lose(self, text: str) -> None:
        """Break it for a reason that lies beneath it."""
        if not self.is_closed:
            self.session.fault, self.session.fault_text = Fault.LOST, text
            self._on_event(Event.BROKEN)

    def close(self) -> None:
        """No more of it; whoever waits sees that it is over."""
        self.is_closed = True
        _wake(self._readers)
        _wake(self._writers)

    async def _wait(self, waiting: "list[asyncio.Future[None]]") -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        waiting.append(future)
        await future


def _wake(waiting: "list[asyncio.Future[None]]") -> None:
    if not waiting:
        return
    woken = list(waiting)
    waiting.clear()
    for future in woken:
        if not future.done():
            future.set_result(None)


class Pulse:
    """Says for every session that we are there, and ends those whose peer no longer does. One timer for all."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pipes: set[Pipe] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def add(self, pipe: Pipe) -> None:
        """Look after this one."""
        self._pipes.add(pipe)
        due = self._loop.time() + pipe.keepalive * TICK
        if self._timer is None or due < self._due:
            self._arm(due)

    def discard(self, pipe: Pipe) -> None:
        """It is over."""
        self._pipes.discard(pipe)
        if not self._pipes and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        late = now - self._due
        for pipe in tuple(self._pipes):
            if late > pipe.keepalive * SAY_AFTER:  # it was us who stood still: what the peer said waits to be read
                pipe.heard = max(pipe.heard, now - pipe.keepalive * SAY_AFTER)
            if now - pipe.heard >= pipe.keepalive * DEAD_AFTER:
                pipe.lose(f"the peer was silent for {now - pipe.heard:.1f} s")
            elif now - pipe.said >= pipe.keepalive * SAY_AFTER:
                pipe.session.alive()
                pipe.flush()
        if self._pipes:
            self._arm(now + min(pipe.keepalive for pipe in self._pipes) * TICK)
