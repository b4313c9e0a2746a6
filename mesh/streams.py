"""One session of messages both ways: events in, frames out. Pure; no connection, task or clock.

    open    request on the method's subject, queue group; header Mesh-Stream (keepalive in ms, window in
            bytes); the body is empty or the caller's first frame, with session 0
    accept  the instance's first frame, on the caller's reply subject: keepalive, window, token
    then    the caller's frames on <method subject>._s.<token>, the instance's on the reply subject

A frame is a NATS payload: kind (1 byte), session (8), sequence (8), content. Each direction counts
its frames from 0: NATS keeps the order, so a gap is a loss and ends the session; a copy is ignored.

    DATA, LAST  a piece of one stream of bytes: length (4 bytes) and message, again and again. Small
                messages share a frame, large ones span several. LAST: nothing follows (half-close).
    WINDOW      messages and bytes that the reader has consumed, counted from the start, and its window now
    WANT        the writer waits: grant what is consumed at once
    ALIVE       nothing else to say
    INITIAL     initial metadata, in NATS headers
    END         how many messages were sent, and whether one was left unfinished; status and trailing
                metadata in NATS headers
    CANCEL      the caller wants no more

A writer is at most WINDOW_BYTES or WINDOW_MESSAGES ahead of its reader, whichever is reached first;
one message is always allowed (M-C5). The reader may ask for a smaller window, when it has many
sessions. A message larger than the window leaves in parts, as its reader takes them. Integers are
big-endian.
"""

import enum
import struct
from collections import deque
from typing import Final

DATA: Final = 1
LAST: Final = 2
WINDOW: Final = 3
WANT: Final = 4
ALIVE: Final = 5
CANCEL: Final = 6
ACCEPT: Final = 7
INITIAL: Final = 8
END: Final = 9

HEAD = struct.Struct(">BQQ")
_LENGTH = struct.Struct(">I")
_PAIR = struct.Struct(">QQ")
_GRANT = struct.Struct(">QQI")
_TERMS = struct.Struct(">II")

WINDOW_BYTES = 1 << 20
WINDOW_MESSAGES = 1024
GRANT_SHARE = 4
"""A grant leaves without being asked for when this part of the window was consumed since the last one."""
GRANT_MESSAGES = WINDOW_MESSAGES // GRANT_SHARE
MIN_WINDOW_BYTES = 16_384
FRAME_BYTES = 65_536
"""Of a frame's content at most: other calls on the connection get their turn between two frames."""

Frame = tuple[bytes, bytes]
"""Payload and header block."""


class Event(enum.IntFlag):
    """What a received frame has changed."""

    NONE = 0
    ACCEPTED = 1
    DATA = 2
    """Messages lie in `received`, or the peer has closed its half."""
    CREDIT = 4
    INITIAL = 8
    ENDED = 16
    """By the peer's END: `end_block` has its status."""
    CANCELLED = 32
    BROKEN = 64
    """`fault` says why: nothing more can be read or written."""


class Fault(enum.Enum):
    """Why a session broke."""

    LOST = "frames were lost"
    GARBAGE = "the peer breaks the protocol of streams"
    TOO_LARGE = "a message is over the limit"


