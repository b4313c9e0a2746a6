"""Signals of one name, as workflow code reads them. Pure."""

import asyncio
from typing import Any, Generic, TypeVar

from engine import values
from engine.model import Control

T = TypeVar("T")


class SignalQueue:
    """What has come under one name and was not read yet, in order of storage."""

    def __init__(self) -> None:
        self._arrived: asyncio.Queue[Control] = asyncio.Queue()
        self.waiting_since: list[int] = []
        """Server times at which reads that are still waiting began."""

    def put(self, control: Control) -> None:
        """One more has been delivered."""
        self._arrived.put_nowait(control)

    async def get(self, now_ns: int) -> Control:
        """The next one; waits for it where there is none."""
        self.waiting_since.append(now_ns)
        try:
            return await self._arrived.get()
        finally:
            self.waiting_since.remove(now_ns)


class Signals(Generic[T]):
    """Signals of one name: `await signals.get()`, or `async for value in signals`.

    Each is read once, however many objects there are for a name; those that came before the first access wait.
    """

    def __init__(self, queue: SignalQueue, clock: Any, name: str, target: Any) -> None:
        self._queue = queue
        self._clock = clock
        self._name = name
        self._target = target

    async def get(self) -> T:
        """The next signal's value. Raises DecodeError for a value of another type, which is read then."""
        control = await self._queue.get(self._clock.now_ns)
        data = control.data or b"null"
        value: T = values.decode(data, control.type or values.JSON, self._target, f"the signal {self._name!r}")
        return value

    def __aiter__(self) -> "Signals[T]":
        return self

    async def __anext__(self) -> T:
        return await self.get()
