"""The one room of a processor that speaks JetStream: reads that say up to where they are complete, writes that are
acknowledged.

Callbacks where a run's happy path goes, coroutines elsewhere. Nothing here retries a write whose outcome is unknown
without making it the same write: a slot is write-once, a record is compared and set under a random message id, a
command has one form of expectation.
"""

import asyncio
import logging
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from engine import controls, journal
from engine.errors import DecodeError, PayloadTooLargeError, StoreError
from engine.model import Control, Entry
from engine.names import Names
from engine.records import Record, record_headers
from mesh import headers as header_block
from mesh.connection import Connection
from mesh.errors import NoRespondersError, NotConnectedError

logger = logging.getLogger("engine.store")

WRITE_TIMEOUT = 5.0
"""Seconds after which the outcome of a write is unknown. A leader change takes up to 5.5 s (measured)."""
READ_TIMEOUT = 3.0
PATIENCE = 5.0
"""Seconds after which a read or write that is tried again and again is told of."""
MAX_FILTERS = 256
"""Subjects asked for one by one in a read; beyond it the whole journal of a run is read."""
PAGE = 1_000

NOT_FOUND = 10037
STREAM_NOT_FOUND = 10059
WRONG_LAST_SEQUENCE = frozenset({10071, 10164})
REFUSED = 10077
"""Both "this slot is filled" and "the stream is full": read the slot to tell which."""


class _StreamState(msgspec.Struct):
    last_seq: int = 0


class _StreamInfo(msgspec.Struct):
    state: _StreamState


class ApiError(msgspec.Struct):
    """JetStream's error."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class PubAck(msgspec.Struct):
    """JetStream's answer to a publish."""

    seq: int = 0
    stream: str = ""
    duplicate: bool = False
    error: ApiError | None = None


class Message(msgspec.Struct):
    """A message as its stream's leader has it."""

    seq: int
    time: str
    subject: str = ""
    data: bytes = b""
    hdrs: bytes = b""


class _GetAnswer(msgspec.Struct):
    message: Message | None = None
    error: ApiError | None = None


_decode_ack = msgspec.json.Decoder(PubAck).decode
_decode_get = msgspec.json.Decoder(_GetAnswer).decode

NO_RESPONDERS = PubAck(error=ApiError(503, 0, "no stream takes this subject, or JetStream is not available"))
NO_ANSWER = PubAck(error=ApiError(504, 0, "no acknowledgement in time"))


@dataclass(frozen=True, slots=True)
class Read:
    """Entries and controls of a run, and the stream sequence up to which they are all there are."""

    entries: list[Entry]
    up_to: int
    controls: list[Control] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Stored:
    """A record as read: with its revision, 0 and None where there is none."""

    record: Record | None
    revision: int
    data: bytes = b""


AckCallback = Callable[[PubAck], None]


class Reading:
    """One read, in as many requests as it takes. `forget` takes no interest in the answer any more."""

    def __init__(self, store: "Store", shard: int, done: Callable[[Read | None], None]) -> None:
        self._store = store
        self._shard = shard
        self._done = done
        self._tokens: set[int] = set()
        self._read = Read([], 0)
        self._up_to: list[int] = []
        self._parts = 0

    def begin(self, parts: Sequence[Sequence[str]]) -> None:
        """Ask for all parts. Raises NotConnectedError."""
        names, connection = self._store.names, self._store.connection
        self._parts = len(parts)
        for filters in parts:
            body = msgspec.json.encode({"multi_last": [names.anchor(self._shard), *filters]})
            subject = names.direct_get(names.journal(self._shard))
            self._tokens.add(connection.request_many(subject, body, self._answered))

    def forget(self) -> None:
        """Whatever still comes is dropped."""
        for token in self._tokens:
            self._store.connection.forget(token)
        self._tokens.clear()

    def _answered(self, payload: bytes, block: bytes) -> None:
        status = header_block.status(block)
        if status == 0:
            _read_direct(payload, block, self._read)
            return
        up_to, pending = journal.field(block, b"Nats-UpTo-Sequence"), journal.field(block, b"Nats-Num-Pending")
        # Of an answer that would pass its limit in bytes the server sends a part, and says so by what is pending.
        if status != 204 or not up_to.isdecimal() or pending not in ("", "0"):
            self.forget()
            self._done(None)
            return
        self._up_to.append(int(up_to))
        if len(self._up_to) == self._parts:
            self.forget()
            complete = min(self._up_to)
            self._done(_cut(self._read, complete))


