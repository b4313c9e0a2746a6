"""Ids, keys, streams and subjects: the only place that builds one. Pure.

Everything a user may choose is checked here before it becomes part of a subject (`surface` rule E-D12), so that an id
can never widen a subject, name another run's slot or grow past what a server takes.

    wf.<ns>.cmd.<partition>.<workflow>.<invocation>                             COMMANDS: starts and wakes
    wf.<ns>.j.w.<c>.<shard>.<invocation>.<incarnation>.<slot>                   JOURNAL, write-once
    wf.<ns>.j.s.<c>.<shard>.<invocation>.<incarnation>.<slot>                   the same, after it is stored
    wf.<ns>.ctl.<c>.<shard>.<workflow>.<invocation>.<incarnation>.<kind>.<id>   JOURNAL: controls
    wf.<ns>.timer.s.<invocation>.<incarnation>.<step>                           TIMERS: schedules; .f.: fired ones
    wf.<ns>.done.<invocation>                                                   a record, after it is stored
    wf.<ns>.here.<workflow>                                                     who serves a workflow

A slot is `<step>.<attempt>.<kind>-<digest>.<name>`; `in.<k>` is the slot that delivers controls.
"""

import re
import secrets
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, unquote

from engine.errors import InvalidNameError

PARTITIONS = 16
"""Partitions of COMMANDS; fixed, since an id's partition is part of its subject."""
MAX_KEY_CHARS = 256

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,128}")
_ISSUED = re.compile(r"[A-Za-z0-9_-]{1,256}")
_INCARNATION = re.compile(r"[A-Za-z0-9_-]{8,64}")
_AWAKEABLE = re.compile(r"aw(\d\d)(.+)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def check_token(what: str, value: object) -> str:
    """The value, if it may be an id or a name: 1 to 128 of `A-Z a-z 0-9 _ -`. Raises InvalidNameError."""
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise InvalidNameError(what, value, "1 to 128 characters of A-Z a-z 0-9 _ -")
    return value


def check_key(what: str, value: object) -> str:
    """The value, if it may be a partition or state key: 1 to 256 characters without control characters."""
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_KEY_CHARS or _CONTROL.search(value):
        raise InvalidNameError(what, value, f"1 to {MAX_KEY_CHARS} characters without control characters")
    return value


def is_incarnation(value: str) -> bool:
    """Whether this can be an incarnation: never trust a header to be one."""
    return _INCARNATION.fullmatch(value) is not None


def is_number(token: str) -> bool:
    """Whether a token is a number as we write them: ASCII digits, not too many."""
    return token.isascii() and token.isdigit() and len(token) <= 19


def new_incarnation() -> str:
    """144 random bits in 24 characters: ids are used again, slots must not be guessed."""
    return secrets.token_urlsafe(18)


def new_invocation_id() -> str:
    """An id nobody else has drawn: 120 random bits."""
    return secrets.token_hex(15)


@lru_cache(maxsize=4096)
def encode_name(name: str) -> str:
    """A step's name as one subject token of at most 120 characters. For people: the digest identifies."""
    token = quote(name[:120], safe="").replace(".", "%2E").replace("~", "%7E")
    return token[:120] or "-"


def decode_name(token: str) -> str:
    """The name that `encode_name` was given, as far as it was kept."""
    return unquote(token)


def awakeable_id(invocation: str, incarnation: str, step: int) -> str:
    """The id of an awakeable that we issue: it says itself whose it is, and has the incarnation's randomness."""
    return f"aw{len(incarnation):02d}{incarnation}{step}-{invocation}"


def parse_awakeable_id(value: object) -> tuple[str, str, int] | None:
    """(invocation, incarnation, step) of an id that we issued; None for one that a user has chosen.

    Raises InvalidNameError for what cannot be an id at all.
    """
    if not isinstance(value, str) or not _ISSUED.fullmatch(value):
        raise InvalidNameError("awakeable id", value, "1 to 256 characters of A-Z a-z 0-9 _ -")
    found = _AWAKEABLE.fullmatch(value)
    if found is None:
        return None
    length = int(found[1])
    incarnation, (step, dash, invocation) = found[2][:length], found[2][length:].partition("-")
    if not dash or not step.isdigit() or not is_incarnation(incarnation) or not _TOKEN.fullmatch(invocation):
        return None
    return invocation, incarnation, int(step)


class Slot(NamedTuple):
    """What a journal subject says: which attempt of which step of which run, and what it was asked for."""

    invocation: str
    incarnation: str
    step: int
    attempt: int
    kind: str
    digest: str
    name: str


class ControlSubject(NamedTuple):
    """What a control's subject says: which run it is for, what it asks, and under which request."""

    workflow: str
    invocation: str
    incarnation: str
    kind: str
    request: str


@dataclass(frozen=True, slots=True)
class Names:
    """All names of one namespace. `cluster` and `shards` were fixed when it was made (metadata of EXECUTION_STATE)."""

    namespace: str = "default"
    cluster: str = "local"
    shards: int = 4

    # --- streams, buckets, consumers

    def asset(self, name: str) -> str:
        """A stream's or bucket's name: plain in the default namespace."""
        return name if self.namespace == "default" else f"{name}-{self.namespace}"

    @property
    def commands(self) -> str:
        """The work queue of starts and wakes."""
        return self.asset("COMMANDS")

    @property
    def timers(self) -> str:
        """The stream of schedules and what fired."""
        return self.asset("TIMERS")

    @property
    def timers_consumer(self) -> str:
        """The durable consumer of fired timers, shared by all processors."""
        return "timers"

    @property
    def controls_consumer(self) -> str:
        """The durable consumer of a shard's controls, shared by all processors."""
        return "controls"

    @property
    def execution_bucket(self) -> str:
        """The bucket of records."""
        return self.asset("EXECUTION_STATE")

    @property
    def execution_stream(self) -> str:
        """The stream behind the bucket of records."""
        return f"KV_{self.execution_bucket}"

    @property
    def workflow_bucket(self) -> str:
        """The bucket of keyed workflows' state."""
        return self.asset("WORKFLOW_STATE")

    def journal(self, shard: int) -> str:
        """The stream of a shard: JOURNAL where there is one, else JOURNAL-0, …"""
        return self.asset("JOURNAL" if self.shards == 1 else f"JOURNAL-{shard}")

    def shard(self, invocation: str) -> int:
        """Which shard holds a run's journal."""
        return (zlib.crc32(invocation.encode()) >> 8) % self.shards

    # --- subjects

    @property
    def prefix(self) -> str:
        """Every subject of the namespace begins so."""
        return f"wf.{self.namespace}"

    def partition(self, key: str) -> int:
        """The partition of an id, or of a keyed workflow's key."""
        return zlib.crc32(key.encode()) % PARTITIONS

    def command(self, workflow: str, invocation: str, partition: int) -> str:
        """Where a start or a wake of a run is published."""
        return f"wf.{self.namespace}.cmd.{partition}.{workflow}.{invocation}"

    def commands_of(self, invocation: str) -> str:
        """All commands of an id, whatever partition and workflow: the one form of the uniqueness check."""
        return f"wf.{self.namespace}.cmd.*.*.{invocation}"

    def commands_for(self, workflow: str) -> str:
        """The filter of a workflow's consumer."""
        return f"wf.{self.namespace}.cmd.*.{workflow}.>"

    def parse_command(self, subject: str) -> tuple[int, str, str]:
        """(partition, workflow, invocation) of a command's subject. Raises InvalidNameError for anything else."""
        tokens = subject.split(".")
        if len(tokens) != 6 or tokens[2] != "cmd" or not is_number(tokens[3]):
            raise InvalidNameError("command subject", subject, "wf.<ns>.cmd.<partition>.<workflow>.<id>")
        return int(tokens[3]), check_token("workflow", tokens[4]), check_token("invocation id", tokens[5])

    def anchor(self, shard: int) -> str:
        """The one message of a shard that every read includes: so that it says up to where it is complete."""
        return f"wf.{self.namespace}.j.w.{self.cluster}.{shard}.anchor"

    def slots(self, invocation: str, incarnation: str) -> str:
        """The subject every slot of a run begins with, without the last dot."""
        return f"wf.{self.namespace}.j.w.{self.cluster}.{self.shard(invocation)}.{invocation}.{incarnation}"

    def slot_copies(self, invocation: str, incarnation: str) -> str:
        """One wildcard over a run's slots as sent and as stored: `w` or `s` in the fourth token."""
        return f"wf.{self.namespace}.j.*.{self.cluster}.{self.shard(invocation)}.{invocation}.{incarnation}.>"

    def controls(self, workflow: str, invocation: str, incarnation: str) -> str:
        """The subject every control of a run begins with, without the last dot."""
        shard = self.shard(invocation)
        return f"wf.{self.namespace}.ctl.{self.cluster}.{shard}.{workflow}.{invocation}.{incarnation}"

    def controls_in(self, shard: int) -> str:
        """All controls of a shard."""
        return f"wf.{self.namespace}.ctl.{self.cluster}.{shard}.>"

    def controls_for(self, workflow: str) -> str:
        """All controls of a workflow's runs, as they are sent."""
        return f"wf.{self.namespace}.ctl.{self.cluster}.*.{workflow}.>"

    def schedule(self, invocation: str, incarnation: str, step: int) -> str:
        """Where a timer's schedule lies until it fires."""
        return f"wf.{self.namespace}.timer.s.{invocation}.{incarnation}.{step}"

    def schedules(self, invocation: str, incarnation: str) -> str:
        """All schedules of a run."""
        return f"wf.{self.namespace}.timer.s.{invocation}.{incarnation}.>"

    def fired(self, invocation: str, incarnation: str, step: int) -> str:
        """Where the server stores a timer that fired."""
        return f"wf.{self.namespace}.timer.f.{invocation}.{incarnation}.{step}"

    @property
    def fired_timers(self) -> str:
        """The filter of the timers' consumer."""
        return f"wf.{self.namespace}.timer.f.>"

    def record(self, invocation: str) -> str:
        """The key of a run's record, as a subject."""
        return f"$KV.{self.execution_bucket}.{invocation}"

    def done(self, invocation: str) -> str:
        """Where every record of a run is seen after it is stored."""
        return f"wf.{self.namespace}.done.{invocation}"

    def here(self, workflow: str) -> str:
        """Where the processors of a workflow answer; no responders: nobody serves it."""
        return f"wf.{self.namespace}.here.{workflow}"

    # --- JetStream's own

    def get_message(self, stream: str) -> str:
        """Read one message from a stream's leader."""
        return f"$JS.API.STREAM.MSG.GET.{stream}"

    def direct_get(self, stream: str) -> str:
        """Read messages from any replica of a stream."""
        return f"$JS.API.DIRECT.GET.{stream}"


def slot_subject(slots: str, step: int, attempt: int, kind: str, digest: str, name: str) -> str:
    """One slot beneath `Names.slots`."""
    return f"{slots}.{step}.{attempt}.{kind}-{digest}.{name}"


def control_subject(controls: str, kind: str, request: str) -> str:
    """One control beneath `Names.controls`."""
    return f"{controls}.{kind}.{request}"


def parse_control(subject: str) -> ControlSubject | None:
    """What a control's subject says; None for anything else."""
    tokens = subject.split(".")
    if len(tokens) != 10 or tokens[2] != "ctl":
        return None
    return ControlSubject(*tokens[5:])


def inbox_subject(slots: str, number: int) -> str:
    """The slot beneath `Names.slots` that delivers controls for the `number`-th time."""
    return f"{slots}.in.{number}"


def parse_inbox(subject: str) -> int | None:
    """Which delivery of controls a journal subject is; None for anything else."""
    tokens = subject.split(".")
    if len(tokens) != 10 or tokens[2] != "j" or tokens[8] != "in" or not is_number(tokens[9]):
        return None
    return int(tokens[9])


def parse_slot(subject: str) -> Slot | None:
    """What a slot's subject says, as sent (`j.w`) or stored (`j.s`); None for anything else (the anchor)."""
    tokens = subject.split(".")
    if len(tokens) != 12 or tokens[2] != "j":
        return None
    kind, dash, digest = tokens[10].partition("-")
    if not dash or not is_number(tokens[8]) or not is_number(tokens[9]):
        return None
    return Slot(tokens[6], tokens[7], int(tokens[8]), int(tokens[9]), kind, digest, tokens[11])
