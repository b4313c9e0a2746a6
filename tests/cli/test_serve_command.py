"""`mesh serve`: ready when it takes calls, drains on SIGTERM, waits for a server that is not there yet."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

import mesh
from mesh.localserver import LocalServer
from protos import hello_pb2, hello_pb2_grpc
from tests.cli.commands import start
from tests.kit.gates import Gate
from tests.kit.ledger import until
from tests.kit.process import Process
from tests.kit.server import NatsServer

# Greets when the gate is opened, and says on stdout that a request has come.
SLOW = """
import asyncio, os
from pathlib import Path
from protos import hello_pb2, hello_pb2_grpc
from tests.kit.gates import Gate

class HelloService(hello_pb2_grpc.HelloServiceServicer):
    async def SayHello(self, request, context):
        print("called", request.name, flush=True)
        if request.name == "slow":
            try:
                await Gate(Path.cwd(), "slow").wait()
            except asyncio.CancelledError:
                print("cancelled", flush=True)
                raise
        return hello_pb2.HelloResponse(message=f"Hello, {request.name}!")
"""


@asynccontextmanager
async def serving(folder: Path, url: str, *arguments: str) -> AsyncIterator[Process]:
    (folder / "slow.py").write_text(SLOW)
    process = start(folder, url, "serve", "slow", *arguments)
    try:
        yield process
    finally:
        await process.close()


@asynccontextmanager
async def stub(url: str) -> AsyncIterator[Any]:
    async with mesh.connect(url) as m:
        yield hello_pb2_grpc.HelloServiceStub(m.channel)


async def say(hello: Any, name: str) -> str:
    return str((await hello.SayHello(hello_pb2.HelloRequest(name=name), timeout=10)).message)


async def until_refused(hello: Any) -> grpc.StatusCode:
    """Call until no new calls are taken; the code of the refusal."""
    while True:
        try:
            await say(hello, "late")
        except mesh.RpcError as error:
            return error.code()


async def test_it_takes_calls_as_soon_as_it_is_ready(nats_server: NatsServer, tmp_path: Path) -> None:
    async with serving(tmp_path, nats_server.url) as process, stub(nats_server.url) as hello:
        line = await process.line("ready")
        assert line.split()[:2] == ["ready", "HelloService"]
        assert await say(hello, "World") == "Hello, World!"


async def test_its_ready_line_is_a_document_with_json(nats_server: NatsServer, tmp_path: Path) -> None:
    async with serving(tmp_path, nats_server.url, "--json") as process:
        document = json.loads(await process.line("{"))
    assert document["event"] == "ready"
    assert [(one["name"], one["service"]) for one in document["services"]] == [("HelloService", "hello.HelloService")]
    assert document["services"][0]["id"]


async def test_the_first_sigterm_lets_calls_finish(nats_server: NatsServer, tmp_path: Path) -> None:
    async with serving(tmp_path, nats_server.url) as process, stub(nats_server.url) as hello:
        await process.ready()
        call = asyncio.ensure_future(say(hello, "slow"))
        await process.line("called slow")
        process.terminate()
        assert await until_refused(hello) is grpc.StatusCode.UNAVAILABLE
        assert process.exit_code is None
        Gate(tmp_path, "slow").open()
        assert await call == "Hello, slow!"
        assert await process.exited() == 0


async def test_calls_that_outlast_the_grace_are_cut_off(nats_server: NatsServer, tmp_path: Path) -> None:
    async with serving(tmp_path, nats_server.url, "--grace", "100ms") as process, stub(nats_server.url) as hello:
        await process.ready()
        call = asyncio.ensure_future(say(hello, "slow"))
        await process.line("called slow")
        process.signal(signal.SIGINT)
        with pytest.raises(mesh.RpcError) as cut_off:
            await call
        assert cut_off.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await process.exited() == 0
        assert "cancelled" in process.stdout


async def test_the_second_signal_ends_it_at_once(nats_server: NatsServer, tmp_path: Path) -> None:
    async with serving(tmp_path, nats_server.url, "--grace", "1h") as process, stub(nats_server.url) as hello:
        await process.ready()
        call = asyncio.ensure_future(say(hello, "slow"))
        await process.line("called slow")
        process.terminate()
        await until_refused(hello)  # the first one has arrived
        process.terminate()
        with pytest.raises(mesh.RpcError) as cut_off:
            await call
        assert cut_off.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await process.exited(5) == 1


async def test_it_waits_for_a_server_that_is_not_there_yet(tmp_path: Path) -> None:
    async with LocalServer(data=tmp_path / "nats") as server:
        await server.astop()
        async with serving(tmp_path, server.url) as process:
            await until(lambda: "no connection to" in process.stderr, what="a failed attempt in the log")
            assert process.exit_code is None
            await server.astart()
            await process.ready()


async def test_it_can_be_stopped_while_it_waits_for_a_server(tmp_path: Path) -> None:
    async with serving(tmp_path, "nats://127.0.0.1:1") as process:
        await until(lambda: "no connection to" in process.stderr, what="a failed attempt in the log")
        process.terminate()
        assert await process.exited(5) == 0


async def test_it_gives_up_after_the_time_it_was_given(tmp_path: Path) -> None:
    async with serving(tmp_path, "nats://127.0.0.1:1", "--connect-timeout", "300ms") as process:
        assert await process.exited(5) == 6
        assert "cannot connect to nats://127.0.0.1:1" in process.stderr


async def test_refused_credentials_end_it_at_once(tmp_path: Path) -> None:
    async with NatsServer(tmp_path / "nats", extra="authorization { user: a, password: b }") as server:
        async with serving(tmp_path, server.url, "--user", "a", "--password", "wrong") as process:
            assert await process.exited(5) == 6
            assert "uthorization" in process.stderr


async def test_a_subject_that_it_may_not_have_ends_it(tmp_path: Path) -> None:
    users = 'authorization { users: [{user: a, password: b, permissions: {subscribe: ["_INBOX.>"]}}] }'
    async with NatsServer(tmp_path / "nats", extra=users) as server:
        async with serving(tmp_path, server.url, "--user", "a", "--password", "b") as process:
            assert await process.exited(5) == 1
            assert "does not allow this user to subscribe to" in process.stderr


async def test_two_services_of_one_name_are_a_usage_error(nats_server: NatsServer, tmp_path: Path) -> None:
    async with serving(tmp_path, nats_server.url, "services.hello") as process:
        assert await process.exited(5) == 2
        assert "hello.HelloService is served already" in process.stderr


async def test_a_module_that_fails_shows_its_traceback(nats_server: NatsServer, tmp_path: Path) -> None:
    (tmp_path / "faulty.py").write_text("1/0\n")
    async with serving(tmp_path, nats_server.url, "faulty") as process:
        assert await process.exited(5) == 2
        assert "ZeroDivisionError" in process.stderr
        assert "mesh/cli" not in process.stderr


async def test_a_changed_file_is_served_anew_with_reload(nats_server: NatsServer, tmp_path: Path) -> None:
    async with serving(tmp_path, nats_server.url, "--reload") as process, stub(nats_server.url) as hello:
        await process.ready()
        assert await say(hello, "World") == "Hello, World!"
        (tmp_path / "slow.py").write_text(SLOW.replace("Hello, {", "Servus, {"))
        await until(lambda: process.stdout.count("ready") == 2, what="a second start")
        assert await say(hello, "World") == "Servus, World!"
        process.terminate()
        assert await process.exited() == 0


async def test_a_reload_survives_a_file_that_is_broken_for_a_while(nats_server: NatsServer, tmp_path: Path) -> None:
    async with serving(tmp_path, nats_server.url, "--reload") as process:
        await process.ready()
        (tmp_path / "slow.py").write_text("1/0\n")
        await until(lambda: "ZeroDivisionError" in process.stderr, what="the traceback")
        (tmp_path / "slow.py").write_text(SLOW)
        await until(lambda: process.stdout.count("ready") == 2, what="a second start")
