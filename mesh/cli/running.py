"""How commands run: uvloop where it is installed, and what signals do to commands that stay."""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from mesh.errors import ConnectError
from mesh.options import ConnectOptions

T = TypeVar("T")

logger = logging.getLogger("mesh.cli")

CONNECT_ATTEMPT = 2.0
"""Seconds of one attempt of a long-lived command to connect; each failed one is a line in the log."""
RETRY_WAIT = 1.0
"""Seconds between two of them."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine to its end, on uvloop where it is installed."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(main)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415  # not on every platform
    except ImportError:
        return None
    return uvloop.new_event_loop


async def connect_and_stay(options: ConnectOptions, connect: Callable[[ConnectOptions], Awaitable[T]]) -> T:
    """The first connection of a long-lived command: tried for ever, unless `options` has a `connect_timeout`.

    Raises ConnectError at once where the server is there and refuses us: more attempts would not help.
    """
    if options.connect_timeout is not None:
        return await connect(options)
    while True:
        try:
            return await connect(options.with_timeout(CONNECT_ATTEMPT))
        except ConnectError as error:
            if "authorization" in error.reason.lower():
                raise
            logger.warning("no connection to %s yet: %s", options.describe(), error.reason)
        await asyncio.sleep(RETRY_WAIT)


class Signals:
    """SIGTERM and SIGINT, counted: the first asks to finish, the second to stop at once.

    An async context manager; while it is open neither signal raises KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self._events = (asyncio.Event(), asyncio.Event())

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._received)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    def _received(self) -> None:
        next((event for event in self._events if not event.is_set()), self._events[-1]).set()

    @property
    def asked_to_finish(self) -> bool:
        """Whether a signal has come."""
        return self._events[0].is_set()

    async def until_first(self, work: Awaitable[T]) -> T | None:
        """The result of `work`; None, and `work` cancelled, when the first signal comes before it ends."""
        return await self._race(work, self._events[0])

    async def until_second(self, work: Awaitable[T]) -> T | None:
        """The result of `work`; None, and `work` cancelled, when the second signal comes before it ends."""
        return await self._race(work, self._events[1])

    @staticmethod
    async def _race(work: Awaitable[T], event: asyncio.Event) -> T | None:
        task = asyncio.ensure_future(work)
        signalled = asyncio.ensure_future(event.wait())
        try:
            await asyncio.wait([task, signalled], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            return None
        finally:
            for pending in (task, signalled):
                pending.cancel()
            await asyncio.gather(task, signalled, return_exceptions=True)
