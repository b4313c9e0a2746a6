"""Submitting an invocation exactly once by its id (protocol, section 1 rule 4, H1 to H3).

The incarnation is drawn once and kept over every repetition. A publish may be repeated for as long as nobody answers:
the stream takes one command of an id, and knows a repetition by its message id. Who is refused looks what is there.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from engine.client.lookup import Lookup, Queued
from engine.commands import START, start_headers
from engine.errors import InvocationConflictError, PayloadTooLargeError, StoreError, UnavailableError
from engine.names import Names, new_incarnation
from engine.records import Record, input_digest
from engine.store import NO_RESPONDERS, REFUSED, WRONG_LAST_SEQUENCE, ApiError, PubAck, read_ack
from engine.values import Payload
from mesh.connection import Connection
from mesh.errors import NotConnectedError, PermissionDeniedError

REPEAT_AFTER = 2.0
"""Seconds without an acknowledgement after which a command is published again."""
REPEAT_SOON = 0.2
"""Seconds until it is published again where we know that it was not taken."""
RECORD_RESERVE = 16 * 1024
"""Bytes of a message that an input must leave free: its record holds it beside result or error."""

_MESSAGE_TOO_LARGE = 10054
_UNHEARD_LIMIT = 3
"""Publishes in a row that nobody receives, after which we look whether the stream is there."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Submission:
    """What somebody asked to start."""

    workflow: str
    invocation: str
    input: Payload
    partition_key: str
    is_fresh: bool
    """The id was drawn for this submission: nobody else can have it, and there is nothing to look for."""

    def digest(self) -> bytes:
        """What decides whether another submission asks for the same."""
        return input_digest(self.workflow, self.partition_key, self.input.type, self.input.data)


class Submitter:
    """Publishes commands over one connection."""

    def __init__(
        self, connection: Connection, names: Names, lookup: Lookup, repair: Callable[[], Awaitable[None]]
    ) -> None:
        """`repair` creates what is missing of the namespace, or raises StoreError."""
        self._connection = connection
        self._names = names
        self._lookup = lookup
        self._repair = repair
        self._open: dict[str, _Publication] = {}
        connection.on_permission_error(self._denied)
        connection.on_state(self._state_changed)

    async def submit(self, wanted: Submission, deadline: float) -> Record | None:
        """Have the invocation started, by this or an equal submission. Returns the record, where it was looked for.

        `deadline` is of the loop's clock. Raises InvocationConflictError, PayloadTooLargeError, StoreError (full,
        missing), mesh.PermissionDeniedError, and UnavailableError where nobody knows: then it is safe to try again
        with the same id.
        """
        names = self._names
        partition = names.partition(wanted.partition_key or wanted.invocation)
        subject = names.command(wanted.workflow, wanted.invocation, partition)
        incarnation = new_incarnation()
        block = start_headers(names, wanted.invocation, incarnation, wanted.input.type, wanted.partition_key)
        self._check_size(wanted, len(block))
        while True:
            ack = await self._publish(subject, wanted, block, deadline)
            if ack is NO_RESPONDERS:
                await self._repair()
                continue
            refused = ack.error is not None
            if not refused and wanted.is_fresh:
                return None
            settled, record = await self._settle(wanted, incarnation, refused, deadline)
            if settled:
                return record

    def _check_size(self, wanted: Submission, header_bytes: int) -> None:
        size = len(wanted.input.data) + max(header_bytes, RECORD_RESERVE)
        if size > self._connection.max_payload:
            limit = self._connection.max_payload - RECORD_RESERVE
            name = (
                f"max_payload of the server ({self._connection.max_payload}, of which {RECORD_RESERVE} are kept free)"
            )
            raise PayloadTooLargeError(f"input of {wanted.workflow}", len(wanted.input.data), limit, name)

    async def _publish(self, subject: str, wanted: Submission, block: bytes, deadline: float) -> PubAck:
        """An acknowledgement, a refusal because the id has a command, or NO_RESPONDERS."""
        publication = _Publication(self._connection, subject, wanted.input.data, block, deadline)
        self._open[subject] = publication
        try:
            ack = await publication.future
        finally:
            publication.close()
            if self._open.get(subject) is publication:
                del self._open[subject]
        if ack.error is None or ack is NO_RESPONDERS or ack.error.err_code in WRONG_LAST_SEQUENCE:
            return ack
        raise self._problem(ack.error, wanted)

    def _problem(self, error: ApiError, wanted: Submission) -> Exception:
        name = self._names.commands
        if error.err_code == REFUSED:
            return StoreError(
                f"{name} is full ({error.description}), {wanted.workflow} was not started: "
                "let processors catch up, or raise its max_bytes",
                name,
            )
        if error.err_code == _MESSAGE_TOO_LARGE:
            limit = f"max_msg_size of {name}"
            return PayloadTooLargeError(f"input of {wanted.workflow}", len(wanted.input.data), 0, limit)
        if error.err_code:
            return StoreError(f"{name} refuses the start of {wanted.workflow}: {error.description}", name)
        return UnavailableError(
            f"whether {wanted.invocation!r} was started is not known ({error.description}): "
            "start it again with the same id and input, that is safe",
            wanted.invocation,
        )

    async def _settle(
        self, wanted: Submission, incarnation: str, refused: bool, deadline: float
    ) -> tuple[bool, Record | None]:
        """Look whose the id is. Returns whether it is an equal submission's, and the record; raises for a conflict."""
        queued = await self._look(self._lookup.command, wanted, deadline) if refused else None
        record = await self._look(self._lookup.record, wanted, deadline)
        if record is not None:
            if record.incarnation != incarnation:
                _compare(wanted, record.workflow, record.partition_key, _digest_of(record))
            return True, record
        if queued is not None and queued.command.kind == START:
            if queued.command.incarnation != incarnation:
                _compare(wanted, queued.workflow, queued.command.partition_key, _digest_of_queued(queued))
            return True, None
        # Refused by a command that is gone, and there is no record: it was purged in between. Once more.
        return not refused, None

    async def _look(self, look: Callable[[str, float], Awaitable[T]], wanted: Submission, deadline: float) -> T:
        left = max(deadline - asyncio.get_running_loop().time(), 0.1)
        try:
            return await look(wanted.invocation, left)
        except UnavailableError as error:
            raise UnavailableError(
                f"{wanted.invocation!r} was started, by this or an earlier submission, but which one is not known "
                f"({error}): start it again with the same id and input, that is safe",
                wanted.invocation,
            ) from error

    def _denied(self, operation: str, subject: str) -> None:
        publication = self._open.get(subject)
        if publication is not None and not publication.future.done():
            publication.future.set_exception(PermissionDeniedError(operation, subject))

    def _state_changed(self, state: str) -> None:
        for publication in list(self._open.values()):
            if state == "reconnected":
                publication.send()
            elif state == "closed":
                publication.give_up()


