"""TCPX: a TCP proxy between a process and its server which understands NATS frames.

It can refuse, cut and stall connections, lose one direction, and stop the world at one exact
message: a *trap* holds the first frame that fits, and with it all that follows in that direction,
until the test says what becomes of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from types import TracebackType

Direction = Literal["up", "down"]  # up: client to server; down: server to client
_NEVER = 1 << 62  # SUB has a queue group where others have a reply


@dataclass(frozen=True, slots=True)
class Frame:
    """One protocol message as it crossed the proxy."""

    direction: Direction
    verb: str
    subject: str
    reply: str
    headers: bytes
    payload: bytes
    raw: bytes


FramePredicate = Callable[[Frame], bool]


def publishes(pattern: str) -> FramePredicate:
    """Frames by which a client publishes to a subject of this pattern (`*` one token, `>` the rest)."""
    return lambda frame: (
        frame.direction == "up" and frame.verb in {"PUB", "HPUB"} and subject_matches(pattern, frame.subject)
    )


def delivers(pattern: str) -> FramePredicate:
    """Frames by which the server delivers a message of such a subject."""
    return lambda frame: (
        frame.direction == "down" and frame.verb in {"MSG", "HMSG"} and subject_matches(pattern, frame.subject)
    )


def subject_matches(pattern: str, subject: str) -> bool:
    """NATS' own rule."""
    wanted, tokens = pattern.split("."), subject.split(".")
    for index, token in enumerate(wanted):
        if token == ">":
            return len(tokens) > index
        if index >= len(tokens) or token not in ("*", tokens[index]):
            return False
    return len(wanted) == len(tokens)


class Trap:
    """Holds the first frame that fits; made by `Proxy.trap`."""

    def __init__(self, predicate: FramePredicate, skip: int) -> None:
        self._predicate = predicate
        self._skip = skip
        self._reached = asyncio.Event()
        self._decided = asyncio.Event()
        self._lose = False
        self.frame: Frame | None = None

    @property
    def sprung(self) -> bool:
        """Whether a frame is or was held."""
        return self.frame is not None

    async def wait(self, timeout: float = 20.0) -> Frame:
        """Wait until a frame is held: at that instant it and everything behind it has not crossed."""
        await asyncio.wait_for(self._reached.wait(), timeout)
        assert self.frame is not None
        return self.frame

    def release(self) -> None:
        """Let the frame and all behind it go on."""
        self._decided.set()

    def lose(self) -> None:
        """The frame never arrives; what is behind it goes on."""
        self._lose = True
        self._decided.set()

    async def judge(self, frame: Frame) -> bool:
        """Called by the proxy for each frame: whether it passes, after holding it if it is the one."""
        if self.frame is not None or not self._predicate(frame):
            return True
        if self._skip > 0:
            self._skip -= 1
            return True
        self.frame = frame
        self._reached.set()
        await self._decided.wait()
        return not self._lose


