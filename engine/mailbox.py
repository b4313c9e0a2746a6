"""The controls of a run as one pass of its code knows them, and how far they are delivered. Pure."""

from collections.abc import Collection

from engine.model import Ask, Control, Entry

INPUTS = frozenset({Ask.CANCEL, Ask.AWAKEABLE, Ask.SIGNAL})
"""Kinds that reach the code; what says how a run is held (a pause) is no input of it."""

LEVELS = frozenset({Ask.PAUSE, Ask.RESUME})
"""Kinds of which the last one counts, as long as it stands."""


class Mailbox:
    """Filled from complete reads, opened by inbox entries."""

    def __init__(self) -> None:
        self.deliveries = 0
        """How many inbox entries were fed: the number of the next one."""
        self.delivered_to = 0
        self._controls: dict[int, Control] = {}
        self._level = (0, "")
        self._is_cancelled = False

    def learn(self, controls: Collection[Control]) -> bool:
        """Take in what was read; whether there was something that is still to be delivered."""
        for control in controls:
            if control.kind in LEVELS:
                self._level = max(self._level, (control.sequence, control.kind))
            self._is_cancelled |= control.kind == Ask.CANCEL
        fresh = [c for c in controls if c.kind in INPUTS and c.sequence not in self._controls]
        self._controls.update((control.sequence, control) for control in fresh)
        return any(control.sequence > self.delivered_to for control in fresh)

    @property
    def is_paused(self) -> bool:
        """Whether nothing of the run may begin: the last word was a pause. A cancellation ends that."""
        return self._level[1] == Ask.PAUSE and not self._is_cancelled

    @property
    def newest(self) -> int:
        """The sequence of the newest control that is known."""
        return max(self._controls, default=0)

    @property
    def has_mail(self) -> bool:
        """Whether something is still to be delivered."""
        return self.newest > self.delivered_to

    def open(self, entry: Entry) -> list[Control]:
        """What an inbox entry delivers, in order; nothing where another one has delivered it."""
        self.deliveries = max(self.deliveries, entry.attempt + 1)
        found = sorted(s for s in self._controls if self.delivered_to < s <= entry.up_to)
        self.delivered_to = max(self.delivered_to, entry.up_to)
        return [self._controls[sequence] for sequence in found]
