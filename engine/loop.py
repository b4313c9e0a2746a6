"""A deterministic asyncio event loop for one run of a workflow. Pure: no thread, socket or clock.

The ready queue is drained to quiescence after every input, so the order of everything that happens inside depends on
the order of inputs and nothing else. Time stands still between inputs: `time()` is the server time of the newest one.
A timer is not fired by a clock but by an input. Whatever would reach outside (sockets, threads, processes, signals)
raises ForeignAwaitError and is remembered, so that a run fails loudly even where its code swallows the exception.

asyncio keeps tasks in sets, whose order is that of hashes, which are addresses: tasks here are hashed by their number,
and `asyncio.wait` and `asyncio.as_completed` take what they are given in the order given.
"""

import asyncio
import asyncio.tasks
import contextvars
import gc
import logging
import math
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from typing import Any, Never

from engine.errors import ForeignAwaitError

logger = logging.getLogger("engine.loop")

_swap_current_task: Callable[[Any, Any], Any] | None = getattr(asyncio.tasks, "_swap_current_task", None)
"""From 3.12 on. From 3.14 a thread has one current task, so that of the loop around us is put aside while we run."""

_MAX_CLOSE_ROUNDS = 100
"""How often a coroutine that awaits in its `finally` is told again to end."""
_MAX_REFUSALS = 1_000
"""How often code that is put away may try to go on; then it waits for ever. Else `while True: try: … except:` would
never give the thread back."""
_unending: list[Any] = []
"""Coroutines that cannot be told to end. They stay: the garbage collector would tell them again, and never return."""
FAR = 100 * 366 * 86_400.0
"""Seconds. A timer that is further away (`asyncio.sleep(math.inf)`) is due then: times are stored as 64 bits."""


class EvictedError(BaseException):
    """Raised where code that is being put away tries another step: its frames leave memory, nothing may happen."""


class Handle:
    """A callback in the ready queue, or a timer. Has what asyncio asks of its handles."""

    __slots__ = ("_args", "_callback", "_cancelled", "_context", "_when")

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context,
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


class _Task(asyncio.Task[Any]):
    """A task whose place in a set is the same in every replay."""

    __slots__ = ("_hash",)

    def __init__(self, number: int, coro: Coroutine[Any, Any, Any], **options: Any) -> None:
        self._hash = number  # first: asyncio puts the task into a set of its own while it is made
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._hash


