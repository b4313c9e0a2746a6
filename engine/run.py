"""A run: one processor's holding of an invocation, from its command to the final record.

The replay (`engine.replay`) says what the code wants, `engine.effects` does it, and this room feeds back what is
stored. Everything between two waits is plain callbacks on the event loop; what needs a claim or a decision about
another owner is a coroutine of `engine.takeup` or `engine.ownership`, one at a time.

Feeding (H10): an entry is fed from its republished copy only if it fills the only slot that anybody can fill and the
run is uncontested; otherwise from a read that says up to where it is complete, lowest sequence first.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

from engine import journal
from engine.clock import NANOS
from engine.definition import Workflow
from engine.delivered import DeliveredCommand
from engine.effects import Effects
from engine.host import Final, Host
from engine.inbox import Inbox
from engine.model import Entry, Failure, Invocation, Kind, Step
from engine.records import Record
from engine.replay import Outcome, Replay, describe_exception
from engine.store import Read, Reading
from mesh.errors import NotConnectedError

logger = logging.getLogger("engine.run")

CLAIM_AFTER = 0.7
"""Seconds a run may go on without a record; a user sees `running` after a second at the latest (E-A4)."""
READ_TIMEOUT = 1.0
"""Seconds after which a read whose answer was lost is made again."""
FINAL_TIMEOUT = 5.0
"""Seconds between two questions for what became of the final record."""
DESCRIBE_AFTER = 5.0
"""Seconds between two writes of a record that say why a run waits, where that has changed."""
LAGGING_PAUSE = 0.05
"""Seconds until a replica that lags behind what we know to be stored is asked again."""
SUSPENDED_KINDS = frozenset({Kind.SLEEP, Kind.AWAKEABLE})
"""A run that waits for nothing else leaves memory: all of these come by way of the store (protocol rule 8)."""
AHEAD = 16
"""Steps beyond the present one that a contested run looks at: another owner may have come so far."""


class Run:
    """See the module. `held`: nothing is fed or done until a claim or a read under way has ended."""

    def __init__(self, host: Host, command: DeliveredCommand, workflow: Workflow[Any, Any]) -> None:
        self.host = host
        self.command = command
        self.workflow = workflow
        self.id = command.invocation
        self.incarnation = command.incarnation
        self.shard = host.names.shard(self.id)
        self.slots = host.names.slots(self.id, self.incarnation)
        self.controls = host.names.controls(workflow.name, self.id, self.incarnation)
        self.record: Record | None = None
        self.revision = 0
        self.number = 1
        self.attempts = 1
        self.contested = False
        self.dropped = False
        self.invocation: Invocation | None = None
        self.replay: Replay | None = None
        self.pausing = False
        self.effects = Effects(self)
        self.inbox = Inbox(self)
        self.todo: list[Step] = []
        self.began = asyncio.get_running_loop().time()
        self.idle_since = self.began
        self.described_at = self.began
        self.timers_scheduled = False
        self._copy_mark = len(host.names.prefix) + 3
        self._sid = host.connection.subscribe(host.names.slot_copies(self.id, self.incarnation), self._on_slot)
        self.final: Final | None = None
        self.reclaiming = False
        self.ending = False
        self._operating = False
        self._lock: asyncio.Lock | None = None
        self._reading: Reading | None = None
        self._read_wanted = 0
        self._complete_to = 0
        self.known_seq = command.min_seq  # to here it has seen what is stored: no read that ends before it counts
        self.scheduled_below = 0  # timers of steps below are in TIMERS since the run was suspended

    @property
    def has_controls(self) -> bool:
        """Whether somebody ever asked anything of it, as far as was read."""
        return self.inbox.is_used

    @property
    def roots(self) -> tuple[str, str]:
        """All that is stored for it in its shard lies beneath these."""
        return self.slots, self.controls

    @property
    def held(self) -> bool:
        """Whether nothing may be fed or done: not taken up yet, contested, being recorded, or ended."""
        return self._operating or self.reclaiming or self.ending or self.invocation is None

    @property
    def is_still(self) -> bool:
        """Whether nothing may be done for it: held, or not ours."""
        return self.dropped or self.held

    @property
    def is_recorded(self) -> bool:
        """Whether the record says, or is about to say, that it is ours."""
        return self._operating or self.record is not None

    @contextlib.asynccontextmanager
    async def operation(self) -> AsyncIterator[None]:
        """One coroutine at a time reads or writes the run's record; nothing is fed or done meanwhile."""
        if self._lock is None:
            self._lock = asyncio.Lock()
        async with self._lock:
            self._operating = True
            try:
                yield
            finally:
                self._operating = False

    # --- beginning

    def launch(self, invocation: Invocation, read: Read, timers_scheduled: bool = False) -> None:
        """Run the code over what its journal has, then go on live."""
        self.invocation = invocation
        self.timers_scheduled = timers_scheduled
        self.replay_from(read)

    def replay_from(self, read: Read) -> None:
        """Build the frames anew from a complete read."""
        assert self.invocation is not None
        self._complete_to = max(self._complete_to, read.up_to)
        self.known_seq = max(self.known_seq, read.up_to)
        if self.replay is not None:
            self.replay.put_away()
        ordered = sorted(read.entries, key=lambda entry: entry.sequence)
        seen = self.record.seen_seq if self.record is not None else 0
        replay = self.replay = Replay(self.invocation, self.workflow, self.attempts, self.host.names)
        replay.is_replaying = bool(ordered) or seen > 0
        self.inbox.read(replay, read.controls)
        self.todo = []
        with self._running_code():
            replay.start()
            for entry in ordered:
                if entry.sequence > seen and replay.is_replaying:
                    replay.is_replaying = False
                    self.scheduled_below = len(replay.steps) if seen else 0
                replay.feed(entry)
            if replay.is_replaying and seen:  # nothing has come since it was suspended
                self.scheduled_below = len(replay.steps)
            replay.is_replaying = False
        self.advance()

    @contextlib.contextmanager
    def _running_code(self) -> Iterator[None]:
        """Around everything that runs workflow code. A fault of ours in it lets the run go: it comes again."""
        self.host.keepalive.enter(self.id)
        try:
            yield
        except Exception:  # the callers are callbacks of the read loop, which would only count it
            logger.exception("run %s: it is let go and comes again", self.id)
            self.drop("an error of the engine")
        finally:
            self.host.keepalive.leave()

    # --- inputs

    def _on_slot(self, subject: str, _reply: str, data: bytes, block: bytes) -> None:
        if self.dropped:
            return
        if subject[self._copy_mark] == "w":
            self.effects.on_direct_copy(subject, data, block)
            return
        entry = journal.read_entry(subject, data, block)
        if entry is None:
            return
        self.host.clock.observe(entry.time_ns)
        replay = self.replay
        if self.held or self.contested or self._reading is not None or replay is None:
            self.want_read(entry.sequence)
        elif self._fills_only_slot(replay, entry):
            self._feed([entry])
        else:
            self.inbox.is_wanted |= entry.kind == Kind.INBOX
            self.want_read(entry.sequence)

    def _fills_only_slot(self, replay: Replay, entry: Entry) -> bool:
        """Whether nobody can have filled another slot that the code waits for."""
        if entry.kind == Kind.INBOX:
            knows = self.inbox.knows(replay, entry)
        else:
            knows = not self.inbox.is_writing
        return knows and self.effects.fills_only_slot(replay, entry.step)

    def hint(self, subject: str) -> None:
        """Somebody asks something of this run: it may be stored by now."""
        self.inbox.hint(subject)

    def want_read(self, sequence: int = 0) -> None:
        """Feed everything that is stored, at least up to this sequence."""
        self._read_wanted = max(self._read_wanted, sequence)
        self.known_seq = max(self.known_seq, sequence)
        if self._reading is not None or self.held or self.dropped:
            return
        try:
            self._reading = self.host.store.fetch_journal(self.shard, self._filters(), self._on_read)
        except NotConnectedError:
            return
        asyncio.get_running_loop().call_later(READ_TIMEOUT, self._read_lost, self._reading)

    def _filters(self) -> list[str]:
        """What to read: the slots the code waits for; of a contested run also what another owner may have reached."""
        replay = self.replay
        everything = [f"{root}.>" for root in self.roots]
        if replay is None:
            return everything
        numbers = [step.number for step in replay.open_steps() if step.kind != Kind.AWAKEABLE]
        if self.contested:
            numbers += range(len(replay.steps), len(replay.steps) + AHEAD)
        filters = [f"{self.slots}.{number}.>" for number in numbers]
        if self.contested or self.inbox.is_wanted or self.inbox.is_writing:
            self.inbox.is_wanted = False
            filters += [f"{self.slots}.in.>", f"{self.controls}.>"]
        return filters

    def _read_lost(self, reading: Reading) -> None:
        if self._reading is reading and not self.dropped:
            self._end_reading()
            self.want_read()

    def _end_reading(self) -> None:
        if self._reading is not None:
            self._reading.forget()
            self._reading = None

    def _on_read(self, read: Read | None) -> None:
        self._reading = None
        if self.dropped or self.held:
            return
        if read is None:  # too much for one answer
            self.host.spawn(self.read_patiently(), self)
        else:
            self.absorb(read)

    def absorb(self, read: Read) -> None:
        """Feed what a read brought; read again where it did not reach what is known to be stored."""
        replay = self.replay
        if replay is None:
            if read.up_to >= self.known_seq:
                self.replay_from(read)
            else:  # off a replica that lags behind what the code has seen
                asyncio.get_running_loop().call_later(LAGGING_PAUSE, self.want_read)
            return
        fed = replay.fed_sequence
        fresh = [entry for entry in read.entries if replay.is_unfed(entry)]
        if any(entry.sequence <= fed for entry in fresh):  # another owner's entries came in between:
            self.contested = True  # only a replay has the right order
            self.host.spawn(self.read_patiently(), self)
            return
        self._complete_to = max(self._complete_to, read.up_to)
        has_mail = self.inbox.read(replay, read.controls)
        self._feed(fresh)
        if has_mail and not fresh:
            self.advance()
        if not self.dropped and self._read_wanted > self._complete_to:
            asyncio.get_running_loop().call_later(0.0 if fresh else LAGGING_PAUSE, self.want_read)

    async def read_patiently(self) -> None:
        """Replay from a complete read, however long it takes."""
        async with self.operation():
            if self.dropped or self.final is not None:
                return
            read = await self.host.store.read_journal(self.shard, self.roots, self.known_seq)
        if not self.is_still:
            self.replay_from(read)

    def _feed(self, entries: list[Entry]) -> None:
        replay = self.replay
        if replay is None or not entries:
            return
        ordered = sorted(entries, key=lambda entry: entry.sequence)
        self.known_seq = max(self.known_seq, ordered[-1].sequence)
        with self._running_code():
            for entry in ordered:
                replay.feed(entry)
        self.advance()

    # --- outputs

    def advance(self) -> None:
        """Do what the code wants after it was fed."""
        try:
            self._advance()
        except Exception:  # the callers are callbacks of the read loop, which would only count it
            logger.exception("run %s: it is let go and comes again", self.id)
            self.drop("an error of the engine")

    def _advance(self) -> None:
        replay = self.replay
        if replay is None or self.held or self.dropped:
            return
        self.effects.settle(replay)
        if replay.outcome is not None:
            self.finish(replay.outcome)
            return
        self.todo += replay.take_effects()
        if replay.mailbox.is_paused:
            self._pause()
            return
        self._end_pause(replay)
        if self.inbox.deliver(replay):
            return
        if self.host.draining and not self.effects.is_busy():
            self.host.hand_over(self)
            return
        self._do_todo()
        self.idle_since = self._time()
        if self._read_wanted > max(replay.fed_sequence, self._complete_to):
            self.want_read()  # something came while nothing could be fed
        elif self.host.suspend_after == 0:
            self._rest()

    def _pause(self) -> None:
        """Nothing is begun any more; when nothing is executed here, the run leaves memory."""
        if not self.pausing:
            self.pausing = True
            self.effects.forget_requests()
        if not self.effects.is_here() and self._reading is None:
            self.host.pause(self)

    def _end_pause(self, replay: Replay) -> None:
        if self.pausing:
            self.pausing = False
            self.todo = replay.open_steps()

    def _do_todo(self) -> None:
        # Timers in order of due time: of two that are overdue the earlier one fires first, whenever we come to them.
        todo, self.todo = sorted(self.todo, key=lambda step: (step.due_ns, step.number)), []
        for index, step in enumerate(todo):
            if self.held or self.dropped:
                self.todo += todo[index:]
                return
            if step.is_open and step.number not in self.effects.flights:
                try:
                    self.effects.perform(step)
                except Exception as error:  # what the code gave the step cannot be done: that is the run's failure
                    logger.exception("run %s: step %d (%s) cannot be begun", self.id, step.number, step.title)
                    self.fail(describe_exception(error))
                    return

    # --- looking after it

    def tick(self, now: float) -> None:
        """Called a few times a second: claims, repairs, suspends."""
        if self.dropped:
            return
        if self.final is not None:
            if now >= self.final.look_at and not self._operating:
                self.final.look_at = now + FINAL_TIMEOUT
                self.host.settle(self)
        elif not self.held:
            self._tick_live(now)

    def _tick_live(self, now: float) -> None:
        if self.host.draining and not self.effects.is_busy():
            self.host.hand_over(self)
            return
        if self.record is None and now - self.began > CLAIM_AFTER:
            self.described_at = now
            self.host.claim(self)
            return
        if self.record is not None and now - self.described_at > DESCRIBE_AFTER:
            self.described_at = now
            if self.effects.reasons() != {wait.step: wait.reason for wait in self.record.waiting_on if wait.reason}:
                self.host.claim(self)
                return
        self.effects.look(now)
        self.inbox.tick(now)
        if self.pausing:
            self.advance()
            return
        if self.replay is not None and now - self.idle_since >= self.host.suspend_after:
            self._rest()

    def _rest(self) -> None:
        """Leave memory where the code only waits: wholly (timers), or with its frames only (`--suspend-after 0`)."""
        replay = self.replay
        if replay is None or self.held or self._reading is not None or replay.outcome is not None:
            return
        if self.effects.is_here() or self.inbox.is_busy or replay.mailbox.has_mail:
            return
        open_steps = replay.open_steps()
        if all(step.kind in SUSPENDED_KINDS for step in open_steps):
            due = min((step.due_ns for step in open_steps if step.due_ns), default=None)
            if self.host.suspend_after == 0 or due is None or due - self.host.clock.now_ns() > NANOS:
                self.host.suspend(self)
        elif self.host.suspend_after == 0:
            replay.put_away()
            self.replay = None

    # --- what operations on the record need (engine.ownership, engine.takeup)

    def contest(self) -> bool:
        """Ownership is in doubt: be still until it is claimed again. Whether the caller has to see to that."""
        if self.dropped or self.reclaiming:
            return False
        self.contested = True
        if self.final is not None:  # the final write's own outcome tells whose run it is
            return False
        self.reclaiming = True
        return True

    def relaunch(self, read: Read) -> None:
        """Go on after a claim that followed silence: replay, then send and store again what is not recorded."""
        self.reclaiming = False
        self.effects.forget_requests()
        self._end_reading()
        self.replay_from(read)
        self.effects.wake()

    def resume(self) -> None:
        """Go on after an operation: what came meanwhile is read, what was put off is done."""
        replay = self.replay
        if self.dropped or self.held:
            return
        if self.pausing:
            self.advance()
        elif replay is None or not self.inbox.deliver(replay):
            self._do_todo()
        self.effects.wake()
        self.want_read()

    def finish(self, outcome: Outcome) -> None:
        """The code has ended: everything under way is dropped, the final record written."""
        if self.ending:
            return
        self.ending = True
        self.effects.cancel()
        self.host.finish(self, outcome)

    def fail(self, failure: Failure) -> None:
        """End the run because of something that has no place in its journal."""
        if self.replay is not None:
            self.replay.outcome = Outcome(failure=failure)
        self.finish(Outcome(failure=failure))

    def drop(self, reason: str) -> None:
        """Fall silent: it is somebody else's. No ack, nak or in-progress ack for it any more (H8)."""
        if not self.dropped:
            logger.info("run %s dropped: %s", self.id, reason)
            self.let_go(acknowledge=False)

    def let_go(self, *, acknowledge: bool) -> None:
        """Leave memory. `acknowledge` only after the write that made the command needless, or on a monotone fact."""
        if self.dropped:
            return
        self.dropped = True
        self._end_reading()
        host = self.host
        host.keepalive.release(self.command.ack)
        if acknowledge:
            try:
                host.store.acknowledge(self.command.ack)
            except NotConnectedError:  # it is delivered again, and found final or suspended
                logger.info("run %s: its command could not be acknowledged, and will come again", self.id)
        host.connection.unsubscribe(self._sid)
        self.effects.cancel()
        self.effects.flights.clear()
        if self.replay is not None:
            self.replay.put_away()
            self.replay = None
        host.released(self)

    def _time(self) -> float:
        return asyncio.get_running_loop().time()
