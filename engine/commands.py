"""Commands: the messages of COMMANDS, which start and wake runs. Pure.

The subject says workflow and invocation (`Names.command`), the body is the input, the headers say the rest. Every
publish expects that no command of the id is queued, in one form only: two forms side by side let two through
(measured on replicated streams).
"""

from dataclasses import dataclass
from urllib.parse import quote, unquote

from engine.names import Names, is_incarnation
from mesh import headers

INCARNATION = "Mesh-Incarnation"
INPUT_TYPE = "Mesh-Input-Type"
KIND = "Mesh-Kind"
MIN_SEQ = "Mesh-Min-Seq"
PARTITION_KEY = "Mesh-Partition-Key"
START, WAKE = "start", "wake"


@dataclass(frozen=True, slots=True)
class Command:
    """What a command says beside its subject."""

    incarnation: str
    """Empty where a foreign message has none that could be one: see `given_incarnation`."""
    kind: str = START
    input: bytes = b""
    input_type: str = ""
    partition_key: str = ""
    min_seq: int = 0
    """Of a wake: how far the first read of the journal has to reach."""


def start_headers(names: Names, invocation: str, incarnation: str, input_type: str, partition_key: str = "") -> bytes:
    """The header block of a start.

    `incarnation` is drawn once for each submission and kept over its retries; it is the message id as well, which
    nobody else can have taken (96 random bits or more).
    """
    key = f"{PARTITION_KEY}: {quote(partition_key, safe='')}\r\n" if partition_key else ""
    return (
        f"NATS/1.0\r\n{INCARNATION}: {incarnation}\r\n{INPUT_TYPE}: {input_type}\r\n{KIND}: {START}\r\n{key}"
        f"{_only_one(names, invocation, incarnation)}"
    ).encode()


def wake_headers(names: Names, invocation: str, incarnation: str, min_seq: int, message_id: str) -> bytes:
    """The header block of a wake; `message_id` is random for each wake and kept over its retries."""
    return (
        f"NATS/1.0\r\n{INCARNATION}: {incarnation}\r\n{KIND}: {WAKE}\r\n{MIN_SEQ}: {min_seq}\r\n"
        f"{_only_one(names, invocation, message_id)}"
    ).encode()


def _only_one(names: Names, invocation: str, message_id: str) -> str:
    return (
        f"Nats-Msg-Id: {message_id}\r\nNats-Expected-Last-Subject-Sequence: 0\r\n"
        f"Nats-Expected-Last-Subject-Sequence-Subject: {names.commands_of(invocation)}\r\n\r\n"
    )


def given_incarnation(sequence: int) -> str:
    """What a command without an incarnation (published by hand) is given: the same at every look at it."""
    return f"command-{sequence:08d}"


def read_command(data: bytes, block: bytes) -> Command:
    """A command from its message, whoever wrote it. Never raises."""
    found = headers.parse(block)
    incarnation = found.get(INCARNATION, "")
    min_seq = found.get(MIN_SEQ, "")
    return Command(
        incarnation=incarnation if is_incarnation(incarnation) else "",
        kind=WAKE if found.get(KIND) == WAKE else START,
        input=data,
        input_type=found.get(INPUT_TYPE, ""),
        partition_key=unquote(found.get(PARTITION_KEY, "")),
        min_seq=int(min_seq) if len(min_seq) < 20 and min_seq.isascii() and min_seq.isdigit() else 0,
    )
