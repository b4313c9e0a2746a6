"""Waiting for results: one subscription an id, however many wait; no polling, no task.

The server tells each record on a core subject after it is stored. A notice that is lost is made good by a read of the
record: after two seconds, then ever less often, and at each reconnect.
"""

import asyncio
import json
import logging
from base64 import b64decode
from typing import Any

from engine import journal
from engine.assets.api import NOT_FOUND
from engine.errors import DecodeError, InvocationNotFoundError, ResultTimeoutError, UnavailableError
from engine.model import FINAL
from engine.names import Names
from engine.records import Outcome, read_outcome
from mesh.connection import Connection
from mesh.errors import NotConnectedError, PermissionDeniedError

logger = logging.getLogger("engine.client")

FIRST_READ = 2.0
"""Seconds after which a record whose notice has not come is read."""
LAST_PAUSE = 30.0
"""Seconds between such reads at most."""
_SWEEP = 0.5

_STATUS = b"Mesh-Status"
_ABSENT = bytes(bytearray(b"absent"))
"""Stands for "there is none": known by identity."""


class Watch:
    """Everybody here who waits for one invocation."""

    __slots__ = ("invocation", "is_over", "looked_in_vain", "next_read", "pause", "sid", "waiting")

    def __init__(self, invocation: str, now: float) -> None:
        self.invocation = invocation
        self.waiting: set[asyncio.Future[Outcome]] = set()
        self.sid = 0
        self.pause = FIRST_READ
        self.next_read = now + FIRST_READ
        self.looked_in_vain = False
        self.is_over = False


