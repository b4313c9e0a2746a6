"""Calls around a lost connection (M-A5)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

import mesh
from mesh.localserver import LocalServer
from protos.hello_pb2 import HelloRequest, HelloResponse
from tests.mesh.hello import greet, request, serving, stub

Code = grpc.StatusCode


async def failure(call: Any) -> mesh.RpcError:
    with pytest.raises(mesh.RpcError) as caught:
        await call
    return caught.value


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    """A server of the test's own, to be killed."""
    async with LocalServer(relaxed_sync=True) as local:
        yield local


async def _until_disconnected(m: mesh.Mesh) -> None:
    while m.connection.is_connected:
        await asyncio.sleep(0.01)


async def test_calls_in_flight_end_unavailable_and_new_ones_wait(server: LocalServer) -> None:
    async def handler(message: HelloRequest, context: Any) -> HelloResponse:
        if message.name == "sleep":
            await asyncio.sleep(60)
        return await greet(message, context)

    async with mesh.connect(server.url) as m, mesh.connect(server.url) as caller, serving(m, handler):
        before = stub(caller).SayHello(request("sleep"))
        await caller.connection.round_trip()
        began = time.monotonic()
        server.kill()
        error = await failure(before)
        assert (error.code(), "not known" in (error.details() or "")) == (Code.UNAVAILABLE, True)
        assert time.monotonic() - began < 2
        await _until_disconnected(caller)
        during = stub(caller).SayHello(request("waits"), timeout=10)
        short = stub(caller).SayHello(request(), timeout=0.1)
        assert (await failure(short)).code() is Code.DEADLINE_EXCEEDED
        assert not during.done()
        server.start()
        await _until_served(m)
        assert (await during).message == "Hello, waits!"
        assert (await stub(caller).SayHello(request())).message == "Hello, World!"


async def _until_served(m: mesh.Mesh) -> None:
    while not m.connection.is_connected:
        await asyncio.sleep(0.01)


async def test_call_waits_for_a_connection_no_longer_than_the_grace(server: LocalServer) -> None:
    async with mesh.connect(server.url, reconnect_grace=0.3) as caller:
        server.kill()
        await _until_disconnected(caller)
        assert caller.channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE
        began = time.monotonic()
        error = await failure(stub(caller).SayHello(request()))
        assert (error.code(), "nothing was sent" in (error.details() or "")) == (Code.UNAVAILABLE, True)
        assert 0.25 < time.monotonic() - began < 1
        error = await failure(stub(caller).SayHello(request(), timeout=0.6, wait_for_ready=True))
        assert error.code() is Code.DEADLINE_EXCEEDED, "who waits for ready waits longer"
        server.start()
        await asyncio.wait_for(caller.channel.channel_ready(), 10)


async def test_services_are_there_again_after_a_reconnect(server: LocalServer) -> None:
    async with mesh.connect(server.url) as m, serving(m):
        for _ in range(3):
            server.kill()
            await _until_disconnected(m)
            server.start()
            assert (await stub(m).SayHello(request(), timeout=10, wait_for_ready=True)).message == "Hello, World!"


async def test_closed_mesh_refuses_calls_at_once(server: LocalServer) -> None:
    m = await mesh.connect(server.url)
    await m.close()
    began = time.monotonic()
    assert (await failure(stub(m).SayHello(request()))).code() is Code.UNAVAILABLE
    assert time.monotonic() - began < 0.5
    assert m.channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN
