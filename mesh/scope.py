"""Which request the running code is serving, if any.

A handler's task carries its scope, and so does everything it awaits or starts: calls made there
inherit its deadline (M-A7), and `mesh.current()` finds the connection that serves it (M-B2).
"""

from contextvars import ContextVar
from typing import Any, Protocol


class Scope(Protocol):
    """A request being served."""

    mesh: Any
    """The `mesh.Mesh` whose server got the request."""
    deadline: float | None
    """On the clock of `time.monotonic`, None without one."""

    def done(self) -> bool:
        """Whether it is over: what its handler left running in the background is not bound by it."""
        ...


serving: ContextVar[Scope | None] = ContextVar("mesh.serving", default=None)


def current() -> Any:
    """The `mesh.Mesh` that serves the running handler: `OtherStub(mesh.current().channel)`.

    Raises RuntimeError outside a handler.
    """
    scope = serving.get()
    if scope is None:
        raise RuntimeError("mesh.current() is the connection of a handler; no handler is running here")
    return scope.mesh


def inherited_deadline() -> float | None:
    """When the request that the running code serves must be done, on `time.monotonic`; else None."""
    scope = serving.get()
    return None if scope is None or scope.done() else scope.deadline