class Waiting:
    """The watches of one client."""

    def __init__(self, connection: Connection, names: Names) -> None:
        self._connection = connection
        self._names = names
        self._watches: dict[str, Watch] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._record_subject = names.get_message(names.execution_stream)
        self._command_subject = names.get_message(names.commands)
        connection.on_state(self._state_changed)
        connection.on_permission_error(self._denied)

    def begin(self, invocation: str) -> "asyncio.Future[Outcome]":
        """Wait from now on: subscribe, before the invocation is started or its record is read.

        Whoever calls it calls `end` with the future it returns, whatever happens. Raises UnavailableError where the
        connection is closed for good.
        """
        if self._connection.is_closed:
            raise UnavailableError("the connection is closed", invocation)
        loop = asyncio.get_running_loop()
        watch = self._watches.get(invocation)
        if watch is None:
            watch = self._watches[invocation] = Watch(invocation, loop.time())
            watch.sid = self._connection.subscribe(self._names.done(invocation), self._noticed)
            if self._sweeper is None:
                self._sweeper = loop.call_later(_SWEEP, self._sweep)
        future: asyncio.Future[Outcome] = loop.create_future()
        watch.waiting.add(future)
        return future

    def end(self, invocation: str, future: "asyncio.Future[Outcome]") -> None:
        """Wait no longer."""
        if not future.cancel() and not future.cancelled():
            future.exception()  # whoever began may have failed before it came to await
        watch = self._watches.get(invocation)
        if watch is None or future not in watch.waiting:
            return
        watch.waiting.discard(future)
        if not watch.waiting:
            self._close(watch)

    def look(self, invocation: str) -> None:
        """Read the record now: it may be there already, and whoever waits for an unknown id has to be told."""
        watch = self._watches.get(invocation)
        if watch is not None:
            self._read(watch)

    async def outcome(self, invocation: str, future: "asyncio.Future[Outcome]", timeout: float | None) -> Outcome:
        """The end of the run.

        Raises ResultTimeoutError after `timeout` seconds, InvocationNotFoundError for an id that turns out to be
        unknown, UnavailableError when the connection is closed.
        """
        if timeout is None or future.done():
            return await future
        timer = future.get_loop().call_later(max(timeout, 0), _expire, future, invocation, timeout)
        try:
            return await future
        finally:
            timer.cancel()

    def close(self) -> None:
        """Everybody who still waits is told that the connection is gone."""
        for watch in list(self._watches.values()):
            self._fail(watch, UnavailableError("the connection is closed", watch.invocation))
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    # --- notices and reads

    def _noticed(self, subject: str, _reply: str, data: bytes, block: bytes) -> None:
        if journal.field(block, _STATUS) not in FINAL:
            return
        watch = self._watches.get(subject.rpartition(".")[2])
        if watch is not None:
            self._settle(watch, data)

    def _settle(self, watch: Watch, data: bytes) -> bool:
        """Hand the outcome to all who wait, if the record is final. Whether it is."""
        try:
            outcome = read_outcome(data)
        except DecodeError as error:
            logger.warning("record of %r cannot be read: %s", watch.invocation, error)
            return False
        if outcome.status not in FINAL:
            return False
        self._close(watch)
        for future in watch.waiting:
            if not future.done():
                future.set_result(outcome)
        return True

    def _fail(self, watch: Watch, error: Exception) -> None:
        self._close(watch)
        for future in watch.waiting:
            if not future.done():
                future.set_exception(error)

    def _close(self, watch: Watch) -> None:
        if not watch.is_over:
            watch.is_over = True
            del self._watches[watch.invocation]
            self._connection.unsubscribe(watch.sid)

    def _read(self, watch: Watch) -> None:
        subject = self._names.record(watch.invocation)
        self._ask(self._record_subject, subject, lambda data, _block: self._record_read(watch, data))

    def _record_read(self, watch: Watch, data: bytes) -> None:
        if watch.is_over:
            return
        found = _read_answer(data)
        if found is _ABSENT:
            subject = self._names.commands_of(watch.invocation)
            self._ask(self._command_subject, subject, lambda data, _block: self._command_read(watch, data))
        elif found is not None:
            watch.looked_in_vain = False
            self._settle(watch, found)

    def _command_read(self, watch: Watch, data: bytes) -> None:
        found = _read_answer(data)
        if watch.is_over or found is None:
            return
        if found is not _ABSENT:
            watch.looked_in_vain = False
        elif watch.looked_in_vain:
            self._fail(watch, InvocationNotFoundError(watch.invocation))
        else:
            # A command is acknowledged after the record is written: it may have been both between the two looks.
            watch.looked_in_vain = True
            self._read(watch)

    def _ask(self, subject: str, wanted: str, answered: Any) -> None:
        body = json.dumps({"last_by_subj": wanted}).encode()
        try:
            self._connection.request(subject, body, answered)
        except NotConnectedError:
            return  # asked again at the reconnect

    # --- time and connection

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for watch in list(self._watches.values()):
            if now >= watch.next_read:
                watch.pause = min(watch.pause * 2, LAST_PAUSE)
                watch.next_read = now + watch.pause
                self._read(watch)
        self._sweeper = loop.call_later(_SWEEP, self._sweep) if self._watches else None

    def _state_changed(self, state: str) -> None:
        if state == "reconnected":
            for watch in list(self._watches.values()):
                self._read(watch)
        elif state == "closed":
            self.close()

    def _denied(self, operation: str, subject: str) -> None:
        """A subscription that is refused: whoever waits would wait for reads alone."""
        if operation == "subscription" and subject.startswith(self._names.done("")):
            watch = self._watches.get(subject.rpartition(".")[2])
            if watch is not None:
                self._fail(watch, PermissionDeniedError(operation, subject))
        elif operation == "publish" and subject == self._record_subject:
            for watch in list(self._watches.values()):
                self._fail(watch, PermissionDeniedError(operation, subject))


def _read_answer(answer: bytes) -> bytes | None:
    """The data of the message asked for, `_ABSENT` where there is none, None for an answer that says neither."""
    try:
        document = json.loads(answer)
    except ValueError:
        return None
    if "message" in document:
        return b64decode(document["message"].get("data", ""))
    return _ABSENT if document.get("error", {}).get("err_code") in NOT_FOUND else None


def _expire(future: "asyncio.Future[Outcome]", invocation: str, timeout: float) -> None:
    if not future.done():
        future.set_exception(ResultTimeoutError(invocation, timeout))
