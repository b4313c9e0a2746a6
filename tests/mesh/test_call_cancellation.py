"""Cancelling a call: the caller at once, the handler as well as that can be done."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

import grpc
import pytest

import mesh
from mesh.client import Call
from protos.hello_pb2 import HelloRequest, HelloResponse
from tests.mesh.hello import greet, request, serving, stub

Code = grpc.StatusCode


class Blocked:
    """A handler that blocks until it is cancelled."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.ended: list[Any] = []

    async def __call__(self, message: HelloRequest, context: Any) -> HelloResponse:
        context.add_done_callback(self.ended.append)
        self.started.set()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return await greet(message, context)


async def test_cancel_ends_the_call_at_once_and_the_handler_soon(m: mesh.Mesh, caller: mesh.Mesh) -> None:
    """K1."""
    handler = Blocked()
    async with serving(m, handler):
        call = stub(caller).SayHello(request())
        await asyncio.wait_for(handler.started.wait(), 1)
        began = time.monotonic()
        assert call.cancel()
        assert not call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert (call.cancelled(), await call.code()) == (True, Code.CANCELLED)
        await asyncio.wait_for(handler.cancelled.wait(), 1)
        assert time.monotonic() - began < 0.2
        await asyncio.sleep(0)
        assert [context.cancelled() for context in handler.ended] == [True]


async def test_cancelling_the_task_that_awaits_cancels_the_call(m: mesh.Mesh, caller: mesh.Mesh) -> None:
    handler = Blocked()
    async with serving(m, handler):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stub(caller).SayHello(request()), 0.1)
        await asyncio.wait_for(handler.cancelled.wait(), 1)


async def test_done_callbacks_are_called_once_the_call_ended(m: mesh.Mesh) -> None:
    async with serving(m):
        ended: list[Any] = []
        call = stub(m).SayHello(request())
        call.add_done_callback(ended.append)
        await call
        await asyncio.sleep(0)
        call.add_done_callback(ended.append)
        await asyncio.sleep(0)
        assert ended == [call, call]


async def test_cancel_before_anything_was_sent(url: str) -> None:
    m = await mesh.connect(url)
    call = stub(m).SayHello(request(), wait_for_ready=True)
    await asyncio.sleep(0.05)
    assert call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await m.close()


async def test_closing_the_connection_cancels_its_calls(url: str, m: mesh.Mesh) -> None:
    handler = Blocked()
    async with serving(m, handler):
        other = await mesh.connect(url)
        call = stub(other).SayHello(request())
        await asyncio.wait_for(handler.started.wait(), 1)
        await other.close()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(handler.cancelled.wait(), 1)


async def test_nothing_is_left_after_many_calls(m: mesh.Mesh, caller: mesh.Mesh) -> None:
    """Good, failed, expired and cancelled calls: tasks, callbacks and calls in flight are back at the start."""

    async def handler(message: HelloRequest, context: Any) -> HelloResponse:
        match message.name:
            case "fail":
                await context.abort(Code.NOT_FOUND, "no")
            case "sleep":
                await asyncio.sleep(30)
        return await greet(message, context)

    async with serving(m, handler) as server:
        await stub(caller).SayHello(request())
        for _ in range(3):  # the service is asked what it is, once
            await caller.connection.round_trip()
        before = len(asyncio.all_tasks()), len(caller.connection._callbacks)
        calls: list[Any] = []
        call: Any
        for _ in range(20):
            calls = [
                stub(caller).SayHello(request(name), timeout=timeout)
                for name, timeout in (("ok", None), ("fail", 1), ("sleep", 0.02), ("sleep", None), ("ok", 1)) * 10
            ]
            for call in calls[3::5]:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        await caller.connection.round_trip()
        await m.connection.round_trip()
        await asyncio.sleep(0.05)
        assert (len(asyncio.all_tasks()), len(caller.connection._callbacks)) == before
        assert not server._host.calls
        assert not caller._caller.pending
        assert caller._caller.bytes_in_flight == 0
        calls.clear()
        call = None
        gc.collect()
        assert [item for item in gc.get_objects() if isinstance(item, Call)] == []