class Store:
    """Reads and writes of one namespace, over one connection."""

    def __init__(self, connection: Connection, names: Names, replicas: int = 1) -> None:
        self.connection = connection
        self.names = names
        self.replicas = replicas
        self._tokens: set[int] = set()
        self._stop_listening = connection.on_state(self._on_state)

    def close(self) -> None:
        """Take no more notice of the connection."""
        self._stop_listening()

    def _on_state(self, state: str) -> None:
        if state == "disconnected":  # answers that were under way never come
            for token in self._tokens:
                self.connection.forget(token)
            self._tokens.clear()

    def _request(self, subject: str, data: bytes, headers: bytes, done: Callable[[bytes, bytes], None]) -> None:
        """A request whose answer may never come, and then is not waited for beyond the connection's life."""
        token = 0

        def answered(payload: bytes, block: bytes) -> None:
            self._tokens.discard(token)
            done(payload, block)

        token = self.connection.request(subject, data, answered, headers=headers)
        self._tokens.add(token)

    # --- with callbacks: the happy path

    def put(self, subject: str, data: bytes, headers: bytes, done: AckCallback) -> None:
        """Publish and tell the acknowledgement. Raises NotConnectedError; no answer at all is told nobody."""

        def answered(payload: bytes, block: bytes) -> None:
            done(read_ack(payload, block))

        self._request(subject, data, headers, answered)

    def put_record(self, record_bytes: bytes, headers: bytes, invocation: str, done: AckCallback) -> None:
        """Write a record by compare-and-set (the headers say which revision)."""
        self.put(self.names.record(invocation), record_bytes, headers, done)

    def fetch_record(self, invocation: str, done: Callable[[Stored | None], None]) -> None:
        """Read a record from the leader; None is told where the answer is neither a record nor "there is none"."""

        def answered(payload: bytes, block: bytes) -> None:
            try:
                stored = _read_stored(payload, block)
            except (StoreError, DecodeError, msgspec.DecodeError):
                stored = None
            done(stored)

        body = b'{"last_by_subj":"%b"}' % self.names.record(invocation).encode()
        self._request(self.names.get_message(self.names.execution_stream), body, b"", answered)

    def fetch_journal(self, shard: int, filters: Sequence[str], done: Callable[[Read | None], None]) -> "Reading":
        """Read slots and controls, complete up to the sequence told; None is told where the shard did not give all.

        More than MAX_FILTERS subjects are asked for in parts, and what is told is complete to where the least part is.
        Raises NotConnectedError.
        """
        reading = Reading(self, shard, done)
        reading.begin([filters[at : at + MAX_FILTERS] for at in range(0, len(filters), MAX_FILTERS)] or [()])
        return reading

    def acknowledge(self, ack_subject: str) -> None:
        """Tell the queue that a command is done with."""
        self.connection.publish(ack_subject, b"+ACK")

    def hand_back(self, ack_subject: str, delay: float = 0.0) -> None:
        """Give a command back, to be delivered again after `delay` seconds."""
        self.connection.publish(ack_subject, b'-NAK {"delay": %d}' % int(delay * 1e9) if delay else b"-NAK")

    # --- with coroutines: everything that is not in a hurry

    async def read_record(self, invocation: str) -> Stored:
        """The record, from the leader; asks until it is told. Raises StoreError where the bucket is missing."""
        subject = self.names.get_message(self.names.execution_stream)
        body = b'{"last_by_subj":"%b"}' % self.names.record(invocation).encode()
        data, block = await self._ask(subject, body)
        return _read_stored(data, block)

    async def message(self, shard: int, subject: str) -> Message | None:
        """What stands in a slot, or the control of that subject, from the leader; None where nothing does."""
        body = msgspec.json.encode({"last_by_subj": subject})
        data, _ = await self._ask(self.names.get_message(self.names.journal(shard)), body)
        return _decode_get(data).message

    async def slot_sequence(self, shard: int, subject: str) -> int:
        """The stream sequence of what stands in a slot, from the leader; 0 where nothing does."""
        found = await self.message(shard, subject)
        return 0 if found is None else found.seq

    async def has_command_of(self, invocation: str) -> bool:
        """Whether a command of this id is in the queue."""
        body = msgspec.json.encode({"last_by_subj": self.names.commands_of(invocation)})
        data, _ = await self._ask(self.names.get_message(self.names.commands), body)
        return _decode_get(data).message is not None

    async def has_command(self, sequence: int) -> bool:
        """Whether the command of this sequence is still in the queue."""
        subject = self.names.get_message(self.names.commands)
        data, _ = await self._ask(subject, b'{"seq":%d}' % sequence)
        return _decode_get(data).message is not None

    async def read_journal(self, shard: int, roots: Sequence[str], minimum: int = 0) -> Read:
        """All that a run has beneath `roots` (its slots, its controls), complete at least to sequence `minimum`; asks
        until it is told."""
        async for _ in _backoff(f"reading {self.names.journal(shard)} to sequence {minimum}"):
            try:
                read = await self._read_once(shard, [f"{root}.>" for root in roots])
                if read is None:
                    read = await self._read_large(shard, roots)
            except (TimeoutError, NotConnectedError):
                continue
            if read is not None and read.up_to >= minimum:
                return read
        raise AssertionError  # _backoff never ends

    async def _read_once(self, shard: int, filters: Sequence[str]) -> Read | None:
        future: asyncio.Future[Read | None] = asyncio.get_running_loop().create_future()
        reading = self.fetch_journal(shard, filters, _into(future))
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                return await future
        finally:
            reading.forget()

    async def last_sequence(self, shard: int) -> int:
        """The newest sequence of a shard, from its leader: a read that reaches it misses nothing stored before."""
        data, _ = await self._ask(f"$JS.API.STREAM.INFO.{self.names.journal(shard)}", b"")
        return msgspec.json.decode(data, type=_StreamInfo).state.last_seq

    async def _read_large(self, shard: int, roots: Sequence[str]) -> Read | None:
        """A journal too large for one answer, complete to where the stream was before the first part was read.

        From a single server in pages; from replicas one by one off the leader, since each page may come from another.
        """
        read = Read([], await self.last_sequence(shard))
        for root in roots:
            await self._read_root(shard, f"{root}.>", read)
        return read

    async def _read_root(self, shard: int, subject: str, into: Read) -> None:
        last, pending = 0, 1
        while pending and last < into.up_to:
            read_part = self._read_next if self.replicas > 1 else self._read_page
            newest, pending = await read_part(shard, subject, last + 1, into)
            if not newest:
                return
            last = newest

    async def _read_next(self, shard: int, subject: str, start: int, into: Read) -> tuple[int, int]:
        """The next message from `start` on, off the leader; its sequence, 0 where there is none, and 1."""
        body = msgspec.json.encode({"seq": start, "next_by_subj": subject})
        data, _ = await self._ask(self.names.get_message(self.names.journal(shard)), body)
        message = _decode_get(data).message
        if message is None:
            return 0, 0
        _read_into(into, message.subject, message.seq, journal.parse_time(message.time), message.data, message.hdrs)
        return message.seq, 1

    async def _read_page(self, shard: int, subject: str, start: int, into: Read) -> tuple[int, int]:
        """One page; the last sequence of it, 0 where it is empty, and how many messages follow."""
        last = 0
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def answered(payload: bytes, block: bytes) -> None:
            nonlocal last
            if header_block.status(block) == 0:
                last = max(last, _read_direct(payload, block, into))
            elif not ended.done():
                ended.set_result(int(journal.field(block, b"Nats-Num-Pending") or 0))

        token = self.connection.request_many(
            self.names.direct_get(self.names.journal(shard)),
            msgspec.json.encode({"next_by_subj": subject, "seq": start, "batch": PAGE}),
            answered,
        )
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                pending = await ended
            return last, pending
        finally:
            self.connection.forget(token)

    async def write_record(self, record: Record, revision: int) -> int:
        """Compare-and-set. The new revision, or 0 where another write was first. Tries until the outcome is known.

        Raises StoreError where the bucket is full or missing, PayloadTooLargeError where the record does not fit.
        """
        data = record.to_bytes()
        headers = record_headers(record, revision, secrets.token_urlsafe(12))
        subject = self.names.record(record.invocation_id)
        self.check_size(f"the record of {record.invocation_id!r}", data, headers)
        unknown = False
        async for _ in _backoff(f"writing the record of {record.invocation_id}"):
            ack = await self.publish_once(subject, data, headers)
            if ack.error is None:
                if not ack.duplicate:
                    return ack.seq
                stored = await self.read_record(record.invocation_id)
                return stored.revision if stored.data == data else 0
            if ack.error.err_code in WRONG_LAST_SEQUENCE:
                if not unknown:
                    return 0
                stored = await self.read_record(record.invocation_id)
                return stored.revision if stored.data == data else 0
            if ack.error.err_code == REFUSED:
                raise StoreError(
                    f"bucket {self.names.execution_bucket} is full ({ack.error.description}): "
                    "raise its max_bytes or purge finished runs",
                    self.names.execution_bucket,
                )
            unknown = True
        raise AssertionError  # _backoff never ends

    async def publish_once(self, subject: str, data: bytes, headers: bytes) -> PubAck:
        """One publish; every way of not being acknowledged is an error of the PubAck."""
        try:
            answer = await self.connection.ask(subject, data, headers=headers, timeout=WRITE_TIMEOUT)
        except NoRespondersError:
            return NO_RESPONDERS
        except (TimeoutError, NotConnectedError):
            return NO_ANSWER
        return read_ack(answer.data, answer.headers)

    async def publish(self, subject: str, data: bytes, headers: bytes) -> PubAck:
        """Publish until JetStream says yes or no."""
        async for _ in _backoff(f"publishing to {subject}"):
            ack = await self.publish_once(subject, data, headers)
            if ack.error is None or ack.error.err_code:
                return ack
        raise AssertionError  # _backoff never ends

    def purge_soon(self, stream: str, subject: str, done: Callable[[], None]) -> int:
        """Remove what matches; `done` is told when the server has said so, or that it never will.

        Returns the request's token. Raises NotConnectedError.
        """

        def answered(data: bytes, block: bytes) -> None:
            if not header_block.is_no_responders(block) and not _is_unavailable(data):
                done()

        body = b'{"filter":"%b"}' % subject.encode()
        return self.connection.request(f"$JS.API.STREAM.PURGE.{stream}", body, answered)

    async def purge(self, stream: str, subject: str, keep_from: int = 0) -> None:
        """Remove what matches, below sequence `keep_from` where given (a compare-and-purge)."""
        body: dict[str, object] = {"filter": subject}
        if keep_from:
            body["seq"] = keep_from
        await self._ask(f"$JS.API.STREAM.PURGE.{stream}", msgspec.json.encode(body))

    def check_size(self, what: str, data: bytes, headers: bytes) -> None:
        """Raise PayloadTooLargeError where a message does not fit into the server's `max_payload`."""
        size, limit = len(data) + len(headers), self.connection.max_payload
        if size > limit:
            raise PayloadTooLargeError(what, size, limit)

    async def _ask(self, subject: str, data: bytes) -> tuple[bytes, bytes]:
        """Ask JetStream's API until it answers."""
        async for _ in _backoff(f"asking {subject}"):
            try:
                answer = await self.connection.ask(subject, data, timeout=READ_TIMEOUT)
            except (TimeoutError, NotConnectedError, NoRespondersError):
                continue
            if not _is_unavailable(answer.data):
                return answer.data, answer.headers
        raise AssertionError  # _backoff never ends


