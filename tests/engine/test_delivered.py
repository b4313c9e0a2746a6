"""A command as it is delivered: from its subject, headers and acknowledgement subject."""

from __future__ import annotations

import pytest

from engine import commands
from engine.delivered import DeliveredCommand
from engine.errors import InvalidNameError
from engine.names import Names
from engine.pull import read_delivery

NAMES = Names()
ACK = "$JS.ACK.COMMANDS.hello.3.42.17.1795521600000000001.5"
LONG = "$JS.ACK.hub.ACCHASH.COMMANDS.hello.3.42.17.1795521600000000001.5.random"
SUBJECT = NAMES.command("hello", "run-1", 4)


@pytest.mark.parametrize("ack", [ACK, LONG, LONG.removesuffix(".random")])
def test_both_forms_of_an_acknowledgement_subject(ack: str) -> None:
    found = read_delivery(ack, b"x", b"", SUBJECT)
    assert (found.sequence, found.count, found.time_ns, found.ack) == (42, 3, 1795521600000000001, ack)


def test_start_is_read_whole() -> None:
    block = commands.start_headers(NAMES, "run-1", "incarnation-1", "application/json", "key")
    found = DeliveredCommand.read(read_delivery(ACK, b'"World"', block, SUBJECT), NAMES)
    assert (found.invocation, found.workflow, found.partition) == ("run-1", "hello", 4)
    assert (found.incarnation, found.kind, found.partition_key) == ("incarnation-1", "start", "key")
    assert (found.input, found.input_type) == (b'"World"', "application/json")
    assert (found.sequence, found.count, found.ack) == (42, 3, ACK)


def test_wake_says_how_far_to_read() -> None:
    block = commands.wake_headers(NAMES, "run-1", "incarnation-1", 99, "m")
    found = DeliveredCommand.read(read_delivery(ACK, b"", block, SUBJECT), NAMES)
    assert (found.kind, found.min_seq) == ("wake", 99)


def test_command_published_by_hand_has_an_incarnation_that_all_deliveries_share() -> None:
    first, second = (
        DeliveredCommand.read(read_delivery(ack, b'"x"', b"", SUBJECT), NAMES)
        for ack in (ACK, ACK.replace(".3.", ".4."))
    )
    assert first.incarnation == second.incarnation != ""
    assert (first.input_type, first.kind) == ("application/json", "start")
    empty = DeliveredCommand.read(read_delivery(ACK, b"", b"", SUBJECT), NAMES)
    assert empty.input_type == ""


@pytest.mark.parametrize(
    "subject", ["wf.default.cmd.1.hello", "wf.default.cmd.x.hello.run-1", "wf.default.cmd.1.h.>", ""]
)
def test_subject_that_is_no_commands_is_refused(subject: str) -> None:
    with pytest.raises(InvalidNameError):
        DeliveredCommand.read(read_delivery(ACK, b"", b"", subject), NAMES)
