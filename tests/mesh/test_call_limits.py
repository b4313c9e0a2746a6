"""Sizes have limits, and errors name size and limit."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

import mesh
from mesh import caller as caller_module
from mesh.localserver import LocalServer
from protos.hello_pb2 import HelloRequest, HelloResponse
from tests.mesh.hello import SUBJECT, greet, request, serving, stub

Code = grpc.StatusCode


async def failure(call: Any) -> mesh.RpcError:
    with pytest.raises(mesh.RpcError) as caught:
        await call
    return caught.value


async def big_reply(message: HelloRequest, _context: Any) -> HelloResponse:
    return HelloResponse(message="x" * int(message.name))


async def test_request_over_max_payload_goes_in_pieces(m: mesh.Mesh, caller: mesh.Mesh) -> None:
    async with serving(m) as server:
        replies = await asyncio.gather(*(stub(caller).SayHello(request("x" * 3_000_000)) for _ in range(20)))
        assert {len(reply.message) for reply in replies} == {3_000_008}
        assert (caller._caller.bytes_in_flight, len(caller._caller.streams)) == (0, 0)
        assert (server._host._held, server._host._held_bytes) == ({}, 0)
        assert m.connection.is_connected


async def test_headers_count_against_max_payload(m: mesh.Mesh) -> None:
    async with serving(m):
        fits = request("x" * ((1 << 20) - 400))
        assert await stub(m).SayHello(fits)
        assert await stub(m).SayHello(fits, metadata=[("k", "v" * 500)])
        assert m.connection.is_connected


async def test_reply_over_max_payload_is_one_final_message_that_says_where_the_rest_is(
    m: mesh.Mesh, caller: mesh.Mesh, foreigner: Any
) -> None:
    """Our callers fetch it; whoever does not know how reads an error, and so does a journal."""
    async with serving(m, big_reply) as server:
        assert len((await stub(caller).SayHello(request("1000000"))).message) == 1_000_000
        assert len((await stub(caller).SayHello(request("1100000"))).message) == 1_100_000
        large = request("1100000").SerializeToString()
        reply = await foreigner.request(SUBJECT, large)
        assert reply.headers["Nats-Service-Error-Code"] == "429"
        assert "max_payload" in reply.headers["Nats-Service-Error"]
        assert len(server._host._held) == 1
        reply = await foreigner.request(SUBJECT, large, headers={"Idempotency-Key": "k"})
        assert reply.headers["Nats-Service-Error-Code"] == "429"
        assert len(server._host._held) == 1
        server._host._held.clear()
        assert len((await stub(caller).SayHello(request("10"))).message) == 10


@pytest.fixture(scope="module")
def roomy() -> Iterator[str]:
    """A server whose max_payload is above gRPC's limit."""
    with LocalServer(relaxed_sync=True, max_payload=8 << 20) as server:
        yield server.url


async def test_four_mib_is_the_limit_whatever_max_payload_is(roomy: str) -> None:
    """M-A3, U2: the limit exactly, and a little more, both ways."""
    overhead = len(HelloResponse(message="x" * 4_000_000).SerializeToString()) - 4_000_000
    exact = 4_194_304 - overhead
    async with mesh.connect(roomy) as m, serving(m, big_reply):
        assert len((await stub(m).SayHello(request(str(exact)))).message) == exact
        error = await failure(stub(m).SayHello(request(str(exact + 10))))
        assert error.code() is Code.RESOURCE_EXHAUSTED
        assert "4194304" in (error.details() or "")
        assert "4194314" in (error.details() or "")
        error = await failure(stub(m).SayHello(request("0" * (exact + 10))))
        assert (error.code(), "grpc.max_send_message_length" in (error.details() or "")) == (
            Code.RESOURCE_EXHAUSTED,
            True,
        )


