"""The kit itself: servers that are killed, links that lie, services that know nothing of us."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import nats
import nats.errors
import pytest

from tests.kit.foreign import Foreign, Request, echo, script, silence
from tests.kit.ledger import until
from tests.kit.proxy import Frame, Proxy, delivers, publishes, subject_matches
from tests.kit.raw import ApiError, Raw, Stored, as_slot
from tests.kit.server import NatsServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from nats.aio.client import Client

SLOT = "wf.default.j.w.local.0.run-1.incarnation.3.1.call-abc.HelloService%2ESayHello"
JOURNAL = {
    "name": "JOURNAL-0",
    "subjects": ["wf.default.j.w.local.0.>"],
    "retention": "limits",
    "storage": "file",
    "max_msgs_per_subject": 1,
    "discard": "new",
    "discard_new_per_subject": True,
    "allow_direct": True,
}


async def test_a_killed_server_comes_back_on_its_port_with_its_store(
    nats_server: NatsServer,
) -> None:
    async with await Raw.connect(nats_server.url) as raw:
        await raw.api("STREAM.CREATE.JOURNAL-0", JOURNAL)
        assert await raw.publish(SLOT, b"first") == 1
    nats_server.kill()
    await nats_server.astart()
    async with await Raw.connect(nats_server.url) as raw:
        assert [slot.stored.data for slot in await raw.slots("run-1")] == [b"first"]


async def test_two_servers_at_once_have_ports_of_their_own(tmp_path: Path) -> None:
    async with NatsServer(tmp_path / "a") as a, NatsServer(tmp_path / "b", sync_always=True) as b:
        assert a.port != b.port


async def test_slots_are_read_in_order_and_written_once(raw: Raw) -> None:
    await raw.api("STREAM.CREATE.JOURNAL-0", JOURNAL)
    other = SLOT.replace(".3.1.", ".2.1.")
    await raw.publish(SLOT, b"answer", {"Mesh-Entry": "value"})
    await raw.publish(other, b"later")
    with pytest.raises(ApiError) as refused:
        await raw.publish(SLOT, b"second answer")
    assert refused.value.code == 10077
    slots = await raw.slots("run-1")
    assert [(slot.step, slot.attempt, slot.kind, slot.digest) for slot in slots] == [
        (3, 1, "call", "abc"),
        (2, 1, "call", "abc"),
    ]
    assert slots[0].stored.headers["Mesh-Entry"] == "value"
    assert await raw.slots("run-2") == []
    assert await raw.journal_messages() == 2


async def test_what_is_not_there_is_none(raw: Raw) -> None:
    assert await raw.record("unknown") is None
    assert await raw.command("unknown") is None


def test_a_subject_that_is_no_slot_is_refused() -> None:
    with pytest.raises(ValueError, match="anchor"):
        as_slot(Stored("wf.default.j.w.local.0.anchor", 1, "", {}, b""))


@pytest.mark.parametrize(
    ("pattern", "subject", "fits"),
    [
        ("a.*.c", "a.b.c", True),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        ("a.*", "a.b.c", False),
        ("a.b.c", "a.b", False),
        (">", "a", True),
    ],
)
def test_patterns_match_as_in_nats(pattern: str, subject: str, fits: bool) -> None:
    assert subject_matches(pattern, subject) is fits


# --- proxy


@asynccontextmanager
async def through(proxy: Proxy) -> AsyncIterator[Client]:
    client = await nats.connect(proxy.url, max_reconnect_attempts=-1, reconnect_time_wait=0.02, error_cb=_quiet)
    try:
        yield client
    finally:
        await client.close()


async def _quiet(_: Exception) -> None:
    return None


async def test_a_proxy_carries_requests_with_headers_both_ways(nats_server: NatsServer, raw: Raw) -> None:
    seen: list[Frame] = []
    async with Proxy(nats_server.port) as proxy, Foreign(raw.client, "echo", echo(b">")):
        proxy.witness(seen.append)
        async with through(proxy) as client:
            answer = await client.request("echo", b"one\r\ntwo" * 40_000, headers={"a": "b"})
            assert answer.data == b">" + b"one\r\ntwo" * 40_000
    asked = next(frame for frame in seen if frame.subject == "echo")
    assert (asked.verb, asked.direction, len(asked.payload)) == ("HPUB", "up", 320_000)
    assert b"a: b" in asked.headers
    assert asked.reply.startswith("_INBOX.")
    assert any(frame.verb == "MSG" and frame.subject == asked.reply for frame in seen)


async def test_a_trap_holds_one_message_and_all_behind_it(nats_server: NatsServer, raw: Raw) -> None:
    async with Proxy(nats_server.port) as proxy, raw.watch("t.>") as watch:
        async with through(proxy) as client:
            trap = proxy.trap(publishes("t.*"), skip=1)
            for name in "abc":
                await client.publish(f"t.{name}")
            assert (await trap.wait()).subject == "t.b"
            await watch.wait_for()
            await raw.client.flush()
            assert watch.subjects == ["t.a"]
            trap.release()
            await watch.wait_for(lambda message: message.subject == "t.c")
            assert watch.subjects == ["t.a", "t.b", "t.c"]


async def test_a_trapped_message_can_be_lost(nats_server: NatsServer, raw: Raw) -> None:
    async with Proxy(nats_server.port) as proxy, raw.watch("t.>") as watch:
        async with through(proxy) as client:
            trap = proxy.trap(publishes("t.a"))
            await client.publish("t.a")
            await client.publish("t.b")
            await trap.wait()
            trap.lose()
            await watch.wait_for()
            assert watch.subjects == ["t.b"]


async def test_an_answer_can_be_lost_after_its_effect(nats_server: NatsServer, raw: Raw) -> None:
    await raw.api("STREAM.CREATE.JOURNAL-0", JOURNAL)
    async with Proxy(nats_server.port) as proxy, through(proxy) as client:
        found_again = proxy.lose_answers("wf.>")
        with pytest.raises(nats.errors.TimeoutError):
            await client.request(SLOT, b"x", timeout=0.2)
        assert len(await raw.slots("run-1")) == 1
        found_again()
        answer = await client.request(SLOT, b"x", timeout=2)
        assert b"10077" in answer.data


async def test_a_stalled_link_loses_nothing(nats_server: NatsServer, raw: Raw) -> None:
    async with Proxy(nats_server.port) as proxy, raw.watch("t.>") as watch:
        async with through(proxy) as client:
            proxy.stall()
            await client.publish("t.a")
            flushed = asyncio.create_task(client.flush())
            done, _ = await asyncio.wait([flushed], timeout=0.05)
            assert not done
            assert watch.subjects == []
            proxy.flow()
            await flushed
            await watch.wait_for()


async def test_a_half_open_link_loses_one_direction(nats_server: NatsServer, raw: Raw) -> None:
    async with Proxy(nats_server.port) as proxy, Foreign(raw.client, "echo", echo()) as service:
        async with through(proxy) as client:
            await client.request("echo")
            proxy.blackhole("down")
            with pytest.raises(nats.errors.TimeoutError):
                await client.request("echo", timeout=0.1)
            await service.wait_for(2)
            proxy.flow()
            await client.request("echo")


async def test_a_cut_link_is_made_again_unless_refused(nats_server: NatsServer, raw: Raw) -> None:
    async with Proxy(nats_server.port) as proxy, Foreign(raw.client, "echo", echo()):
        async with through(proxy) as client:
            proxy.refuse = True
            proxy.cut()
            with pytest.raises((nats.errors.Error, OSError)):
                await client.request("echo", timeout=0.1)
            proxy.refuse = False
            await until(lambda: client.is_connected)
            await client.request("echo", timeout=2)
            assert proxy.connections == 1


# --- foreign services


async def test_a_script_answers_each_request_in_its_own_way(raw: Raw) -> None:
    async def busy(request: Request) -> None:
        await request.fail(429, "later")

    async with Foreign(raw.client, "svc.a.B.C", script(busy, echo())) as service:
        first = await raw.client.request("svc.a.B.C", b"1", headers={"Idempotency-Key": "k"})
        second = await raw.client.request("svc.a.B.C", b"2")
        assert (first.headers or {})["Nats-Service-Error-Code"] == "429"
        assert second.data == b"2"
        assert [request.key for request in service.requests] == ["k", ""]


async def test_a_silent_service_answers_when_the_test_does(raw: Raw) -> None:
    async with Foreign(raw.client, "svc.a.B.C", silence) as service:
        asking = asyncio.create_task(raw.client.request("svc.a.B.C", b"1", timeout=5))
        request = (await service.wait_for())[0]
        assert not request.answered
        await request.respond(b"at last")
        assert (await asking).data == b"at last"


async def test_a_stopped_service_has_no_responders(raw: Raw) -> None:
    service = await Foreign(raw.client, "svc.a.B.C").start()
    await service.stop()
    with pytest.raises(nats.errors.NoRespondersError):
        await raw.client.request("svc.a.B.C", timeout=1)


async def test_deliveries_can_be_told_from_publications() -> None:
    up = Frame("up", "PUB", "a", "", b"", b"", b"")
    down = Frame("down", "MSG", "a", "", b"", b"", b"")
    assert publishes("a")(up)
    assert not publishes("a")(down)
    assert delivers("a")(down)
