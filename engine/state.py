"""The state of a run: named values, changed by recorded steps alone, so that its journal holds all of it. Pure."""

from dataclasses import dataclass
from typing import Any

import msgspec

from engine import values
from engine.model import Kind


@dataclass(frozen=True, slots=True)
class StateAccess:
    """What a step of kind get, set, clear or keys asks for. `key` is empty for all keys."""

    kind: str
    key: str = ""
    value: values.Payload = values.NOTHING
    target: Any = Any
    default: Any = None


class State:
    """The values as the entries fed so far have made them."""

    def __init__(self) -> None:
        self._values: dict[str, values.Payload] = {}

    def answer(self, access: StateAccess) -> values.Payload:
        """What the owner records for a step: a value read or set, or the names; NOTHING for a key without a value."""
        if access.kind == Kind.GET:
            return self._values.get(access.key, values.NOTHING)
        if access.kind == Kind.KEYS:
            return values.Payload(msgspec.json.encode(sorted(self._values)), values.JSON)
        return access.value

    def apply(self, access: StateAccess, recorded: values.Payload) -> Any:
        """Make what was recorded true; the step's result. Raises DecodeError for a value of another type."""
        if access.kind == Kind.SET:
            self._values[access.key] = recorded
        elif access.kind == Kind.CLEAR:
            for key in [access.key] if access.key else list(self._values):
                self._values.pop(key, None)
        elif access.kind == Kind.KEYS:
            return values.decode(recorded.data, recorded.type, list[str])
        elif recorded.type:
            what = f"the state {access.key!r}"
            return values.decode(recorded.data, recorded.type, access.target, what)
        else:
            return access.default
        return None
