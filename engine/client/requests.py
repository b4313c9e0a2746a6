"""What clients ask of a run: published as a control, answered when it is stored and the record was read after that."""

import asyncio
import secrets
from dataclasses import dataclass

from engine.assets.api import Api, ApiError
from engine.client.lookup import Lookup
from engine.controls import NAME_HEADER, TOKEN_HEADER
from engine.errors import (
    AwakeableNotFoundError,
    AwakeableResolvedError,
    InvocationNotFoundError,
    InvocationStateError,
    StoreError,
    UnavailableError,
)
from engine.journal import TYPE_HEADER
from engine.model import FINAL, Ask, Status
from engine.names import Names, control_subject, parse_awakeable_id
from engine.records import Record
from engine.store import REFUSED, Store
from mesh import headers as header_block

REQUEST_TIMEOUT = 10.0
"""Seconds for a request to be stored, and for each look."""


@dataclass(frozen=True, slots=True)
class Target:
    """The run that something is asked of. `status` is `pending` while it has no record."""

    invocation: str
    workflow: str
    incarnation: str
    status: str


class Requests:
    """Controls of one namespace. All raise InvocationNotFoundError, UnavailableError, StoreError."""

    def __init__(self, api: Api, names: Names, lookup: Lookup, store: Store) -> None:
        self._api = api
        self._names = names
        self._lookup = lookup
        self._store = store

    async def cancel(self, invocation: str) -> None:
        """Ask for the end of a run. Raises InvocationStateError where it has ended otherwise."""
        target = await self._target(invocation)
        if target.status == Status.CANCELLED:
            return
        _refuse_final(target, Ask.CANCEL)
        sequence = await self._store_control(target, Ask.CANCEL, secrets.token_urlsafe(12))
        await self._refuse_late(target, Ask.CANCEL, sequence)

    async def hold(self, invocation: str, kind: str) -> None:
        """Ask for a pause, or for the end of one. Raises InvocationStateError where the run has ended."""
        target = await self._target(invocation)
        _refuse_final(target, kind)
        sequence = await self._store_control(target, kind, secrets.token_urlsafe(12))
        if kind == Ask.PAUSE:
            await self._refuse_late(target, kind, sequence)

    async def signal(self, invocation: str, name: str, data: bytes, content_type: str) -> None:
        """Send a run a signal. Raises InvocationStateError where it has ended, also before the signal was delivered."""
        target = await self._target(invocation)
        _refuse_final(target, Ask.SIGNAL)
        headers = {NAME_HEADER: name, TYPE_HEADER: content_type}
        sequence = await self._store_control(target, Ask.SIGNAL, secrets.token_urlsafe(12), data, headers)
        await self._refuse_late(target, Ask.SIGNAL, sequence)

    async def _refuse_late(self, target: Target, what: str, sequence: int) -> None:
        """Raise InvocationStateError where the run ended before it came to a control of this sequence."""
        record = await self._lookup.record(target.invocation, REQUEST_TIMEOUT, with_journal=False)
        if record is None or record.incarnation != target.incarnation or record.end_seq >= sequence:
            return
        if record.status != Status.CANCELLED or what != Ask.CANCEL:
            _refuse_final(_of_record(record), what)

    async def settle_awakeable(self, awakeable: str, data: bytes, headers: dict[str, str]) -> None:
        """Bring an awakeable its value or rejection. Raises AwakeableNotFoundError, AwakeableResolvedError."""
        issued = parse_awakeable_id(awakeable)
        if issued is None:
            raise AwakeableNotFoundError(awakeable)
        invocation, incarnation, step = issued
        try:
            target = await self._target(invocation)
        except InvocationNotFoundError as error:
            raise AwakeableNotFoundError(awakeable) from error
        if target.incarnation != incarnation:
            raise AwakeableNotFoundError(awakeable)
        _refuse_ended(awakeable, target.status)
        sequence = await self._store_control(target, Ask.AWAKEABLE, str(step), data, headers)
        if not sequence:
            raise AwakeableResolvedError(awakeable)
        record = await self._lookup.record(invocation, REQUEST_TIMEOUT)
        if record is None or record.incarnation != incarnation or record.end_seq >= sequence:
            return
        if not _has_arrived(record, step, data):  # an earlier copy of ours, whose acknowledgement was lost
            _refuse_ended(awakeable, record.status)

    async def _target(self, invocation: str) -> Target:
        found = await self._lookup.either(invocation, REQUEST_TIMEOUT)
        if isinstance(found, Record):
            return _of_record(found)
        return Target(invocation, found.workflow, found.command.incarnation, Status.PENDING)

    async def _store_control(
        self, target: Target, kind: str, request: str, data: bytes = b"", headers: dict[str, str] | None = None
    ) -> int:
        """Have a control stored, once under its request id; its sequence, 0 where somebody else has taken that id."""
        names = self._names
        subject = control_subject(names.controls(target.workflow, target.invocation, target.incarnation), kind, request)
        token = secrets.token_urlsafe(12)
        block = header_block.encode({**(headers or {}), TOKEN_HEADER: token}.items())
        self._store.check_size(f"a {kind} of {target.invocation!r}", data, block)
        try:
            ack = await self._api.ask(subject, data, block=block, timeout=REQUEST_TIMEOUT)
        except ApiError as error:
            if error.err_code != REFUSED:
                raise
            return await self._taken(target, subject, token, error)
        return int(ack["seq"])

    async def _taken(self, target: Target, subject: str, token: str, error: ApiError) -> int:
        """Refused: by our own copy whose acknowledgement was lost, by somebody else's, or because the shard is full."""
        shard = self._names.shard(target.invocation)
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                found = await self._store.message(shard, subject)
        except TimeoutError:
            raise UnavailableError(
                f"whether the request to {target.invocation!r} is stored is not known: asking again is safe",
                target.invocation,
            ) from error
        if found is not None:
            return found.seq if header_block.parse(found.hdrs).get(TOKEN_HEADER) == token else 0
        name = self._names.journal(shard)
        raise StoreError(f"{name} is full ({error}): raise its max_bytes or purge finished runs", name) from error


def _of_record(record: Record) -> Target:
    if not record.incarnation:
        raise InvocationNotFoundError(record.invocation_id)
    return Target(record.invocation_id, record.workflow, record.incarnation, record.status)


def _has_arrived(record: Record, step: int, data: bytes) -> bool:
    """Whether a final record says that an awakeable got just this."""
    found = next((entry for entry in record.journal if entry.step == step), None)
    return found is not None and found.completed_ns > 0 and found.response == data


def _refuse_ended(awakeable: str, status: str) -> None:
    if status in FINAL:
        raise AwakeableResolvedError(awakeable, f"too late for awakeable {awakeable!r}: its run is {status}")


def _refuse_final(target: Target, what: str) -> None:
    if target.status in FINAL:
        raise InvocationStateError(
            target.invocation, target.status, f"cannot {what} {target.invocation!r}: it is {target.status}"
        )