class Session:
    """One side of a session. `ident` is 0 at the caller until the instance has accepted."""

    def __init__(
        self,
        ident: int = 0,
        *,
        max_receive_bytes: int,
        frame_bytes: int = FRAME_BYTES,
        window: int = WINDOW_BYTES,
        peer_window: int = WINDOW_BYTES,
    ) -> None:
        self.ident = ident
        self.window = window
        """Bytes that the peer may be ahead of us; what it is told with the next grant."""
        self._most = max(WINDOW_BYTES, window)
        self._peer_window = peer_window
        self.received: deque[bytes] = deque()
        """Messages that nobody has read."""
        self.peer_closed = False
        """Whether no message comes any more."""
        self.is_over = False
        """Whether it ended, broke or was cancelled: nothing is sent or taken any more."""
        self.initial_block: bytes | None = None
        self.end_block: bytes | None = None
        self.fault: Fault | None = None
        self.fault_text = ""
        self.token = ""
        self.keepalive_ms = 0
        self.out_bytes = 0
        """Bytes of messages written and not taken as frames."""
        self._is_caller = ident == 0
        self._max_receive = max_receive_bytes
        self._frame_bytes = max(1, min(FRAME_BYTES, frame_bytes - HEAD.size))
        # out
        self._next = 0
        self._control: list[Frame] = []
        self._out: list[bytes | memoryview] = []
        self._closed = False
        self._close_due = False
        self._end_due: bytes | None = None
        self._grant_due = False
        self._asked = False
        self._sent_messages = 0
        self._sent_bytes = 0  # of the stream of bytes, lengths included, as frames that were taken
        self._acked_messages = 0
        self._acked_bytes = 0
        # in
        self._expected = 0
        self._prefix = b""
        self._partial: bytearray | None = None
        self._missing = 0
        self._got_messages = 0
        self._got_bytes = 0
        self._unread_bytes = 0
        self._consumed_messages = 0
        self._granted_messages = 0
        self._granted_bytes = 0
        self._peer_wants = False

    # --- out -------------------------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        """Whether our half is closed."""
        return self._closed

    def can_write(self, size: int) -> bool:
        """Whether a message of `size` bytes may be written now, or the reader is too far behind."""
        ahead = self._sent_messages - self._acked_messages
        return ahead == 0 or (
            ahead < WINDOW_MESSAGES
            and self._sent_bytes - self._acked_bytes + self.out_bytes + size + 4 <= self._peer_window
        )

    @property
    def is_stuck(self) -> bool:
        """Whether a part of what was written has to wait for a grant."""
        return self.out_bytes > self._credit()

    def _credit(self) -> int:
        return max(0, self._peer_window - (self._sent_bytes - self._acked_bytes))

    def write(self, message: bytes) -> None:
        """Send a message; the caller has asked `can_write`."""
        size = len(message)
        self._sent_messages += 1
        self._out.append(_LENGTH.pack(size))
        self._out.append(message)
        self.out_bytes += size + 4
        self._asked = False

    def want(self) -> None:
        """Ask for a grant, once for each time that the window is full."""
        if not self._asked and self.ident:
            self._asked = True
            self._add(WANT)

    def half_close(self) -> None:
        """Nothing more will be written."""
        if not self._closed:
            self._closed = self._close_due = True

    def accept(self, keepalive_ms: int, token: str) -> None:
        """The instance has taken the session; its first frame."""
        self._add(ACCEPT, _TERMS.pack(keepalive_ms, self.window) + token.encode())

    def send_initial(self, block: bytes) -> None:
        """Send initial metadata, as a header block."""
        self._add(INITIAL, b"", block)

    def alive(self) -> None:
        """Say that we are there."""
        self._add(ALIVE)

    def cancel(self) -> None:
        """Say that we want no more. The session is over."""
        self._add(CANCEL)
        self.is_over = True

    def end(self, block: bytes) -> None:
        """End it after what was written, with a status as a header block. The session is over."""
        self._end_due = block
        self.is_over = True

    def take_output(self) -> list[Frame]:
        """The frames to send now, in order. None before the instance has accepted."""
        if self.ident == 0:
            return []
        frames, self._control = self._control, []
        if self._grant_due:
            self._grant_due = False
            self._granted_messages = self._consumed_messages
            self._granted_bytes = self._consumed_bytes()
            grant = _GRANT.pack(self._granted_messages, self._granted_bytes, self.window)
            frames.append((self._frame(WINDOW, grant), b""))
        if self._out or self._close_due:
            frames += self._data()
        if self._end_due is not None:
            block, self._end_due = self._end_due, None
            left = bool(self._out)
            self._out = []
            frames.append((self._frame(END, _PAIR.pack(self._sent_messages - left, left)), block))
        return frames

    def opening(self, room: int) -> bytes:
        """The body of the open: the first frame if all of what was written fits in it and in `room` bytes."""
        if not (self._out or self._close_due) or self.out_bytes + HEAD.size > min(room, self._frame_bytes):
            return b""
        return self._data()[0][0]

    def _data(self) -> list[Frame]:
        """As many frames of what was written as there is room granted for."""
        data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        credit = self._credit()
        self._out = []
        if self.out_bytes > credit:
            rest = memoryview(data)
            data = rest[:credit]
            self._out.append(rest[credit:])
        kind = LAST if self._close_due and not self._out else DATA
        self._close_due = self._close_due and kind == DATA
        size = len(data)
        self.out_bytes -= size
        self._sent_bytes += size
        limit = self._frame_bytes
        if size <= limit:
            return [(self._frame(kind, data), b"")] if size or kind == LAST else []
        last = (size - 1) // limit * limit
        return [(self._frame(kind if at == last else DATA, data[at : at + limit]), b"") for at in range(0, size, limit)]

    def _frame(self, kind: int, content: bytes | memoryview = b"") -> bytes:
        number = self._next
        self._next += 1
        return HEAD.pack(kind, self.ident, number) + content

    def _add(self, kind: int, content: bytes = b"", block: bytes = b"") -> None:
        if self.ident and not self.is_over:
            self._flush_before(kind)
            self._control.append((self._frame(kind, content), block))

    def _flush_before(self, kind: int) -> None:
        """Initial metadata and what was written before it keep their order."""
        if kind == INITIAL and self._out:
            self._control += self._data()

    # --- in --------------------------------------------------------------------------------------

    def widen(self, window: int) -> None:
        """Let the peer be so far ahead, though that is more than a window."""
        self.window = self._most = window

    def read(self) -> bytes:
        """Take the oldest message; grants the writer room as it goes. IndexError when there is none."""
        message = self.received.popleft()
        self._consumed_messages += 1
        self._unread_bytes -= len(message) + 4
        if not self.peer_closed:
            if self._peer_wants or self._consumed_messages - self._granted_messages >= GRANT_MESSAGES:
                self._grant_due = True
            self._grant_bytes()
            if self._peer_wants and not self.received:
                self._peer_wants = False
        return message

    def _consumed_bytes(self) -> int:
        """What need not be held back: messages that were read, and the message that the reader waits for."""
        unread = self._got_bytes - self._unread_part if self.received else self._got_bytes
        return max(self._granted_bytes, unread - self._unread_bytes)

    @property
    def _unread_part(self) -> int:
        return len(self._prefix) if self._partial is None else len(self._partial) + 4

    def _grant_bytes(self) -> None:
        if (self._consumed_bytes() - self._granted_bytes) * GRANT_SHARE >= self.window:
            self._grant_due = True

    @property
    def has_output(self) -> bool:
        """Whether `take_output` would have frames."""
        return self.ident != 0 and bool(
            self._control or self._out or self._close_due or self._grant_due or self._end_due is not None
        )

    def receive_opening(self, body: bytes) -> Event:
        """The body of an open, at the instance: nothing, or a frame of session 0."""
        if not body:
            return Event.NONE
        if len(body) < HEAD.size or body[0] not in (DATA, LAST) or body[1 : HEAD.size] != bytes(HEAD.size - 1):
            return self._break(Fault.GARBAGE, "the body of an open is not its first frame")
        self._expected = 1
        return self._on_data(body[0], body)

    def receive(self, payload: bytes, block: bytes = b"") -> Event:
        """Take a frame. Whatever it is, nothing raises: what is none breaks the session."""
        if self.is_over or self.end_block is not None:
            return Event.NONE
        if len(payload) < HEAD.size:
            return self._break(Fault.GARBAGE, f"{len(payload)} bytes are no frame")
        kind, ident, number = HEAD.unpack_from(payload)
        if self.ident == 0 and kind == ACCEPT and ident:
            self.ident = ident
        if ident != self.ident or not ident:
            return self._break(Fault.GARBAGE, "a frame of another session")
        if number != self._expected:
            if number < self._expected:
                return Event.NONE
            return self._break(Fault.LOST, f"frame {self._expected} is missing")
        self._expected += 1
        if kind <= LAST:
            return self._on_data(kind, payload)
        receiver = _RECEIVERS.get(kind)
        if receiver is None:
            return self._break(Fault.GARBAGE, f"a frame of kind {kind}")
        return receiver(self, payload[HEAD.size :], block)

    def _on_data(self, kind: int, payload: bytes) -> Event:
        if self.peer_closed or kind == 0:
            return self._break(Fault.GARBAGE, "data after the end of data")
        pos, end = HEAD.size, len(payload)
        self._got_bytes += end - pos
        while pos < end:
            if self._partial is not None or self._prefix or end - pos < 4:
                pos = self._take_part(payload, pos)
                continue
            size = _LENGTH.unpack_from(payload, pos)[0]
            pos += 4
            if size <= end - pos and size <= self._max_receive:
                self._push(payload[pos : pos + size])
                pos += size
            else:
                self._begin_part(size)
        return self._after_data(kind)

    def _after_data(self, kind: int) -> Event:
        if self.fault is not None:
            return Event.BROKEN
        if kind == LAST:
            if self._unread_part:
                return self._break(Fault.GARBAGE, "data ends within a message")
            self.peer_closed = True
        if self._is_overrun():
            return self._break(Fault.GARBAGE, "more messages than there was room granted for")
        if self._unread_part and not self.received:
            self._grant_bytes()
            self._grant_due = self._grant_due or self._peer_wants
        return Event.DATA

    def _begin_part(self, size: int) -> None:
        """The first of a message that this frame does not end, or that is too large to be taken at all."""
        self._partial, self._missing = bytearray(), size
        if size > self._max_receive:
            self._break(Fault.TOO_LARGE, str(size))
        elif not size:
            self._partial = None
            self._push(b"")

    def _take_part(self, payload: bytes, pos: int) -> int:
        """The next piece of a length or a message that spans frames. Returns where it ends."""
        if self.fault is not None:
            return len(payload)
        if self._partial is None:
            taken = payload[pos : pos + 4 - len(self._prefix)]
            self._prefix += taken
            if len(self._prefix) == 4:
                size = _LENGTH.unpack(self._prefix)[0]
                self._prefix = b""
                self._begin_part(size)
            return pos + len(taken)
        part = payload[pos : pos + self._missing]
        self._partial += part
        self._missing -= len(part)
        if not self._missing:
            message, self._partial = bytes(self._partial), None
            self._push(message)
        return pos + len(part)

    def _push(self, message: bytes) -> None:
        self._got_messages += 1
        self._unread_bytes += len(message) + 4
        self.received.append(message)

    def _is_overrun(self) -> bool:
        ahead = self._got_messages - self._granted_messages
        most = self._most + FRAME_BYTES  # an opening does not know the window yet
        return ahead > WINDOW_MESSAGES or self._got_bytes - self._granted_bytes > most

    def _on_window(self, content: bytes, _block: bytes) -> Event:
        if len(content) != _GRANT.size:
            return self._break(Fault.GARBAGE, "a grant of another size")
        messages, size, self._peer_window = _GRANT.unpack(content)
        if not self._acked_messages <= messages <= self._sent_messages or not (
            self._acked_bytes <= size <= self._sent_bytes
        ):
            return self._break(Fault.GARBAGE, "a grant for what was not sent")
        self._acked_messages, self._acked_bytes = messages, size
        self._asked = False
        return Event.CREDIT

    def _on_want(self, _content: bytes, _block: bytes) -> Event:
        has_news = self._consumed_messages > self._granted_messages or self._consumed_bytes() > self._granted_bytes
        self._grant_due = self._grant_due or has_news
        self._peer_wants = bool(self.received) or not has_news
        return Event.NONE

    def _on_alive(self, _content: bytes, _block: bytes) -> Event:
        return Event.NONE

    def _on_accept(self, content: bytes, _block: bytes) -> Event:
        token = content[_TERMS.size :]
        if not self._is_caller or self.token or not is_token(token):
            return self._break(Fault.GARBAGE, "an accept that is none")
        self.keepalive_ms, self._peer_window = _TERMS.unpack_from(content)
        self.token = token.decode()
        return Event.ACCEPTED

    def _on_initial(self, _content: bytes, block: bytes) -> Event:
        if not self._is_caller or self.initial_block is not None:
            return self._break(Fault.GARBAGE, "initial metadata twice, or from a caller")
        self.initial_block = block
        return Event.INITIAL

    def _on_end(self, content: bytes, block: bytes) -> Event:
        if not self._is_caller or len(content) != _PAIR.size:
            return self._break(Fault.GARBAGE, "an end that is none")
        messages, is_unfinished = _PAIR.unpack(content)
        if messages != self._got_messages or (self._unread_part and not is_unfinished):
            return self._break(Fault.LOST, f"{messages} messages were sent and {self._got_messages} came")
        self.peer_closed = True
        self.end_block = block
        return Event.ENDED

    def _on_cancel(self, _content: bytes, _block: bytes) -> Event:
        if self._is_caller:
            return self._break(Fault.GARBAGE, "an instance cancels")
        return Event.CANCELLED

    def _break(self, fault: Fault, text: str) -> Event:
        self.fault, self.fault_text = fault, text
        return Event.BROKEN


def is_token(token: bytes) -> bool:
    """Whether it may stand in a subject as one token: a peer's word is not taken into a subject unread."""
    return 0 < len(token) <= 64 and token.replace(b"-", b"").replace(b"_", b"").isalnum() and token.isascii()


_RECEIVERS = {
    WINDOW: Session._on_window,  # noqa: SLF001  # its own table
    WANT: Session._on_want,  # noqa: SLF001
    ALIVE: Session._on_alive,  # noqa: SLF001
    CANCEL: Session._on_cancel,  # noqa: SLF001
    ACCEPT: Session._on_accept,  # noqa: SLF001
    INITIAL: Session._on_initial,  # noqa: SLF001
    END: Session._on_end,  # noqa: SLF001
}