def _into(future: "asyncio.Future[Read | None]") -> Callable[[Read | None], None]:
    def answered(read: Read | None) -> None:
        if not future.done():
            future.set_result(read)

    return answered


def read_ack(data: bytes, block: bytes) -> PubAck:
    """JetStream's answer to a publish, whatever it looks like."""
    if block and header_block.is_no_responders(block):
        return NO_RESPONDERS
    try:
        return _decode_ack(data)
    except msgspec.DecodeError:
        return PubAck(error=ApiError(500, 0, f"not a publish acknowledgement: {data[:100]!r}"))


def _read_stored(data: bytes, block: bytes) -> Stored:
    if block and header_block.is_no_responders(block):
        raise StoreError("JetStream is not available")
    answer = _decode_get(data)
    if answer.message is not None:
        if not answer.message.data:  # an operator's delete or purge marker
            return Stored(None, answer.message.seq)
        return Stored(Record.from_bytes(answer.message.data), answer.message.seq, answer.message.data)
    error = answer.error or ApiError()
    if error.err_code == NOT_FOUND:
        return Stored(None, 0)
    raise StoreError(f"reading a record: {error.description}")


def _read_direct(data: bytes, block: bytes, into: Read) -> int:
    """Add a message to a read, and tell its sequence."""
    sequence = int(journal.field(block, b"Nats-Sequence"))
    time_ns = journal.parse_time(journal.field(block, b"Nats-Time-Stamp"))
    _read_into(into, journal.field(block, b"Nats-Subject"), sequence, time_ns, data, block)
    return sequence