class DeterministicLoop(asyncio.AbstractEventLoop):
    """The event loop that workflow code sees. `set_timer(handle)` is called for each timer the code arms.

    `seed` is the run's own number, the same in every replay: tasks are hashed from there on.
    """

    def __init__(self, set_timer: Callable[[Handle], None], seed: int = 0) -> None:
        self._ready: deque[Handle] = deque()
        self._set_timer = set_timer
        self._seed = seed
        self._task_count = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._now = 0.0
        self._open = False  # between an input and the end of the drain that it causes
        self._evicted = False
        self._refusals = 0
        self.foreign: ForeignAwaitError | None = None
        self.unhandled: BaseException | None = None

    # --- driving it

    def set_time(self, now: float) -> None:
        """An input has come: move the clock, which never goes back."""
        self._now = max(self._now, now)
        self._open = True

    def run_ready(self) -> None:
        """Run everything that can run, until nothing can. Not re-entrant."""
        if self._ready:
            self._inside(self._drain)
        self._open = False

    def _inside(self, function: Callable[[], None]) -> None:
        """Call it with this loop as the running one."""
        outer = asyncio._get_running_loop()
        outer_task = _swap_current_task(outer, None) if _swap_current_task is not None and outer is not None else None
        outer_hooks = sys.get_asyncgen_hooks()
        asyncio._set_running_loop(self)
        sys.set_asyncgen_hooks(None, self._finish_generator)
        try:
            function()
        finally:
            sys.set_asyncgen_hooks(*outer_hooks)
            asyncio._set_running_loop(outer)
            if outer_task is not None and _swap_current_task is not None:
                _swap_current_task(outer, outer_task)

    def _drain(self) -> None:
        ready = self._ready
        while ready:
            handle = ready.popleft()
            if not handle._cancelled:
                self._call(handle)

    def _call(self, handle: Handle) -> None:
        try:
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
        if self._tasks:
            self._inside(self._close_tasks)
            self._tasks.clear()
            self._ready.clear()

    def _close_tasks(self) -> None:
        for task in list(self._tasks):
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio's own switch for this
            coroutine = task.get_coro()
            if coroutine is not None:
                _close(coroutine)

    def _refuse(self) -> None:
        """Code that is being put away tries to go on."""
        self._refusals += 1
        if self._refusals <= _MAX_REFUSALS:
            raise EvictedError

    def _finish_generator(self, generator: AsyncGenerator[Any, Any]) -> None:
        """The code has dropped an async generator: its `finally` runs in a task, as asyncio does it.

        Only in a drain: when the garbage collector finds one elsewhere is no input.
        """
        if self._open and not self._evicted:
            self.create_task(generator.aclose())

    # --- what asyncio asks of a loop

    def time(self) -> float:
        """Server time of the newest input, in seconds since 1970."""
        return self._now

    def call_soon(  # type: ignore[override]  # asyncio only needs what our Handle has
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Handle:
        """Run a callback in this drain. Called from outside of it, it is somebody else's input: the run fails."""
        handle = Handle(callback, args, context if context is not None else contextvars.copy_context())
        if self._evicted:
            return handle
        if not self._open:
            self.foreign = self.foreign or _foreign("what another event loop or thread brings about")
            return handle
        if type(callback).__name__ == "TaskStepMethWrapper":
            self._look_for_another_loop(callback)
        self._ready.append(handle)
        return handle

    def _look_for_another_loop(self, callback: object) -> None:
        """asyncio throws a RuntimeError into a task that awaits another loop's future; here the callback holds it.

        Where an interpreter does not show it, only a run that lets it pass fails of it.
        """
        for held in gc.get_referents(callback):
            if isinstance(held, RuntimeError) and is_of_another_loop(held):
                self.foreign = self.foreign or _foreign(f"something of another event loop ({held})")

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Handle:
        """Run a callback when a durable timer of `delay` seconds fired."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Handle:
        """Run a callback when a durable timer due at `when` (this loop's time) fired."""
        if math.isnan(when):
            raise ValueError("a timer's delay must not be NaN")
        when = min(when, self._now + FAR)
        handle = Handle(callback, args, context if context is not None else contextvars.copy_context(), when)
        if self._evicted:
            self._refuse()
        elif when <= self._now:
            self._ready.append(handle)
        else:
            self._set_timer(handle)
        return handle

    def create_future(self) -> "asyncio.Future[Any]":
        """A future of this loop."""
        if self._evicted:
            self._refuse()
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
        if self._evicted:  # no error: `gather` would leave its other coroutines behind, with a warning for each
            coro.close()
        self._task_count += 1
        title = f"Task-{self._task_count}" if name is None else str(name)
        task = _Task(self._seed + self._task_count, coro, loop=self, name=title, context=context)
        if self._evicted:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            return task
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
        error = _foreign(what)
        self.foreign = self.foreign or error
        raise error


def _foreign(what: str) -> ForeignAwaitError:
    return ForeignAwaitError(
        f"workflow code used {what}, which a replay cannot repeat: put I/O, threads and processes into "
        "a function and await ctx.run(name, function, ...)"
    )


def is_of_another_loop(error: BaseException) -> bool:
    """Whether asyncio says by this exception that something awaited belongs to another event loop."""
    if isinstance(error, BaseExceptionGroup):
        return any(is_of_another_loop(inner) for inner in error.exceptions)
    text = str(error) if isinstance(error, RuntimeError | ValueError) else ""
    return "different loop" in text or "different event loop" in text


def _close(coroutine: Any) -> None:
    for _ in range(_MAX_CLOSE_ROUNDS):
        try:
            coroutine.close()
        except RuntimeError:  # it awaited again while it was told to end
            continue
        except BaseException:  # noqa: BLE001, S110  # user code's last words, while nothing of it counts any more
            pass
        return
    _unending.append(coroutine)
    logger.error("%r catches GeneratorExit and goes on: it cannot be put away and stays in memory", coroutine)


def _forbidden(name: str) -> Callable[..., Never]:
    def method(self: DeterministicLoop, *_args: Any, **_kwargs: Any) -> Never:
        self._forbid(name)

    method.__name__ = name
    method.__doc__ = "Reaches outside: ForeignAwaitError."
    return method


_OUTSIDE = """
    add_reader add_signal_handler add_writer call_soon_threadsafe close connect_accepted_socket connect_read_pipe
    connect_write_pipe create_connection create_datagram_endpoint create_server create_unix_connection
    create_unix_server default_exception_handler getaddrinfo getnameinfo remove_reader remove_signal_handler
    remove_writer run_forever run_in_executor run_until_complete sendfile set_default_executor set_exception_handler
    set_task_factory shutdown_asyncgens shutdown_default_executor sock_accept sock_connect sock_recv sock_recv_into
    sock_recvfrom sock_recvfrom_into sock_sendall sock_sendfile sock_sendto start_tls stop subprocess_exec
    subprocess_shell
"""
"""Methods of asyncio's loops that reach outside. asyncio's base class raises NotImplementedError, which tells nobody
what to do instead."""

for _name in _OUTSIDE.split():
    setattr(DeterministicLoop, _name, _forbidden(_name))


def _ordered(*items: Iterable[Any]) -> Any:
    """In place of `set` in asyncio.tasks: of workflow code's awaitables the order is kept in which they were given.

    `as_completed` makes tasks of coroutines in the order of such a set, which is that of their addresses: in a replay
    the steps would come in another order.
    """
    if items and isinstance(asyncio._get_running_loop(), DeterministicLoop):
        return dict.fromkeys(items[0])
    return set(*items)


asyncio.tasks.set = _ordered  # type: ignore[attr-defined]  # both `asyncio.as_completed` and a name imported from it
