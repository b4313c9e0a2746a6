"""The protocol of streams alone: two sessions and a wire between them that loses, copies, cuts and forges."""

from __future__ import annotations

import random
from collections import deque

import pytest

from mesh import streams
from mesh.streams import HEAD, WINDOW_BYTES, WINDOW_MESSAGES, Event, Fault, Frame, Session

LIMIT = 4 << 20
SIZES = (0, 1, 3, 4, 5, 100, 1000, 65_530, 65_536, 200_000, WINDOW_BYTES, 3_000_000)


class Pair:
    """A caller and an instance; frames travel when the test says so."""

    def __init__(self, frame_bytes: int = streams.FRAME_BYTES, limit: int = LIMIT, window: int = WINDOW_BYTES) -> None:
        self.caller = Session(max_receive_bytes=limit, frame_bytes=frame_bytes, window=window)
        self.instance = Session(7, max_receive_bytes=limit, frame_bytes=frame_bytes, window=window, peer_window=window)
        self.to_caller: deque[Frame] = deque()
        self.to_instance: deque[Frame] = deque()

    def accept(self) -> Pair:
        self.instance.receive_opening(self.caller.opening(1 << 20))
        self.instance.accept(1000, "t0")
        assert self.carry() & Event.ACCEPTED
        return self

    def collect(self) -> None:
        self.to_instance += self.caller.take_output()
        self.to_caller += self.instance.take_output()

    def carry(self) -> Event:
        """All frames there are, both ways, until none is left."""
        seen = Event.NONE
        while True:
            self.collect()
            if not self.to_caller and not self.to_instance:
                return seen
            while self.to_instance:
                seen |= self.instance.receive(*self.to_instance.popleft())
            while self.to_caller:
                seen |= self.caller.receive(*self.to_caller.popleft())


def message(number: int, size: int) -> bytes:
    return (number % 251).to_bytes(1, "big") * size


@pytest.mark.parametrize("frame_bytes", [HEAD.size + 1, 64, 1000, 65_536])
def test_messages_of_any_size_arrive_whole_in_order(frame_bytes: int) -> None:
    sizes = [size for size in SIZES if size < 2000 * frame_bytes]
    pair = Pair(frame_bytes).accept()
    for number, size in enumerate(sizes):
        assert pair.caller.can_write(size)
        pair.caller.write(message(number, size))
        pair.carry()
        assert [pair.instance.read()] == [message(number, size)]
        pair.instance.want()  # its own window is empty; a WANT without need does no harm
        pair.carry()
        if not pair.caller.can_write(WINDOW_BYTES):
            pair.caller.want()
            pair.carry()
    pair.caller.half_close()
    pair.carry()
    assert pair.instance.peer_closed
    assert pair.instance.fault is None
    assert pair.caller.fault is None


@pytest.mark.parametrize("seed", range(12))
def test_random_talk_arrives_exactly_and_never_stalls(seed: int) -> None:
    """Both sides write as far as they may and read when they like; nobody is ever further ahead than the window."""
    dice = random.Random(seed)
    pair = Pair(dice.choice([100, 5000, 65_536]), window=dice.choice([16_384, 65_536, WINDOW_BYTES])).accept()
    ends = {"caller": pair.caller, "instance": pair.instance}
    plans = {name: deque(message(n, dice.choice(SIZES[:9])) for n in range(300)) for name in ends}
    sent: dict[str, list[bytes]] = {"caller": [], "instance": []}
    got: dict[str, list[bytes]] = {"caller": [], "instance": []}
    other = {"caller": "instance", "instance": "caller"}
    for _ in range(100_000):
        name = dice.choice(["caller", "instance"])
        session, plan = ends[name], plans[name]
        if dice.random() < 0.1:
            session.window = dice.choice([16_384, 65_536, WINDOW_BYTES])
        if dice.random() < 0.6 and plan:
            if session.is_stuck:
                session.want()
            elif session.can_write(len(plan[0])):
                session.write(plan[0])
                sent[name].append(plan.popleft())
            else:
                session.want()
        elif session.received:
            got[name].append(session.read())
        ahead = sum(map(len, sent[name])) - sum(map(len, got[other[name]]))
        assert ahead <= WINDOW_BYTES
        if dice.random() < 0.2:
            assert not pair.carry() & Event.BROKEN
        if not any(plans.values()) and len(got["caller"]) == len(got["instance"]) == 300:
            break
    else:
        pytest.fail("it stalled")
    assert sent["caller"] == got["instance"]
    assert sent["instance"] == got["caller"]
    pair.instance.end(b"status")
    assert pair.carry() & Event.ENDED
    assert pair.caller.end_block == b"status"