class Proxy:
    """Listens on a port of its own; every connection to it is one to the server behind it."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._open = {"up": asyncio.Event(), "down": asyncio.Event()}
        self._losing: set[Direction] = set()
        self._traps: list[Trap] = []
        self._losses: list[FramePredicate] = []
        self._witnesses: list[Callable[[Frame], None]] = []
        self.refuse = False
        for event in self._open.values():
            event.set()

    async def start(self) -> Self:
        """Listen on a free port."""
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    @property
    def url(self) -> str:
        """Where the process under test connects instead of the server."""
        assert self._listener is not None, "the proxy was never started"
        return f"nats://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

    @property
    def connections(self) -> int:
        """How many connections stand at this moment."""
        return len(self._links)

    def trap(self, predicate: FramePredicate, *, skip: int = 0) -> Trap:
        """Hold the first frame that fits, after letting `skip` such frames pass."""
        trap = Trap(predicate, skip)
        self._traps.append(trap)
        return trap

    def lose(self, predicate: FramePredicate) -> Callable[[], None]:
        """Lose every frame that fits, until the returned function is called."""
        self._losses.append(predicate)
        return lambda: self._losses.remove(predicate)

    def lose_answers(self, pattern: str) -> Callable[[], None]:
        """Lose the server's answers (acknowledgements, errors) to what is published to `pattern` from now on."""
        replies: set[str] = set()
        asks = publishes(pattern)

        def answer(frame: Frame) -> bool:
            if asks(frame) and frame.reply:
                replies.add(frame.reply)
            return frame.direction == "down" and frame.subject in replies

        return self.lose(answer)

    def witness(self, observer: Callable[[Frame], None]) -> None:
        """Show every frame that crosses to `observer`."""
        self._witnesses.append(observer)

    def stall(self, *directions: Direction) -> None:
        """Stop reading: nothing crosses, nothing is lost, no connection ends. Without arguments both ways."""
        for direction in directions or ("up", "down"):
            self._open[direction].clear()

    def flow(self) -> None:
        """End every stall and every one-way loss."""
        self._losing.clear()
        for event in self._open.values():
            event.set()

    def blackhole(self, *directions: Direction) -> None:
        """Read and throw away: a half-open link. Without arguments both ways."""
        self._losing.update(directions or ("up", "down"))

    def cut(self) -> None:
        """End every standing connection at once, on both sides."""
        for link in list(self._links):
            link.cut()

    async def close(self) -> None:
        """Stop listening and end all connections."""
        if self._listener is not None:
            self._listener.close()
        links = list(self._links)
        self.cut()
        await asyncio.gather(*(link.over for link in links))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuse:
            writer.transport.abort()
            return
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(self, (reader, writer), (up_reader, up_writer))
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)

    async def passes(self, frame: Frame) -> bool:
        """Whether this frame is to be written on; returns only when it may be."""
        await self._open[frame.direction].wait()
        for trap in list(self._traps):
            if not await trap.judge(frame):
                return False
        lost = [loss for loss in list(self._losses) if loss(frame)]
        if lost or frame.direction in self._losing:
            return False
        for witness in self._witnesses:
            witness(frame)
        return True

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


_Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Link:
    """One client connection and its counterpart at the server."""

    def __init__(self, proxy: Proxy, client: _Pair, server: _Pair) -> None:
        self._proxy = proxy
        self._client, self._server = client, server
        self._pumps: list[asyncio.Task[None]] = []
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Pump both ways until either side ends or the link is cut."""
        up = self._pump("up", self._client[0], self._server[1])
        down = self._pump("down", self._server[0], self._client[1])
        self._pumps = [asyncio.create_task(up), asyncio.create_task(down)]
        try:
            await asyncio.wait(self._pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.cut()
            closed = [writer.wait_closed() for _, writer in (self._client, self._server)]
            await asyncio.gather(*self._pumps, *closed, return_exceptions=True)
            if not self.over.done():
                self.over.set_result(None)

    def cut(self) -> None:
        """Abort both sockets: no FIN is waited for, what is in flight is lost."""
        for pump in self._pumps:
            pump.cancel()
        self._client[1].transport.abort()
        self._server[1].transport.abort()

    async def _pump(self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async for frame in _frames(direction, reader):
                if await self._proxy.passes(frame):
                    writer.write(frame.raw)
                    await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            return  # one side is gone; `run` ends the other


async def _frames(direction: Direction, reader: asyncio.StreamReader) -> AsyncIterator[Frame]:
    """Cut a byte stream into NATS protocol messages."""
    while line := await reader.readline():
        words = line.decode("latin-1").split()
        verb = words[0].upper() if words else ""
        head, total = _body_sizes(verb, words)
        body = await reader.readexactly(total + 2) if total >= 0 else b""
        subject, reply = _subject_and_reply(verb, words)
        yield Frame(direction, verb, subject, reply, body[:head], body[head : max(total, 0)], line + body)


def _body_sizes(verb: str, words: list[str]) -> tuple[int, int]:
    """Length of the header block and of the whole body; (0, -1) for frames without a body."""
    if verb in {"PUB", "MSG"}:
        return 0, int(words[-1])
    if verb in {"HPUB", "HMSG"}:
        return int(words[-2]), int(words[-1])
    return 0, -1


def _subject_and_reply(verb: str, words: list[str]) -> tuple[str, str]:
    fixed = {"PUB": (1, 3), "HPUB": (1, 4), "MSG": (1, 4), "HMSG": (1, 5), "SUB": (1, _NEVER)}.get(verb)
    if fixed is None:
        return "", ""
    subject_at, words_without_reply = fixed
    if len(words) <= words_without_reply:
        return words[subject_at], ""
    return words[subject_at], words[2 if verb in {"PUB", "HPUB"} else 3]
