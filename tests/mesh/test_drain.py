"""A server that stops loses no request."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import grpc
import nats.errors
import pytest
from nats.aio.client import Client

import mesh
from protos.hello_pb2 import HelloRequest, HelloResponse
from protos.hello_pb2_grpc import add_HelloServiceServicer_to_server
from tests.mesh.hello import SUBJECT, HelloService, greet, request, serving, stub

Code = grpc.StatusCode


async def failure(call: Any) -> mesh.RpcError:
    with pytest.raises(mesh.RpcError) as caught:
        await call
    return caught.value


async def test_stop_finishes_what_was_delivered_then_nobody_is_there(
    m: mesh.Mesh, caller: mesh.Mesh, foreigner: Client
) -> None:
    """S-26."""

    async def handler(message: HelloRequest, context: Any) -> HelloResponse:
        await asyncio.sleep(0.2)
        return await greet(message, context)

    async with serving(m, handler) as server:
        await stub(caller).SayHello(request())
        id_ = server.services[0].id
        calls = [stub(caller).SayHello(request(str(n))) for n in range(200)]
        await caller.connection.round_trip()
        await server.stop(5)
        replies = await asyncio.gather(*calls)
        assert [reply.message for reply in replies] == [f"Hello, {n}!" for n in range(200)]
        assert await server.wait_for_termination(0)
        at = "svc.hello.HelloService"
        for subject in (
            SUBJECT,
            f"$SRV.PING.HelloService.{id_}",
            "$SRV.PING",
            f"{at}._mesh.methods",
            f"{SUBJECT}._call",
        ):
            with pytest.raises(nats.errors.NoRespondersError):
                await foreigner.request(subject, b"")
        assert (await failure(stub(caller).SayHello(request()))).code() is Code.UNAVAILABLE
        await server.stop(5)  # idempotent


async def test_after_the_grace_calls_are_cut_off_as_unavailable(m: mesh.Mesh, caller: mesh.Mesh) -> None:
    """M-B8; a second stop with less grace shortens the first."""
    cancelled = asyncio.Event()

    async def handler(message: HelloRequest, context: Any) -> HelloResponse:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return await greet(message, context)

    async with serving(m, handler) as server:
        call = stub(caller).SayHello(request())
        await caller.connection.round_trip()
        began = time.monotonic()
        first = asyncio.create_task(server.stop(20))
        await asyncio.sleep(0.1)
        assert not first.done()
        await server.stop(0.1)
        assert (await failure(call)).code() is Code.UNAVAILABLE
        await first
        assert cancelled.is_set()
        assert time.monotonic() - began < 1


async def test_giving_up_on_a_stop_does_not_end_it(m: mesh.Mesh, caller: mesh.Mesh) -> None:
    release = asyncio.Event()

    async def handler(message: HelloRequest, context: Any) -> HelloResponse:
        await release.wait()
        return await greet(message, context)

    async with serving(m, handler) as server:
        call = stub(caller).SayHello(request())
        await caller.connection.round_trip()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(server.stop(20), 0.1)
        release.set()
        assert (await call).message == "Hello, World!"
        assert await server.wait_for_termination(2)


async def test_handler_that_does_not_end_does_not_hold_up_the_stop(
    m: mesh.Mesh, caller: mesh.Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh.server.host.ABANDON_AFTER", 0.1)
    release = asyncio.Event()

    async def handler(message: HelloRequest, context: Any) -> HelloResponse:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return await greet(message, context)

    async with serving(m, handler) as server:
        call = stub(caller).SayHello(request())
        await caller.connection.round_trip()
        await asyncio.wait_for(server.stop(None), 2)
        assert (await failure(call)).code() is Code.UNAVAILABLE
        release.set()


async def test_rolling_restarts_of_one_of_two_lose_no_call(url: str, m: mesh.Mesh, caller: mesh.Mesh) -> None:
    """W1: ten restarts under 50 callers."""
    outcomes: Counter[str] = Counter()
    over = False

    async def handler(message: HelloRequest, context: Any) -> HelloResponse:
        await asyncio.sleep(0.002)
        return await greet(message, context)

    async def keep_calling() -> None:
        while not over:
            try:
                await stub(caller).SayHello(request(), timeout=5)
                outcomes["ok"] += 1
            except mesh.RpcError as error:
                outcomes[str(error)] += 1

    async with serving(m, handler), mesh.connect(url) as other:
        callers = [asyncio.create_task(keep_calling()) for _ in range(50)]
        for _ in range(10):
            server = mesh.Server(other)
            add_HelloServiceServicer_to_server(HelloService(handler), server)
            await server.start()
            while server.services[0].info.endpoints[0].stats.num_requests < 20:
                await asyncio.sleep(0.001)
            await server.stop(5)
        over = True
        await asyncio.gather(*callers)
    assert list(outcomes) == ["ok"], outcomes


async def test_restart_of_the_only_instance_fails_calls_only_meanwhile(m: mesh.Mesh, caller: mesh.Mesh) -> None:
    async with serving(m):
        await stub(caller).SayHello(request())
    began = time.monotonic()
    assert (await failure(stub(caller).SayHello(request(), timeout=5))).code() is Code.UNAVAILABLE
    assert time.monotonic() - began < 0.1
    async with serving(m):
        await stub(caller).SayHello(request())


async def test_termination_can_be_waited_for(m: mesh.Mesh) -> None:
    async with serving(m) as server:
        assert not await server.wait_for_termination(0.01)
        waiting = asyncio.create_task(server.wait_for_termination())
        await server.stop(None)
        assert await waiting


async def test_closed_connection_ends_the_server(url: str) -> None:
    m = await mesh.connect(url)
    server = mesh.Server(m)
    add_HelloServiceServicer_to_server(HelloService(), server)
    await server.start()
    await m.close()
    assert await server.wait_for_termination(2)
    await asyncio.wait_for(server.stop(1), 3)


async def test_closing_the_connection_cancels_handlers(url: str) -> None:
    cancelled = asyncio.Event()

    async def handler(message: HelloRequest, context: Any) -> HelloResponse:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return await greet(message, context)

    m = await mesh.connect(url)
    async with serving(m, handler) as server:
        call = stub(m).SayHello(request())
        await m.connection.round_trip()
        await m.close()
        await asyncio.wait_for(cancelled.wait(), 1)
        assert call.cancelled()
        assert server._host._beating is None


async def test_server_that_never_started_can_be_stopped(m: mesh.Mesh) -> None:
    await asyncio.wait_for(mesh.Server(m).stop(1), 1)
