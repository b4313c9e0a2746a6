"""What a run needs of its processor: the seam between the two."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from engine.absence import Absences
from engine.clock import ServerClock
from engine.keepalive import Keepalive
from engine.model import Step
from engine.names import Names
from engine.records import Record
from engine.replay import Outcome
from engine.store import Store
from mesh.connection import Connection

if TYPE_CHECKING:
    from engine.run import Run
    from engine.watch import CallWatch


class Host(Protocol):
    """What a run needs of its processor."""

    connection: Connection
    store: Store
    names: Names
    keepalive: Keepalive
    clock: ServerClock
    absences: Absences
    watch: "CallWatch"
    owner: str
    suspend_after: float
    max_attempts: int
    draining: bool

    def may_act(self) -> bool:
        """Whether this processor may publish for its runs now; where not, all of them are contested by this call."""

    def run_body(self, step: Step) -> "asyncio.Future[Any]":
        """Start the function of a `ctx.run`."""

    async def lease(self) -> int:
        """Wait until this processor may publish; the number of the lease."""

    def is_lease(self, number: int) -> bool:
        """Whether that lease still holds: nobody else can have been given our commands since it began."""

    def spawn(self, coroutine: Coroutine[Any, Any, None], run: "Run") -> None:
        """Run a coroutine for a run; what it raises drops the run."""

    def claim(self, run: "Run") -> None:
        """Write the first record of a run that lasts."""

    def suspend(self, run: "Run") -> None:
        """Put a run away that waits for timers alone."""

    def pause(self, run: "Run") -> None:
        """Put a run away until somebody has it go on."""

    def hand_over(self, run: "Run") -> None:
        """Give a run to another processor."""

    def finish(self, run: "Run", outcome: Outcome) -> None:
        """Write the final record of a run whose code has ended."""

    def settle(self, run: "Run") -> None:
        """Find out what became of a final record that is not acknowledged."""

    def released(self, run: "Run") -> None:
        """The run is out of memory: its slot is free."""

    def finished(self, run: "Run", record: Record) -> None:
        """The final record is stored and the command acknowledged."""


@dataclass(slots=True)
class Final:
    """A final record on its way: as written, and when to ask what became of it."""

    record: Record
    data: bytes
    look_at: float