class _Publication:
    """One command on its way: published again and again until there is an answer. No task, one timer."""

    __slots__ = (
        "_block",
        "_connection",
        "_data",
        "_deadline",
        "_problem",
        "_subject",
        "_timer",
        "_tokens",
        "_unheard",
        "future",
    )

    def __init__(self, connection: Connection, subject: str, data: bytes, block: bytes, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        self.future: asyncio.Future[PubAck] = loop.create_future()
        self._connection = connection
        self._subject = subject
        self._data = data
        self._block = block
        self._deadline = deadline
        self._problem = ApiError(504, 0, "no acknowledgement in time")
        self._timer: asyncio.TimerHandle | None = None
        self._tokens: list[int] = []
        self._unheard = 0
        self.send()

    def send(self) -> None:
        """Publish it, the first time or again; answers to earlier copies still count."""
        if self.future.done():
            return
        try:
            token = self._connection.request(self._subject, self._data, self._answered, headers=self._block)
        except NotConnectedError as error:
            self._problem = ApiError(503, 0, str(error))
            if self._connection.is_closed:
                self.give_up()
            else:
                self._again(REPEAT_SOON)
        else:
            self._tokens.append(token)
            self._again(REPEAT_AFTER)

    def _again(self, pause: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = self.future.get_loop()
        left = self._deadline - loop.time()
        if left > pause:
            self._timer = loop.call_later(pause * random.uniform(1, 1.5), self.send)  # noqa: S311  # spreads load
        else:
            self._timer = loop.call_later(max(left, 0), self.give_up)

    def give_up(self) -> None:
        """End with the last problem: what became of the command is not known."""
        if not self.future.done():
            self.future.set_result(PubAck(error=self._problem))

    def _answered(self, data: bytes, block: bytes) -> None:
        if self.future.done():
            return
        ack = read_ack(data, block)
        if ack.error is None or _is_final(ack.error):
            self.future.set_result(ack)
            return
        # Nobody there, "no leader at the moment" and its kin: not taken, or not known to be.
        self._problem = ApiError(ack.error.code, 0, ack.error.description)
        self._unheard = self._unheard + 1 if ack is NO_RESPONDERS else 0
        if self._unheard == _UNHEARD_LIMIT:
            self.future.set_result(ack)
        else:
            self._again(REPEAT_SOON)

    def close(self) -> None:
        """Stop repeating, take no interest in answers."""
        if self._timer is not None:
            self._timer.cancel()
        for token in self._tokens:
            self._connection.forget(token)


def _is_final(error: ApiError) -> bool:
    """Whether a refusal would be the same a moment later."""
    if error.err_code == REFUSED:  # also what an old leader says that has been cut off
        return "maximum" in error.description
    return bool(error.err_code) and error.code < 500


def _compare(wanted: Submission, workflow: str, partition_key: str, digest: bytes) -> None:
    if workflow != wanted.workflow:
        difference = f"workflow {workflow!r}, not {wanted.workflow!r}"
    elif partition_key != wanted.partition_key:
        difference = f"partition key {partition_key!r}, not {wanted.partition_key!r}"
    elif digest != wanted.digest():
        difference = "another input"
    else:
        return
    raise InvocationConflictError(
        wanted.invocation, f"invocation id {wanted.invocation!r} is taken by an invocation of {difference}"
    )


def _digest_of(record: Record) -> bytes:
    return record.input_digest or input_digest(record.workflow, record.partition_key, record.input_type, record.input)


def _digest_of_queued(queued: Queued) -> bytes:
    command = queued.command
    return input_digest(queued.workflow, command.partition_key, command.input_type, command.input)
