"""Names: what a user chooses never widens a subject, and what is written is read."""

from __future__ import annotations

import random

import pytest

from engine import names
from engine.errors import InvalidNameError
from engine.names import PARTITIONS, Names

NAMES = Names("blue", "eu", 4)
BAD = ["", " ", "a.b", "*", ">", "a b", "ä", "a\n", "x" * 129, "a/b", None, 5, b"a"]


@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_token_is_refused(bad: object) -> None:
    with pytest.raises(InvalidNameError):
        names.check_token("invocation id", bad)


@pytest.mark.parametrize("good", ["a", "A-b_9", "x" * 128])
def test_what_is_a_token_is_taken(good: str) -> None:
    assert names.check_token("invocation id", good) == good


@pytest.mark.parametrize("bad", ["", "a\x00", "a\n", "\x7f", "\x85", "x" * 257, None])
def test_what_is_no_key_is_refused(bad: object) -> None:
    with pytest.raises(InvalidNameError):
        names.check_key("partition key", bad)


@pytest.mark.parametrize("good", ["a", "über * > . /", "x" * 256])
def test_what_is_a_key_is_taken(good: str) -> None:
    assert names.check_key("partition key", good) == good


def test_drawn_ids_are_valid_and_differ() -> None:
    incarnations = {names.new_incarnation() for _ in range(100)}
    ids = {names.check_token("invocation id", names.new_invocation_id()) for _ in range(100)}
    assert (len(incarnations), len(ids)) == (100, 100)
    assert all(map(names.is_incarnation, incarnations))


@pytest.mark.parametrize("bad", ["", "short", "a.b.c.d.e", ">" * 10, "x" * 65, "abcdefgh\n"])
def test_header_that_cannot_be_an_incarnation_is_none(bad: str) -> None:
    assert not names.is_incarnation(bad)


@pytest.mark.parametrize("name", ["HelloService.SayHello", "charge card", "~.*>\r\n", "über", "", "1.5s", "%2E"])
def test_name_of_a_step_is_one_token_and_comes_back(name: str) -> None:
    token = names.encode_name(name)
    assert token
    assert not set(token) & set(". *>\r\n~")
    assert token.isascii()
    if name:
        assert names.decode_name(token) == name


def test_long_name_is_cut_to_a_token_that_can_still_be_read() -> None:
    for name in ("x" * 500, "é" * 500, "." * 500, "\U0001f600" * 500):
        token = names.encode_name(name)
        assert len(token) <= 120
        names.decode_name(token)


def test_slot_is_read_as_written() -> None:
    slots = NAMES.slots("run-1", "incarnation")
    subject = names.slot_subject(slots, 12, 3, "call", "00ff", names.encode_name("A.B"))
    for copy in (subject, subject.replace(".j.w.", ".j.s.")):
        assert names.parse_slot(copy) == ("run-1", "incarnation", 12, 3, "call", "00ff", "A%2EB")
    assert subject.startswith(f"wf.blue.j.w.eu.{NAMES.shard('run-1')}.run-1.incarnation.")


@pytest.mark.parametrize(
    "subject",
    [
        NAMES.anchor(0),
        "",
        "a.b",
        "wf.blue.x.w.eu.0.run.inc.1.1.call-0.n",
        "wf.blue.j.w.eu.0.run.inc.x.1.call-0.n",
        "wf.blue.j.w.eu.0.run.inc.1.-1.call-0.n",
        "wf.blue.j.w.eu.0.run.inc.\u00b2.1.call-0.n",
        "wf.blue.j.w.eu.0.run.inc.1.1.call.n",
        "wf.blue.j.w.eu.0.run.inc.1.1.call-0.n.more",
    ],
)
def test_what_is_no_slot_is_none(subject: str) -> None:
    assert names.parse_slot(subject) is None


def test_command_is_read_as_written() -> None:
    subject = NAMES.command("hello", "run-1", 15)
    assert NAMES.parse_command(subject) == (15, "hello", "run-1")
    for bad in ("", "wf.blue.cmd.x.hello.run-1", "wf.blue.cmd.1.hello", f"{subject}.more", "wf.blue.cmd.1.hello.r*"):
        with pytest.raises(InvalidNameError):
            NAMES.parse_command(bad)


def test_ids_are_spread_over_partitions_and_shards_independently() -> None:
    """A constant place would put every run of one partition into one shard."""
    draw = random.Random(1)
    places = {(NAMES.partition(i), NAMES.shard(i)) for i in (f"{draw.getrandbits(60):x}" for _ in range(2000))}
    assert places == {(partition, shard) for partition in range(PARTITIONS) for shard in range(4)}


def test_places_never_change() -> None:
    """They are part of stored subjects."""
    assert (NAMES.partition("order-1"), NAMES.shard("order-1")) == (15, 3)


def test_default_namespace_has_plain_names_and_others_bear_theirs() -> None:
    plain, blue = Names(), NAMES
    assert (plain.commands, plain.execution_stream, plain.timers) == ("COMMANDS", "KV_EXECUTION_STATE", "TIMERS")
    assert (blue.commands, blue.execution_stream) == ("COMMANDS-blue", "KV_EXECUTION_STATE-blue")
    assert (plain.journal(2), Names(shards=1).journal(0), blue.journal(2)) == ("JOURNAL-2", "JOURNAL", "JOURNAL-2-blue")
