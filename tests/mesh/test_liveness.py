"""A caller finds out that the instance which had its call is gone (M-C4)."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from nats.aio.client import Client

import mesh
from mesh.localserver import LocalServer
from protos.hello_pb2 import HelloRequest, HelloResponse
from tests.mesh.hello import SUBJECT, flushed, greet, request, serving, stub

Code = grpc.StatusCode
ROOT = Path(__file__).resolve().parent.parent.parent

SERVICE = """
import asyncio, sys
import mesh
from tests.mesh.hello import HelloService, greet
from protos.hello_pb2_grpc import add_HelloServiceServicer_to_server

async def handler(message, context):
    if message.name == "sleep":
        await asyncio.sleep(60)
    return await greet(message, context)

async def main():
    async with mesh.connect(sys.argv[1]) as m:
        server = mesh.Server(m)
        add_HelloServiceServicer_to_server(HelloService(handler), server)
        await server.start()
        print("ready", flush=True)
        await server.wait_for_termination()

asyncio.run(main())
"""


@asynccontextmanager
async def service_process(url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The service in a process of its own, killed at the end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SERVICE, url),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 20) == b"ready\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_dead_or_stopped_instance_is_noticed_within_the_keepalive(
    url: str, caller: mesh.Mesh, how: signal.Signals
) -> None:
    """The caller's keepalive is 1 s."""
    async with service_process(url) as process:
        await stub(caller).SayHello(request())
        call = stub(caller).SayHello(request("sleep"), timeout=20)
        await asyncio.sleep(1.5)
        assert not call.done(), "a living instance may take its time"
        began = time.monotonic()
        process.send_signal(how)
        with pytest.raises(mesh.RpcError, match="gone") as caught:
            await call
        assert caught.value.code() is Code.UNAVAILABLE
        assert time.monotonic() - began < 1.1
        if how is signal.SIGSTOP:
            process.send_signal(signal.SIGCONT)


async def test_another_instance_does_not_answer_for_the_dead_one(url: str, m: mesh.Mesh, caller: mesh.Mesh) -> None:
    async with service_process(url) as process:
        call = stub(caller).SayHello(request("sleep"), timeout=20)
        await asyncio.sleep(0.7)
        async with serving(m):
            process.kill()
            began = time.monotonic()
            with pytest.raises(mesh.RpcError, match="gone"):
                await call
            assert time.monotonic() - began < 1.1


async def test_many_slow_calls_are_asked_for_together(m: mesh.Mesh, caller: mesh.Mesh, foreigner: Client) -> None:
    release = asyncio.Event()
    questions: list[bytes] = []

    async def handler(message: HelloRequest, context: Any) -> HelloResponse:
        await release.wait()
        return await greet(message, context)

    async def see(message: Any) -> None:
        questions.append(message.data)

    await foreigner.subscribe(f"{SUBJECT}._call", cb=see)
    await flushed(foreigner)
    async with serving(m, handler):
        calls = [stub(caller).SayHello(request(str(n))) for n in range(250)]
        await asyncio.sleep(2.5)
        assert not any(call.done() for call in calls)
        assert 3 <= len(questions) < 40
        assert caller._caller._liveness._open
        release.set()
        await asyncio.gather(*calls)
    assert len(caller.connection._streams) <= 12


async def test_call_that_is_being_finished_by_a_draining_server_is_alive(m: mesh.Mesh, caller: mesh.Mesh) -> None:
    async def handler(message: HelloRequest, context: Any) -> HelloResponse:
        await asyncio.sleep(2)
        return await greet(message, context)

    async with serving(m, handler) as server:
        call = stub(caller).SayHello(request())
        await asyncio.sleep(0.2)
        stopping = asyncio.create_task(server.stop(10))
        assert (await call).message == "Hello, World!"
        await stopping


async def test_foreign_service_is_not_asked_for(caller: mesh.Mesh, foreigner: Client) -> None:
    async def answer(message: Any) -> None:
        await asyncio.sleep(2)
        await message.respond(HelloResponse(message="late").SerializeToString())

    await foreigner.subscribe(SUBJECT, cb=answer)
    await flushed(foreigner)
    assert (await stub(caller).SayHello(request())).message == "late"


@pytest.fixture(scope="module")
def accounts() -> Iterator[LocalServer]:
    """Services in one account, callers in another, which imports them."""
    config = """
    accounts {
      SVC: { users: [{user: svc, password: s}], exports: [{service: "svc.>", response_type: stream}] }
      APP: { users: [{user: app, password: a}], imports: [{service: {account: SVC, subject: "svc.>"}}] }
    }
    """
    with LocalServer(relaxed_sync=True, jetstream=False, config=config) as server:
        yield server


async def test_across_an_account_import_calls_are_asked_for_and_cancelled_by_name(accounts: LocalServer) -> None:
    """Reply subjects are rewritten there: the first calls only learn that; a living one is never ended."""
    cancelled = asyncio.Event()

    async def handler(message: HelloRequest, context: Any) -> HelloResponse:
        if message.name == "sleep":
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.set()
                raise
        if message.name == "slow":
            await asyncio.sleep(2.5)
        assert context.peer().startswith("nats:_R_")
        return await greet(message, context)

    m = await mesh.connect(accounts.url, user="svc", password="s")
    caller = await mesh.connect(accounts.url, user="app", password="a", keepalive=1.0)
    async with serving(m, handler):
        assert (await stub(caller).SayHello(request("slow"))).message == "Hello, slow!"
        assert (await stub(caller).SayHello(request("slow"))).message == "Hello, slow!"
        call = stub(caller).SayHello(request("sleep"))
        await asyncio.sleep(0.2)
        call.cancel()
        await asyncio.wait_for(cancelled.wait(), 1)
        error_of = caller.channel.unary_unary("/hello.HelloService/Nope")(b"")
        with pytest.raises(mesh.RpcError) as caught:
            await error_of
        assert caught.value.code() is Code.UNIMPLEMENTED
        last = stub(caller).SayHello(request("sleep"))
        await asyncio.sleep(0.1)
        server_side = m.connection._client
        await m.connection.close()
        assert server_side.is_closed
        with pytest.raises(mesh.RpcError, match="gone"):
            await last
    await caller.close()
    await m.close()
