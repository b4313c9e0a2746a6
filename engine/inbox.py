"""How controls reach a run that is in memory: noticed, read, and given their place by a slot that the owner writes.

A copy of a control as it was sent is a hint to look; what counts is a read of the shard, which is made after a hint,
at every complete read, and each third of `ack_wait`. Then the owner writes `in.<k>`, "all controls up to X", and does
nothing else until that is stored and fed.
"""

import asyncio
import logging
from typing import TYPE_CHECKING

from engine import journal, names
from engine.model import Control, Entry, Mark
from engine.replay import Replay
from engine.store import REFUSED, PubAck
from mesh.errors import NotConnectedError

if TYPE_CHECKING:
    from engine.run import Run

logger = logging.getLogger("engine.inbox")

HINT_LASTS = 3.0
"""Seconds for which a control that was seen on its way is looked for: it may never be stored."""
WRITE_AGAIN = 1.0
"""Seconds after which a delivery that was not seen stored is written again."""


class Inbox:
    """The controls of one run, as its owner handles them."""

    def __init__(self, run: "Run") -> None:
        self._run = run
        self._hints: dict[str, float] = {}
        self._look_at = self._time() + run.host.keepalive.ack_wait / 3
        self._writing: Entry | None = None
        self._write_at = 0.0
        self.is_used = False
        """Whether there ever was a control, as far as was read."""
        self.is_wanted = False
        """Whether the next read is to include controls and deliveries."""

    @property
    def is_busy(self) -> bool:
        """Whether something is under way: a delivery is written, or a control looked for."""
        return self._writing is not None or bool(self._hints)

    @property
    def is_writing(self) -> bool:
        """Whether the next input may be a delivery that we wrote."""
        return self._writing is not None

    def hint(self, subject: str) -> None:
        """A control was seen on its way to the store."""
        self._hints[subject] = self._time() + HINT_LASTS
        self._look()

    def read(self, replay: Replay, controls: list[Control]) -> bool:
        """A read brought these; whether something is to be delivered, or a pause begins or ends."""
        self.is_used |= bool(controls)
        for control in controls:
            self._hints.pop(control.subject, None)
        was_paused = replay.mailbox.is_paused
        has_mail = replay.mailbox.learn(controls)
        return has_mail or replay.mailbox.is_paused != was_paused

    def tick(self, now: float) -> None:
        """Look for what was hinted at, what came unnoticed, and what became of a delivery."""
        for subject, until in list(self._hints.items()):
            if now >= until:
                del self._hints[subject]
        if self._writing is not None and now >= self._write_at:
            self._write()
            self._look()
        elif self._hints or now >= self._look_at:
            self._look()

    def deliver(self, replay: Replay) -> bool:
        """See to it that what has come is delivered; whether everything else has to wait for that."""
        if not replay.mailbox.has_mail:
            self._writing = None
            return False
        number = replay.mailbox.deliveries
        if self._writing is None or self._writing.attempt != number:
            self._writing = Entry(0, 0, journal.NO_STEP, number, "", "", "", "", "", b"%d" % replay.mailbox.newest)
            self._write()
        return True

    def knows(self, replay: Replay, entry: Entry) -> bool:
        """Whether all is known that an inbox entry delivers: it may be another owner's."""
        return entry.up_to <= replay.mailbox.newest

    def _look(self) -> None:
        self._look_at = self._time() + self._run.host.keepalive.ack_wait / 3
        self.is_wanted = True
        self._run.want_read()

    def _write(self) -> None:
        self._write_at = self._time() + WRITE_AGAIN
        entry, run = self._writing, self._run
        if entry is None or run.is_still or not run.host.may_act():
            return
        subject = names.inbox_subject(run.slots, entry.attempt)
        try:
            run.host.store.put(subject, entry.data, journal.entry_headers(Mark.VALUE), self._written)
        except NotConnectedError:  # the reconnect contests this run, and it is written then
            return

    def _written(self, ack: PubAck) -> None:
        if self._run.dropped or ack.error is None:  # stored: its republished copy brings it, or the next look
            return
        if ack.error.err_code == REFUSED:  # another owner's, or our own: what stands there counts
            self._look()
        else:
            logger.warning("run %s: its controls are not delivered yet: %s", self._run.id, ack.error.description)

    @staticmethod
    def _time() -> float:
        return asyncio.get_running_loop().time()
