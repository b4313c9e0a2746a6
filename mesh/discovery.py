"""Who is there: questions of the services API to every instance, ours or foreign (ADR-32)."""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

from mesh import headers, micro, subjects
from mesh.connection import Connection
from mesh.errors import PermissionDeniedError

FIRST_ANSWER = 1.0
"""Seconds to wait for the first answer (M-E5)."""
NEXT_ANSWER = 0.3
"""Seconds of silence after an answer that end the collection."""
MAX_SECONDS = 30.0
"""Answers that never stop coming are cut off."""
MAX_ANSWERS = 10_000


@dataclass(frozen=True, slots=True)
class Found:
    """One instance's answer, as it came."""

    document: dict[str, Any]
    """The JSON object, `{}` where it was none."""
    fault: str
    """What is wrong with it, `""` for nothing. An odd answer is shown, never a reason to stop."""
    rtt: float
    """Seconds from question to answer."""

    @property
    def name(self) -> str:
        """Its name in the services API."""
        return _text(self.document, "name")

    @property
    def id(self) -> str:
        """The instance's id."""
        return _text(self.document, "id")

    @property
    def version(self) -> str:
        """Its version."""
        return _text(self.document, "version")

    @property
    def description(self) -> str:
        """Its description; only INFO has it."""
        return _text(self.document, "description")

    @property
    def metadata(self) -> dict[str, str]:
        """Its metadata, `{}` where that is none."""
        return _strings(self.document.get("metadata"))

    @property
    def service(self) -> str:
        """The full protobuf name, `""` of a service that is not protobuf's."""
        return self.metadata.get("proto.service", "")

    @property
    def endpoints(self) -> list[dict[str, Any]]:
        """Its endpoints; of INFO and STATS."""
        found = self.document.get("endpoints")
        return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []

    @property
    def methods(self) -> list[str]:
        """Names of its endpoints, in its order."""
        return [_text(endpoint, "name") for endpoint in self.endpoints]


def _text(document: dict[str, Any], key: str) -> str:
    value = document.get(key)
    return value if isinstance(value, str) else ""


def _strings(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {str(key): text for key, text in value.items() if isinstance(text, str)}


async def discover(
    connection: Connection,
    name: str | None = None,
    id: str | None = None,  # noqa: A002  # ADR-32's word
    *,
    verb: str = micro.INFO,
    cluster: str | None = None,
    first: float = FIRST_ANSWER,
    gap: float = NEXT_ANSWER,
    limit: int = MAX_ANSWERS,
) -> list[Found]:
    """All answers to `$SRV.<verb>[.<name>[.<id>]]`, sorted by service, name and id.

    `name` is a service's short name, or a full protobuf name: then only services of that name are
    returned. Waits `first` seconds for an answer, then until `gap` seconds pass without one; nobody
    there is an empty list, at once. With `limit` it ends at that many answers.

    Raises InvalidNameError, NotConnectedError, and PermissionDeniedError where the server does not
    allow this user to ask.
    """
    full = name if name and "." in name else ""
    if full:
        subjects.check_service(full)
    short = subjects.short_name(full) if full else name or ""
    subject = subjects.services_api(verb, short, id or "", cluster)
    found = [answer async for answer in _Answers(connection, subject, verb, first, gap, limit)]
    if full:
        found = [answer for answer in found if answer.service == full]
    return sorted(found, key=lambda answer: (answer.service or answer.name, answer.name, answer.id))


class _Answers:
    """Answers to one question, until they cease."""

    def __init__(self, connection: Connection, subject: str, verb: str, first: float, gap: float, limit: int) -> None:
        self._connection = connection
        self._subject = subject
        self._verb = verb
        self._first = first
        self._gap = gap
        self._limit = limit
        self._queue: asyncio.Queue[Found | PermissionDeniedError | None] = asyncio.Queue()

    async def __aiter__(self) -> Any:
        asked = time.monotonic()

        def answered(data: bytes, block: bytes) -> None:
            if headers.is_no_responders(block) and not data:
                self._queue.put_nowait(None)
            else:
                self._queue.put_nowait(_read(self._verb, data, time.monotonic() - asked))

        def refused(operation: str, subject: str) -> None:
            if subject == self._subject:
                self._queue.put_nowait(PermissionDeniedError(operation, subject))

        stop_listening = self._connection.on_permission_error(refused)
        token = self._connection.request_many(self._subject, b"", answered)
        try:
            async for answer in self._collect():
                yield answer
        finally:
            self._connection.forget(token)
            stop_listening()

    async def _collect(self) -> Any:
        end = time.monotonic() + max(MAX_SECONDS, self._first)
        patience = self._first
        for _ in range(self._limit):
            try:
                async with asyncio.timeout(min(patience, end - time.monotonic())):
                    answer = await self._queue.get()
            except TimeoutError:
                return
            if answer is None:
                return
            if isinstance(answer, PermissionDeniedError):
                raise answer
            yield answer
            patience = self._gap


def _read(verb: str, data: bytes, rtt: float) -> Found:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return Found({}, f"not JSON: {data[:80]!r}", rtt)
    problem = micro.fault(verb, document)
    return Found(document if isinstance(document, dict) else {}, problem, rtt)
