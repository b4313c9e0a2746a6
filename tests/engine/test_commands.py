"""Commands: what is written is what is read, and whatever is read is harmless."""

from __future__ import annotations

import pytest

from engine import commands
from engine.names import Names, is_incarnation, new_incarnation
from mesh import headers

NAMES = Names("blue")


def test_a_start_is_read_as_it_was_written() -> None:
    block = commands.start_headers(NAMES, "x", "incarnation-1", "application/json", "key é\u2028/ü%")
    assert commands.read_command(b"in", block) == commands.Command(
        "incarnation-1", "start", b"in", "application/json", "key é\u2028/ü%"
    )


def test_a_wake_is_read_as_it_was_written() -> None:
    block = commands.wake_headers(NAMES, "x", "incarnation-1", 17, "message")
    assert commands.read_command(b"", block) == commands.Command("incarnation-1", "wake", min_seq=17)


def test_every_writer_expects_the_same_and_in_the_same_form() -> None:
    """H2: two forms side by side let two commands of one id through."""
    start = headers.parse(commands.start_headers(NAMES, "x", "incarnation-1", ""))
    wake = headers.parse(commands.wake_headers(NAMES, "x", "incarnation-1", 1, "message"))
    for found in (start, wake):
        assert found["Nats-Expected-Last-Subject-Sequence"] == "0"
        assert found["Nats-Expected-Last-Subject-Sequence-Subject"] == "wf.blue.cmd.*.*.x"
    assert start["Nats-Msg-Id"] == "incarnation-1"
    assert wake["Nats-Msg-Id"] == "message"


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"NATS/1.0\r\n\r\n",
        b"NATS/1.0\r\nMesh-Incarnation: a.b\r\nMesh-Kind: other\r\nMesh-Min-Seq: -1\r\n\r\n",
        b"NATS/1.0\r\nMesh-Incarnation: >\r\nMesh-Min-Seq: " + b"9" * 10_000 + b"\r\n\r\n",
        b"NATS/1.0\r\nMesh-Incarnation: \xff\xfe\r\nMesh-Partition-Key: %FF%\r\n\r\n",
        b"garbage",
    ],
)
def test_whatever_somebody_publishes_is_a_start_without_an_incarnation(block: bytes) -> None:
    command = commands.read_command(b"x", block)
    assert (command.incarnation, command.kind, command.min_seq) == ("", "start", 0)


def test_the_incarnation_that_a_bare_command_is_given_is_one() -> None:
    assert is_incarnation(commands.given_incarnation(7))
    assert commands.given_incarnation(7) == commands.given_incarnation(7) != commands.given_incarnation(8)
    assert is_incarnation(new_incarnation())