def _read_into(into: Read, subject: str, sequence: int, time_ns: int, data: bytes, block: bytes) -> None:
    entry = journal.read_stored(subject, sequence, time_ns, data, block)
    if entry is not None:
        into.entries.append(entry)
        return
    control = controls.read_control(subject, sequence, time_ns, data, block)
    if control is not None:
        into.controls.append(control)


def _cut(read: Read, complete: int) -> Read:
    """What parts of a read have in common: nothing behind the end of the shortest."""
    entries = [entry for entry in read.entries if entry.sequence <= complete]
    return Read(entries, complete, [control for control in read.controls if control.sequence <= complete])


def _is_unavailable(data: bytes) -> bool:
    """A leader change: 10008 and its kin, which mean "again"."""
    if b'"error"' not in data:
        return False
    try:
        error = _decode_get(data).error
    except msgspec.DecodeError:
        return False
    return error is not None and error.code in (503, 500) and error.err_code != STREAM_NOT_FOUND


async def _backoff(what: str, first: float = 0.05, most: float = 2.0) -> AsyncIterator[None]:
    """Turns with growing pauses, for ever: the caller's task is cancelled with its run or its processor."""
    pause = first
    warn_at = time.monotonic() + PATIENCE
    while True:
        yield
        await asyncio.sleep(pause * random.uniform(0.7, 1.3))  # noqa: S311  # spreads load
        pause = min(pause * 2, most)
        if time.monotonic() > warn_at:
            warn_at = float("inf")
            logger.warning("%s has not succeeded for %.0f s; it is tried on", what, PATIENCE)
