"""What JetStream knows of an invocation: its record, else its command. Leaders are asked, never replicas."""

from base64 import b64decode
from dataclasses import dataclass, replace
from typing import Any

from engine import journal
from engine.assets.api import NOT_FOUND, Api, ApiError
from engine.commands import Command, given_incarnation, read_command
from engine.errors import InvocationNotFoundError
from engine.names import Names
from engine.records import Record


@dataclass(frozen=True, slots=True)
class Queued:
    """A command that waits in COMMANDS, or is held by a processor."""

    command: Command
    workflow: str
    sequence: int
    time_ns: int


class Lookup:
    """Reads of one namespace. All raise UnavailableError after `timeout` seconds, StoreError, PermissionDeniedError."""

    def __init__(self, api: Api, names: Names) -> None:
        self._api = api
        self._names = names

    async def record(self, invocation: str, timeout: float, *, with_journal: bool = True) -> Record | None:
        """The record, None where there is none."""
        message = await self._last(self._names.execution_stream, self._names.record(invocation), timeout)
        if message is None or not message.get("data"):  # the marker that an operator's delete leaves has no data
            return None
        return Record.from_bytes(b64decode(message["data"]), journal=with_journal)

    async def command(self, invocation: str, timeout: float) -> Queued | None:
        """The command, None where none is queued or held."""
        message = await self._last(self._names.commands, self._names.commands_of(invocation), timeout)
        if message is None:
            return None
        command = read_command(b64decode(message.get("data", "")), b64decode(message.get("hdrs", "")))
        if not command.incarnation:
            command = replace(command, incarnation=given_incarnation(int(message["seq"])))
        _, workflow, _ = self._names.parse_command(message["subject"])
        return Queued(command, workflow, int(message["seq"]), journal.parse_time(message["time"]))

    async def either(self, invocation: str, timeout: float) -> Record | Queued:
        """The record, else the command. Raises InvocationNotFoundError where there is neither."""
        record = await self.record(invocation, timeout)
        if record is not None:
            return record
        queued = await self.command(invocation, timeout)
        if queued is not None:
            return queued
        # A command is acknowledged after the record is written: it may have been both between the two looks.
        record = await self.record(invocation, timeout)
        if record is None:
            raise InvocationNotFoundError(invocation)
        return record

    async def _last(self, stream: str, subject: str, timeout: float) -> dict[str, Any] | None:
        try:
            answer = await self._api.call(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject}, timeout=timeout)
        except ApiError as error:
            if error.err_code in NOT_FOUND:
                return None
            raise
        return dict(answer["message"])