def test_a_writer_is_a_window_ahead_and_no_more() -> None:
    pair = Pair().accept()
    written = 0
    while pair.caller.can_write(100):
        pair.caller.write(bytes(100))
        written += 1
        pair.carry()
    assert written == WINDOW_MESSAGES
    pair.instance.read()
    pair.caller.want()
    pair.carry()
    assert pair.caller.can_write(100)

    pair = Pair().accept()
    pair.caller.write(bytes(1000))
    assert not pair.caller.can_write(WINDOW_BYTES)
    pair.carry()
    pair.instance.read()
    pair.caller.want()
    pair.carry()
    assert pair.caller.can_write(3 * WINDOW_BYTES), "one message is always allowed"


@pytest.mark.parametrize("window", [16_384, 65_536, WINDOW_BYTES])
def test_a_message_larger_than_the_window_leaves_as_its_reader_takes_it(window: int) -> None:
    pair = Pair(window=window).accept()
    large = message(3, 3_000_000)
    pair.caller.write(large)
    pair.caller.half_close()
    pair.collect()
    assert sum(len(payload) - HEAD.size for payload, _ in pair.to_instance) == window
    pair.carry()
    assert (pair.instance.read(), pair.instance.peer_closed) == (large, True)


def test_an_end_within_a_message_gives_its_status_and_not_the_message() -> None:
    pair = Pair(window=16_384).accept()
    pair.instance.write(b"whole")
    pair.carry()
    pair.caller.read()
    pair.instance.write(message(1, 100_000))
    pair.instance.end(b"status")
    assert pair.carry() & Event.ENDED
    assert (list(pair.caller.received), pair.caller.end_block, pair.caller.fault) == ([], b"status", None)


def test_grants_are_few() -> None:
    pair = Pair().accept()
    frames = 0
    for _ in range(4096):
        pair.caller.write(b"x")
        pair.to_instance += pair.caller.take_output()
        pair.instance.receive(*pair.to_instance.popleft())
        pair.instance.read()
        for frame in pair.instance.take_output():
            frames += 1
            pair.caller.receive(*frame)
    assert frames == 4096 // streams.GRANT_MESSAGES


@pytest.mark.parametrize("seed", range(30))
def test_a_lost_frame_is_noticed_and_a_copied_one_is_ignored(seed: int) -> None:
    dice = random.Random(seed)
    pair = Pair(200).accept()
    sent = [message(n, dice.randrange(500)) for n in range(30)]
    for item in sent:
        pair.instance.write(item)
        pair.collect()
    pair.instance.end(b"")
    pair.collect()
    frames = list(pair.to_caller)
    lost = dice.randrange(len(frames) - 1)
    copied = dice.randrange(len(frames) - 1)
    whole = [*frames[: copied + 1], *frames[max(0, copied - 3) :]]
    events = Event.NONE
    for frame in whole:
        events |= pair.caller.receive(*frame)
    assert list(pair.caller.received) == sent
    assert events & Event.ENDED
    assert not events & Event.BROKEN

    cut = Pair(200).accept()
    events = Event.NONE
    for frame in [*frames[:lost], *frames[lost + 1 :]]:
        events |= cut.caller.receive(*frame)
        if events & Event.BROKEN:
            break
    assert events & Event.BROKEN
    assert cut.caller.fault is Fault.LOST
    assert not events & Event.ENDED
    assert list(cut.caller.received) == sent[: len(cut.caller.received)]


@pytest.mark.parametrize("seed", range(200))
def test_forged_frames_never_raise(seed: int) -> None:
    dice = random.Random(seed)
    pair = Pair(limit=10_000).accept()
    for session, number in ((pair.caller, 1), (pair.instance, 0)):
        kind = dice.randrange(12)
        content = dice.randbytes(dice.choice([0, 1, 4, 8, 16, 30, 3000]))
        payload = HEAD.pack(kind, 7, number) + content
        block = dice.choice([b"", b"NATS/1.0\r\n\r\n", dice.randbytes(20)])
        session.receive(payload if dice.random() < 0.8 else dice.randbytes(dice.randrange(40)), block)
        session.receive(HEAD.pack(dice.randrange(12), 7, number + 1) + dice.randbytes(50))
        session.take_output()


