"""Deadlines travel, cancel the handler, and keep an expired request from starting."""

from __future__ import annotations

import asyncio
import math
import socket
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest
from nats.aio.client import Client

import mesh
from mesh import wire
from protos.hello_pb2 import HelloRequest, HelloResponse
from tests.mesh.hello import SUBJECT, flushed, greet, request, serving, stub

Code = grpc.StatusCode


async def failure(call: Any) -> mesh.RpcError:
    with pytest.raises(mesh.RpcError) as caught:
        await call
    return caught.value


class Sleeper:
    """A handler that sleeps, and what became of it."""

    def __init__(self) -> None:
        self.started = 0
        self.left: list[float | None] = []
        self.cancelled_at = 0.0
        self.cancelled = asyncio.Event()
        self.context_was_cancelled = False

    async def __call__(self, message: HelloRequest, context: Any) -> HelloResponse:
        self.started += 1
        self.left.append(context.time_remaining())
        if message.name == "sleep":
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                self.cancelled_at = time.monotonic()
                self.context_was_cancelled = context.cancelled()
                self.cancelled.set()
                raise
        return await greet(message, context)


async def test_deadline_ends_the_call_and_cancels_the_handler(m: mesh.Mesh, caller: mesh.Mesh) -> None:
    """D1."""
    handler = Sleeper()
    async with serving(m, handler):
        began = time.monotonic()
        error = await failure(stub(caller).SayHello(request("sleep"), timeout=0.2))
        assert error.code() is Code.DEADLINE_EXCEEDED
        assert 0.19 < time.monotonic() - began < 0.35
        await asyncio.wait_for(handler.cancelled.wait(), 1)
        assert handler.cancelled_at - began < 0.4
        assert handler.context_was_cancelled


async def test_handler_that_swallows_its_cancellation_harms_nobody(m: mesh.Mesh, caller: mesh.Mesh) -> None:
    """K2."""
    ended = asyncio.Event()

    async def handler(message: HelloRequest, context: Any) -> HelloResponse:
        if message.name == "stubborn":
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                ended.set()
        return await greet(message, context)

    async with serving(m, handler) as server:
        error = await failure(stub(caller).SayHello(request("stubborn"), timeout=0.1))
        assert error.code() is Code.DEADLINE_EXCEEDED
        await asyncio.wait_for(ended.wait(), 1)
        assert (await stub(caller).SayHello(request())).message == "Hello, World!"
        assert server.services[0].info.endpoints[0].stats.in_flight == 0


async def test_time_remaining_falls_along_a_chain(m: mesh.Mesh, caller: mesh.Mesh) -> None:
    """D2, M-A7: what is called inside a handler inherits its time; inf opts out."""
    left: list[float | None] = []

    async def handler(message: HelloRequest, context: Any) -> HelloResponse:
        left.append(context.time_remaining())
        match message.name:
            case "chain":
                await asyncio.sleep(0.05)
                await stub(mesh.current()).SayHello(request("inner"))
            case "inner":
                await asyncio.sleep(0.05)
                await stub(mesh.current()).SayHello(request("short"), timeout=0.5)
            case "short":
                await stub(mesh.current()).SayHello(request("free"), timeout=math.inf)
        return await greet(message, context)

    async with serving(m, handler):
        await stub(caller).SayHello(request("chain"), timeout=2)
    first, second, third, last = left
    assert 1.9 < (first or 0) <= 2
    assert (second or 9) <= (first or 0) - 0.049
    assert (third or 9) <= 0.5
    assert last is None


async def test_background_task_is_not_bound_by_the_call_that_began_it(m: mesh.Mesh, caller: mesh.Mesh) -> None:
    tasks: list[asyncio.Task[Any]] = []

    async def handler(message: HelloRequest, context: Any) -> HelloResponse:
        async def later() -> Any:
            await asyncio.sleep(0.2)
            return await stub(mesh.current()).SayHello(request("later"))

        if message.name == "begin":
            tasks.append(asyncio.create_task(later()))
        return await greet(message, context)

    async with serving(m, handler):
        await stub(caller).SayHello(request("begin"), timeout=0.1)
        assert (await tasks[0]).message == "Hello, later!"


@pytest.mark.parametrize("timeout", [0, -1, -math.inf])
async def test_no_time_left_sends_nothing(m: mesh.Mesh, timeout: float) -> None:
    async with serving(m) as server:
        error = await failure(stub(m).SayHello(request(), timeout=timeout))
        assert error.code() is Code.DEADLINE_EXCEEDED
        assert server.services[0].info.endpoints[0].stats.num_requests == 0


