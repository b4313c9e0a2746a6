"""A deterministic asyncio event loop for one run of a workflow. Pure: no thread, socket or clock.

The ready queue is drained to quiescence after every input, so the order of everything that happens inside depends on
the order of inputs and nothing else. Time stands still between inputs: `time()` is the server time of the newest one.
A timer is not fired by a clock but by an input. Whatever would reach outside (sockets, threads, processes, signals)
raises ForeignAwaitError and is remembered, so that a run fails loudly even where its code swallows the exception.
"""

import asyncio
import contextvars
import math
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Never

from engine.errors import ForeignAwaitError

_swap_current_task: Callable[[Any, Any], Any] | None = getattr(asyncio.tasks, "_swap_current_task", None)
"""From 3.12 on. From 3.14 a thread has one current task, so that of the loop around us is put aside while we run."""

_MAX_CLOSE_ROUNDS = 8
"""How often a coroutine that awaits in its `finally` is told again to end."""


class EvictedError(BaseException):
    """Raised where code that is being put away tries another step: its frames leave memory, nothing may happen."""


class Handle:
    """A callback in the ready queue, or a timer. Has what asyncio asks of its handles."""

    __slots__ = ("_args", "_callback", "_cancelled", "_context", "_when")

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context | None,
        when: float = 0.0,
    ) -> None:
        self._callback = callback
        self._args = args
        self._context = context
        self._when = when
        self._cancelled = False

    def when(self) -> float:
        """When a timer is due, in this loop's time."""
        return self._when

    def cancel(self) -> None:
        """Do not call it any more."""
        self._cancelled = True

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._cancelled


class DeterministicLoop(asyncio.AbstractEventLoop):
    """The event loop that workflow code sees. `set_timer(handle)` is called for each timer the code arms."""

    def __init__(self, set_timer: Callable[[Handle], None]) -> None:
        self._ready: deque[Handle] = deque()
        self._set_timer = set_timer
        self._tasks: set[asyncio.Task[Any]] = set()
        self._now = 0.0
        self._evicted = False
        self._context = contextvars.copy_context()
        self.foreign: ForeignAwaitError | None = None
        self.unhandled: BaseException | None = None

    # --- driving it

    def set_time(self, now: float) -> None:
        """Move the clock; it never goes back."""
        self._now = max(self._now, now)

    def run_ready(self) -> None:
        """Run everything that can run, until nothing can. Not re-entrant."""
        ready = self._ready
        if not ready:
            return
        outer = asyncio._get_running_loop()
        outer_task = _swap_current_task(outer, None) if _swap_current_task is not None and outer is not None else None
        asyncio._set_running_loop(self)
        try:
            while ready:
                handle = ready.popleft()
                if not handle._cancelled:
                    self._call(handle)
        finally:
            asyncio._set_running_loop(outer)
            if outer_task is not None and _swap_current_task is not None:
                _swap_current_task(outer, outer_task)

    def _call(self, handle: Handle) -> None:
        try:
            if handle._context is None:
                self._context.run(handle._callback, *handle._args)
            else:
                handle._context.run(handle._callback, *handle._args)
        except EvictedError:
            pass
        except BaseException as error:  # noqa: BLE001  # SystemExit and KeyboardInterrupt of user code come through a task's step
            self.unhandled = self.unhandled or error

    def fire(self, handle: Handle) -> None:
        """A timer's input has come: put its callback into the ready queue."""
        if not handle._cancelled:
            self._ready.append(handle)

    def put_away(self) -> None:
        """Drop all frames: user code may see GeneratorExit, as in any dropped coroutine, but no step of it happens."""
        self._evicted = True
        self._ready.clear()
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            for task in list(self._tasks):
                task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio's own switch for this
                coroutine = task.get_coro()
                if coroutine is not None:
                    _close(coroutine)
        finally:
            asyncio._set_running_loop(outer)
        self._tasks.clear()
        self._ready.clear()

    # --- what asyncio asks of a loop

    def time(self) -> float:
        """Server time of the newest input, in seconds since 1970."""
        return self._now

    def call_soon(  # type: ignore[override]  # asyncio only needs what our Handle has
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Handle:
        """Run a callback in this drain."""
        if self._evicted:
            raise EvictedError
        handle = Handle(callback, args, context)
        self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Handle:
        """Run a callback when a durable timer of `delay` seconds fired."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Handle:
        """Run a callback when a durable timer due at `when` (this loop's time) fired."""
        if self._evicted:
            raise EvictedError
        if math.isnan(when):
            raise ValueError("a timer's delay must not be NaN")
        handle = Handle(callback, args, context or contextvars.copy_context(), when)
        if when <= self._now:
            self._ready.append(handle)
        else:
            self._set_timer(handle)
        return handle

    def create_future(self) -> "asyncio.Future[Any]":
        """A future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        name: object = None,
        context: contextvars.Context | None = None,
        **_: Any,
    ) -> "asyncio.Task[Any]":
        """A task of this loop; always begins in the next turn of the drain, never eagerly."""
        if self._evicted:
            coro.close()
            raise EvictedError
        task = asyncio.Task(coro, loop=self, name=None if name is None else str(name), context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Errors that nobody awaits are the code's own affair: a task that failed is seen by whoever awaits it."""

    def get_debug(self) -> bool:
        """Never in debug mode: its checks cost more than the steps."""
        return False

    def set_debug(self, enabled: bool) -> None:
        """Ignored."""

    def is_running(self) -> bool:
        """True inside the code."""
        return asyncio._get_running_loop() is self

    def is_closed(self) -> bool:
        """Whether the run was put away."""
        return self._evicted

    def get_task_factory(self) -> None:
        """There is none."""

    def get_exception_handler(self) -> None:
        """There is none."""

    def _forbid(self, what: str) -> Never:
        if self._evicted:
            raise EvictedError
        error = ForeignAwaitError(
            f"workflow code used {what}, which a replay cannot repeat: put I/O, threads and processes into "
            "a function and await ctx.run(name, function, ...)"
        )
        self.foreign = self.foreign or error
        raise error


def _close(coroutine: Any) -> None:
    for _ in range(_MAX_CLOSE_ROUNDS):
        try:
            coroutine.close()
        except RuntimeError:  # it awaited again while it was told to end
            continue
        except BaseException:  # noqa: BLE001, S110  # user code's last words, while nothing of it counts any more
            pass
        return


def _forbidden(name: str) -> Callable[..., Never]:
    def method(self: DeterministicLoop, *_args: Any, **_kwargs: Any) -> Never:
        self._forbid(name)

    method.__name__ = name
    method.__doc__ = "Reaches outside: ForeignAwaitError."
    return method


_OUTSIDE = """
    add_reader add_signal_handler add_writer call_soon_threadsafe close connect_accepted_socket connect_read_pipe
    connect_write_pipe create_connection create_datagram_endpoint create_server create_unix_connection
    create_unix_server getaddrinfo getnameinfo remove_reader remove_signal_handler remove_writer run_forever
    run_in_executor run_until_complete sendfile set_default_executor set_exception_handler set_task_factory
    shutdown_asyncgens shutdown_default_executor sock_accept sock_connect sock_recv sock_recv_into sock_recvfrom
    sock_recvfrom_into sock_sendall sock_sendfile sock_sendto start_tls stop subprocess_exec subprocess_shell
"""
"""Methods of asyncio's loops that reach outside. asyncio's base class raises NotImplementedError, which tells nobody
what to do instead."""

for _name in _OUTSIDE.split():
    setattr(DeterministicLoop, _name, _forbidden(_name))