@pytest.mark.parametrize(
    ("payload", "fault"),
    [
        (b"", Fault.GARBAGE),
        (b"hello", Fault.GARBAGE),
        (HEAD.pack(streams.DATA, 8, 0), Fault.GARBAGE),  # another session's
        (HEAD.pack(99, 7, 0), Fault.GARBAGE),
        (HEAD.pack(0, 7, 0), Fault.GARBAGE),
        (HEAD.pack(streams.DATA, 7, 1), Fault.LOST),
        (HEAD.pack(streams.DATA, 7, 0) + (5000).to_bytes(4, "big"), Fault.TOO_LARGE),
        (HEAD.pack(streams.DATA, 7, 0) + bytes(4 * 1025), Fault.GARBAGE),  # 1,025 empty messages
        (HEAD.pack(streams.LAST, 7, 0) + b"\0\0\0\5abc", Fault.GARBAGE),
        (HEAD.pack(streams.WINDOW, 7, 0) + bytes(15), Fault.GARBAGE),
        (HEAD.pack(streams.WINDOW, 7, 0) + bytes(15) + b"\1", Fault.GARBAGE),
        (HEAD.pack(streams.END, 7, 0) + bytes(16), Fault.GARBAGE),  # a caller has no end
        (HEAD.pack(streams.ACCEPT, 7, 0) + bytes(8), Fault.GARBAGE),
        (HEAD.pack(streams.INITIAL, 7, 0), Fault.GARBAGE),
    ],
)
def test_garbage_breaks_a_session(payload: bytes, fault: Fault) -> None:
    instance = Session(7, max_receive_bytes=1000)
    assert instance.receive(payload) == Event.BROKEN
    assert instance.fault is fault


@pytest.mark.parametrize("token", [b"", b"a.b", b"a b", b"*", b">", b"x" * 65, "ü".encode(), b"a\r\n"])
def test_a_token_that_is_no_token_is_not_taken_into_a_subject(token: bytes) -> None:
    caller = Session(max_receive_bytes=1000)
    frame = HEAD.pack(streams.ACCEPT, 7, 0) + (1000).to_bytes(4, "big") * 2 + token
    assert caller.receive(frame) == Event.BROKEN
    assert caller.token == ""


def test_an_opening_is_the_first_frame_or_nothing() -> None:
    caller = Session(max_receive_bytes=LIMIT)
    assert caller.opening(1000) == b""
    caller.write(b"request")
    caller.half_close()
    assert caller.take_output() == []
    assert caller.opening(20) == b""
    body = caller.opening(1000)
    instance = Session(7, max_receive_bytes=LIMIT)
    assert instance.receive_opening(body) == Event.DATA
    assert (instance.read(), instance.peer_closed) == (b"request", True)
    for garbage in (b"x", HEAD.pack(streams.DATA, 1, 0), HEAD.pack(streams.CANCEL, 0, 0)):
        assert Session(7, max_receive_bytes=LIMIT).receive_opening(garbage) == Event.BROKEN


def test_the_order_of_metadata_messages_and_end_is_kept() -> None:
    pair = Pair().accept()
    pair.instance.send_initial(b"initial")
    pair.instance.write(b"1")
    pair.instance.end(b"end")
    frames = pair.instance.take_output()
    assert [frame[0][0] for frame in frames] == [streams.INITIAL, streams.DATA, streams.END]
    seen = [pair.caller.receive(*frame) for frame in frames]
    assert seen == [Event.INITIAL, Event.DATA, Event.ENDED]
    assert (pair.caller.initial_block, pair.caller.end_block, list(pair.caller.received)) == (
        b"initial",
        b"end",
        [b"1"],
    )
    assert pair.instance.take_output() == []


def test_an_end_that_counts_more_than_came_is_a_loss() -> None:
    pair = Pair().accept()
    end = HEAD.pack(streams.END, 7, 1) + (1).to_bytes(8, "big") + bytes(8)
    assert pair.caller.receive(end) == Event.BROKEN
    assert pair.caller.fault is Fault.LOST
