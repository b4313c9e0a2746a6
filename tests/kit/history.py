"""What everybody saw during a run full of faults, and whether it can be true.

Observers write down what they see while it happens: handlers and workflow bodies in the ledger, RAW
the copies of journal entries and records. When calm has returned, `check` compares all of it with
what the store says, and lists every contradiction in words.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from time import monotonic

from nats.aio.msg import Msg

from engine.durable_pb2 import ExecutionState, JournalEntry
from protos.hello_pb2 import HelloRequest, HelloResponse
from tests.kit.ledger import Entry, Ledger
from tests.kit.raw import Raw

FINAL = frozenset({"completed", "failed", "cancelled"})
FAILED_ATTEMPT = frozenset({"timeout", "unavailable", "error"})
"""Marks of entries that close an attempt and decide nothing."""


@dataclass(slots=True)
class History:
    """What was seen on the wire: entries and records, in the order in which they were stored."""

    entries: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    statuses: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    answered: dict[tuple[str, int], float] = field(default_factory=dict)

    async def on_entry(self, message: Msg) -> None:
        """A journal entry after it was stored."""
        now = monotonic()
        self.entries[message.subject].append(digest(message.data))
        if (message.headers or {}).get("Mesh-Entry", "") not in FAILED_ATTEMPT:
            tokens = message.subject.split(".")
            self.answered.setdefault((tokens[6], int(tokens[8])), now)

    async def on_record(self, message: Msg) -> None:
        """A record after it was stored."""
        status = (message.headers or {}).get("Mesh-Status", "")
        self.statuses[message.subject.rpartition(".")[2]].append(status)


def digest(data: bytes) -> str:
    """Short enough to compare and to print."""
    return blake2b(data, digest_size=8).hexdigest()


@asynccontextmanager
async def observed(raw: Raw) -> AsyncIterator[History]:
    """Write down all entries and records that are stored while the block runs."""
    history = History()
    slots = await raw.client.subscribe("wf.default.j.s.>", cb=history.on_entry)
    records = await raw.client.subscribe("wf.default.done.>", cb=history.on_record)
    await raw.client.flush()
    try:
        yield history
    finally:
        await slots.unsubscribe()
        await records.unsubscribe()


@dataclass(frozen=True, slots=True)
class Expectation:
    """What holds in a round: how often a step may be executed, and whether after its record too."""

    executions: int
    steps: int


class Checker:
    """Compares what was seen with what is stored, for runs whose steps are calls to `HelloService`."""

    def __init__(self, history: History, ledger: Ledger, records: dict[str, ExecutionState]) -> None:
        self._history = history
        self._records = records
        self._begun = _by_label(ledger.entries(event="begin"))
        self._saw = _by_invocation(ledger.entries(event="saw"))

    def check(self, expected: Expectation) -> list[str]:
        """Every contradiction; an empty list if all that was seen can be true."""
        return [*self.check_executions(expected), *self._passes(expected)]

    def check_executions(self, expected: Expectation) -> list[str]:
        """The same, for runs whose code does not write down what it sees."""
        return [*self._one_value(), *self._one_end(), *self._executions(expected)]

    def _one_value(self) -> Iterator[str]:
        """A1: all observations of a slot are one, and equal to what the final record has."""
        for subject, observations in self._history.entries.items():
            if len(set(observations)) > 1:
                yield f"slot {subject} was seen with several values"
        for invocation, record in self._records.items():
            stored = {entry.step_number: digest(entry.response) for entry in record.journal}
            for entry in self._saw.get(invocation, ()):
                if stored.get(int(entry.step)) != entry.note:
                    yield f"{invocation} step {entry.step}: the code saw another value than is stored"

    def _one_end(self) -> Iterator[str]:
        """A5: nothing follows a final record."""
        for invocation, statuses in self._history.statuses.items():
            ends = [index for index, status in enumerate(statuses) if status in FINAL]
            if ends and ends[0] != len(statuses) - 1:
                yield f"{invocation} went on after its end: {statuses}"

    def _executions(self, expected: Expectation) -> Iterator[str]:
        """A3, A4: a step is executed at least once, seldom again with its own key, never after its record."""
        for invocation, record in self._records.items():
            labels = {HelloRequest.FromString(e.request).name: e.step_number for e in record.journal if _is_call(e)}
            if len(labels) != expected.steps:
                yield f"{invocation}: {len(labels)} calls in its journal instead of {expected.steps}"
            for label, step in labels.items():
                yield from self._execution(invocation, label, step, expected)

    def _execution(self, invocation: str, label: str, step: int, expected: Expectation) -> Iterator[str]:
        begun = self._begun.get((invocation, label), [])
        where = f"{invocation} step {step}"
        if not 1 <= len(begun) <= expected.executions:
            yield f"{where}: executed {len(begun)} times: {[(e.pid, e.run, round(e.at, 3)) for e in begun]}"
        if len({entry.key for entry in begun}) > 1:
            yield f"{where}: executed under several keys"
        stored = self._history.answered.get((invocation, step), float("inf"))
        yield from (
            f"{where}: executed {entry.at - stored:.3f} s after its record was seen"
            for entry in begun
            if entry.at > stored
        )

    def _passes(self, expected: Expectation) -> Iterator[str]:
        """A7: what each pass of the code saw is a beginning of what the longest one saw."""
        for invocation, entries in self._saw.items():
            passes = list(_passes(entries))
            longest = max(passes, key=len, default=[])
            if any(one != longest[: len(one)] for one in passes):
                yield f"{invocation}: its passes saw different things: {passes}"
            if invocation in self._records and len(longest) != expected.steps:
                yield f"{invocation}: no pass saw all {expected.steps} steps"


def _is_call(entry: JournalEntry) -> bool:
    return entry.step_type == "HelloService.SayHello"


def _by_label(entries: Iterable[Entry]) -> dict[tuple[str, str], list[Entry]]:
    """Executions by invocation and by the name that the service was given, which tells steps apart."""
    found: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        found[entry.invocation, entry.step].append(entry)
    return found


def _by_invocation(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        found[entry.invocation].append(entry)
    return found


def _passes(entries: list[Entry]) -> Iterator[list[tuple[str, str]]]:
    """What each pass saw: passes of one process follow one another, each from step 0."""
    by_process: dict[int, list[list[tuple[str, str]]]] = defaultdict(list)
    for entry in entries:
        passes = by_process[entry.pid]
        if entry.step == "0" or not passes:
            passes.append([])
        passes[-1].append((entry.step, entry.note))
    for passes in by_process.values():
        yield from passes


def value_digest(message: HelloResponse) -> str:
    """The digest of a reply as it is stored."""
    return digest(message.SerializeToString(deterministic=True))