async def test_call_without_timeout_ends_at_max_call(url: str, m: mesh.Mesh) -> None:
    """M-A8, also with a longer timeout or one that is opted out of."""
    handler = Sleeper()
    async with serving(m, handler), mesh.connect(url, max_call=0.3) as short:
        for timeout in (None, 60, math.inf):
            handler.cancelled.clear()
            began = time.monotonic()
            error = await failure(stub(short).SayHello(request("sleep"), timeout=timeout))
            assert (error.code(), "max_call" in (error.details() or "")) == (Code.DEADLINE_EXCEEDED, True)
            assert time.monotonic() - began < 1.5
            await asyncio.wait_for(handler.cancelled.wait(), 1)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Grpc-Timeout": "0m"}, "504"),
        ({"Grpc-Timeout": "00000000H"}, "504"),
        ({"Grpc-Timeout": "soon"}, "400"),
        ({"Grpc-Timeout": "-1S"}, "400"),
        ({"Grpc-Timeout": "123456789S"}, "400"),
        ({"Grpc-Timeout": ""}, "400"),
        ({"Grpc-Timeout": "1S", "Mesh-Deadline": "x"}, "400"),
    ],
)
async def test_bad_or_expired_deadline_never_starts_the_handler(
    m: mesh.Mesh, foreigner: Client, headers: dict[str, str], code: str
) -> None:
    """D3, M-D3."""
    handler = Sleeper()
    async with serving(m, handler):
        reply = await foreigner.request(SUBJECT, b"", headers=headers)
        assert (reply.headers or {})["Nats-Service-Error-Code"] == code
        assert handler.started == 0


async def test_far_deadline_is_one(m: mesh.Mesh, foreigner: Client) -> None:
    async with serving(m):
        reply = await foreigner.request(SUBJECT, b"", headers={"Grpc-Timeout": "99999999H"})
        assert reply.headers is None


def _headers(timeout: str, sent_ago: float, seconds: float) -> dict[str, str]:
    return {"Grpc-Timeout": timeout, "Mesh-Deadline": str(int((time.time() - sent_ago + seconds) * 1000))}


def _publish_from_a_thread(url: str, headers: dict[str, str]) -> threading.Thread:
    """Publish by a bare socket, whatever our event loop does meanwhile."""
    block = "NATS/1.0\r\n" + "".join(f"{key}: {value}\r\n" for key, value in headers.items()) + "\r\n"
    address = urlsplit(url)

    def publish() -> None:
        with socket.create_connection((address.hostname or "", address.port or 0)) as connection:
            connection.sendall(b'CONNECT {"verbose":false,"headers":true,"protocol":1}\r\n')
            connection.sendall(f"HPUB {SUBJECT} answers {len(block)} {len(block)}\r\n{block}\r\nPING\r\n".encode())
            while b"PONG" not in connection.recv(4096):
                pass

    thread = threading.Thread(target=publish)
    thread.start()
    return thread


async def test_request_that_waited_longer_than_its_deadline_is_not_started(url: str, m: mesh.Mesh) -> None:
    """The server was held up: what it reads then has waited."""
    handler = Sleeper()
    async with serving(m, handler) as server:
        thread = _publish_from_a_thread(url, _headers("1S", 0.0, 1.0))
        time.sleep(1.3)  # noqa: ASYNC251 - the loop is blocked, as that of a stopped process is
        await m.connection.round_trip()
        thread.join()
        assert handler.started == 0
        assert server.services[0].info.endpoints[0].stats.expired == 1


@pytest.mark.parametrize("sent_ago", [-3600.0, 3600.0, 30.0, -30.0])
async def test_deadline_by_a_clock_that_differs_is_ignored_and_logged(
    m: mesh.Mesh, foreigner: Client, caplog: pytest.LogCaptureFixture, sent_ago: float
) -> None:
    handler = Sleeper()
    async with serving(m, handler):
        reply = await foreigner.request(SUBJECT, b"", headers=_headers("2S", sent_ago, 2.0))
        assert reply.headers is None
        (left,) = handler.left
        assert 1.9 < (left or 0) <= 2
        assert "clock" in caplog.text


async def test_our_client_sends_both_forms_of_the_deadline(m: mesh.Mesh, foreigner: Client) -> None:
    heads: list[Any] = []

    async def answer(message: Any) -> None:
        block = "".join(f"{key}: {value}\r\n" for key, value in message.headers.items())
        heads.append(wire.decode_request(f"NATS/1.0\r\n{block}\r\n".encode()))
        await message.respond(b"")

    await foreigner.subscribe(SUBJECT, cb=answer)
    await flushed(foreigner)
    await stub(m).SayHello(request(), timeout=2)
    (head,) = heads
    assert 1.9 < head.timeout <= 2.001
    assert abs(head.deadline_ms / 1000 - time.time() - 2) < 0.5
