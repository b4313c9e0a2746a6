"""Awakeables: a value that somebody outside brings, under an id that the code hands out. Pure."""

import asyncio
from collections.abc import Generator
from typing import Any, Generic, TypeVar

import msgspec

from engine import journal, values
from engine.errors import AwakeableRejectedError, DecodeError
from engine.model import Control, Failure, Step
from mesh import wire

T = TypeVar("T")


class Awakeable(Generic[T]):
    """`await` it for the value, as often as you like; raises AwakeableRejectedError where it was rejected.

    `id` is for whoever brings the value: `client.resolve_awakeable`, `mesh awakeable resolve`, HTTP. `subject` is for
    those who have NATS alone: `nats req SUBJECT '<json>'` is answered by JetStream's acknowledgement, and the headers
    `Nats-Service-Error-Code` and `Nats-Service-Error` make it a rejection.
    """

    def __init__(self, step: Step, awakeable_id: str, subject: str) -> None:
        self._step = step
        self.id = awakeable_id
        self.subject = subject

    def __await__(self) -> Generator[Any, None, T]:
        # Shielded: a time-out around one await leaves the awakeable as it is for the next.
        return asyncio.shield(self._step.future).__await__()

    def __repr__(self) -> str:
        return f"Awakeable({self.id!r})"


def settle(step: Step, control: Control, target: Any) -> None:
    """Give an awakeable's step the value or the rejection that a control brings."""
    step.decided = True
    if journal.is_error(control.headers):
        outcome = wire.outcome(control.data, control.headers)
        if not outcome.ok:
            step.failure = Failure("AwakeableRejectedError", outcome.details, step=step.number, name=step.name)
            step.future.set_exception(AwakeableRejectedError(step.name, outcome.details))
            return
    step.response, step.response_type = control.data, control.type or values.JSON
    try:
        step.future.set_result(decode(control.data, control.type, target))
    except DecodeError as error:
        step.failure = Failure("DecodeError", str(error), step=step.number, name=step.name)
        step.future.set_exception(error)


def decode(data: bytes, content_type: str, target: Any) -> Any:
    """The value that somebody brought. Raises DecodeError.

    Nothing is null. Without a content type (a bare request) it is JSON, or bytes where those are asked for. A JSON
    string for a type that admits no text is JSON within it (E-C10): shells quote so.
    """
    if not data and content_type in {"", values.JSON}:
        data = b"" if target is bytes else b"null"
    content_type = content_type or (values.BYTES if target is bytes else values.JSON)
    what = "the value of an awakeable"
    try:
        return values.decode(data, content_type, target, what)
    except DecodeError:
        if content_type != values.JSON or data[:1] != b'"':
            raise
    return values.decode(_text_within(data), content_type, target, what)


def _text_within(data: bytes) -> bytes:
    try:
        return msgspec.json.decode(data, type=str).encode()
    except msgspec.DecodeError:
        return data