async def test_limits_are_set_by_options_as_in_grpc(roomy: str) -> None:
    small = [("grpc.max_receive_message_length", 1000), ("grpc.primary_user_agent", "ignored")]
    async with mesh.connect(roomy, options=small) as caller, mesh.connect(roomy) as m:
        async with serving(m, big_reply):
            error = await failure(stub(caller).SayHello(request("2000")))
            assert (error.code(), "1000 bytes" in (error.details() or "")) == (Code.RESOURCE_EXHAUSTED, True)
        async with serving(m, options=small):
            error = await failure(stub(m).SayHello(request("x" * 2000)))
            assert (error.code(), "1000 bytes" in (error.details() or "")) == (Code.RESOURCE_EXHAUSTED, True)
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        async with mesh.connect(roomy, options=unlimited) as free, serving(m, big_reply, options=unlimited):
            assert len((await stub(free).SayHello(request("6000000"))).message) == 6_000_000


async def test_a_thousand_calls_with_large_answers_at_once_harm_no_connection(m: mesh.Mesh, caller: mesh.Mesh) -> None:
    """The server cuts off whoever has 64 MB waiting: callers do not ask for that much, also before the first answer."""
    states: list[str] = []
    caller.connection.on_state(states.append)
    async with serving(m, big_reply):
        for size in (500_000, 300_000):
            replies = await asyncio.gather(*(stub(caller).SayHello(request(str(size))) for _ in range(500)))
            assert {len(reply.message) for reply in replies} == {size}
    assert states == []
    assert caller._caller.bytes_in_flight == 0


async def test_slow_calls_are_sent_before_any_answer_told_their_size(m: mesh.Mesh, caller: mesh.Mesh) -> None:
    release = asyncio.Event()

    async def handler(message: HelloRequest, context: Any) -> HelloResponse:
        await release.wait()
        return await greet(message, context)

    async with serving(m, handler) as server:
        calls = [stub(caller).SayHello(request()) for _ in range(300)]
        late = stub(caller).SayHello(request(), timeout=0.05)
        with pytest.raises(mesh.RpcError):
            await late
        while server._host.in_flight < 300:
            await asyncio.sleep(0.01)
        release.set()
        await asyncio.gather(*calls)
        assert caller._caller.bytes_in_flight == 0


async def test_server_refuses_past_its_own_bound_on_bytes(m: mesh.Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.server.endpoint.MAX_BYTES_IN_FLIGHT", 100_000)
    release = asyncio.Event()

    async def handler(message: HelloRequest, context: Any) -> HelloResponse:
        await release.wait()
        return await greet(message, context)

    async with serving(m, handler) as server:
        calls = [stub(m).SayHello(request("x" * 30_000)) for _ in range(4)]
        error = await failure(calls[3])
        assert (error.code(), "in flight" in (error.details() or "")) == (Code.RESOURCE_EXHAUSTED, True)
        release.set()
        await asyncio.gather(*calls[:3])
        assert server._host.bytes_in_flight == 0


async def test_past_the_bound_on_bytes_calls_wait_for_their_turn(
    m: mesh.Mesh, caller: mesh.Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M-A6."""
    monkeypatch.setattr(caller_module, "MAX_BYTES_IN_FLIGHT", 100_000)
    monkeypatch.setattr("mesh.client.MAX_BYTES_IN_FLIGHT", 100_000)
    most = 0

    async def handler(message: HelloRequest, context: Any) -> HelloResponse:
        nonlocal most
        most = max(most, server._host.in_flight)
        await asyncio.sleep(0.005)
        return await greet(message, context)

    async with serving(m, handler) as server:
        calls = [stub(caller).SayHello(request("x" * 10_000)) for _ in range(200)]
        calls[50].cancel()
        late = stub(caller).SayHello(request("y" * 10_000), timeout=0.01)
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(item) for item in done].count(HelloResponse) == 199
        assert most <= 12
        assert (await failure(late)).code() is Code.DEADLINE_EXCEEDED
        assert caller._caller.bytes_in_flight == 0
