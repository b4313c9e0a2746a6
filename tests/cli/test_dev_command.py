"""`mesh dev`: one command from nothing to a workflow that calls a service, and again when a file changes."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from engine.client import Client
from mesh.localserver import free_port
from tests.cli.commands import start
from tests.cli.test_localserver import gone
from tests.cli.test_nats_command import nats_server_of
from tests.kit.ledger import until
from tests.kit.process import Process
from tests.kit.server import NatsServer

APP = """
from engine import Context, workflow
from protos import hello_pb2, hello_pb2_grpc

class HelloService(hello_pb2_grpc.HelloServiceServicer):
    async def SayHello(self, request, context):
        return hello_pb2.HelloResponse(message=f"Hello, {request.name}!")

@workflow
async def greet(ctx: Context, name: str) -> str:
    stub = hello_pb2_grpc.HelloServiceStub(ctx.channel)
    return (await stub.SayHello(hello_pb2.HelloRequest(name=name))).message
"""


@asynccontextmanager
async def developing(folder: Path, *arguments: str, url: str = "") -> AsyncIterator[Process]:
    (folder / "app.py").write_text(APP)
    process = start(folder, url, "dev", "app", *arguments)
    try:
        yield process
    finally:
        await process.close()


async def greeting(url: str) -> object:
    async with Client.connect(url) as client:
        return await client.invoke("greet", "World", timeout=20)


async def test_it_runs_a_workflow_that_calls_a_service_and_reloads_both(tmp_path: Path) -> None:
    port = free_port()
    async with developing(tmp_path, "--nats-port", str(port)) as process:
        assert await process.line("ready") == "ready HelloService greet"
        url = f"nats://127.0.0.1:{port}"
        assert await greeting(url) == "Hello, World!"
        assert (tmp_path / ".mesh" / "nats" / "jetstream").is_dir()
        (tmp_path / "app.py").write_text(APP.replace("Hello, {", "Servus, {").replace(".message", ".message + '?'"))
        await until(lambda: process.stdout.count("ready") == 2, what="a second start")
        assert await greeting(url) == "Servus, World!?"
        server = nats_server_of(process.pid)
        process.signal(signal.SIGINT)
        assert await process.exited() == 0
        assert gone(server)


async def test_nothing_is_left_of_it_when_it_is_killed(tmp_path: Path) -> None:
    async with developing(tmp_path, "--nats-port", str(free_port())) as process:
        await process.ready()
        children = [int(pid) for pid in children_of(process.pid)]
        assert len(children) == 2
        process.kill()
        assert all(gone(pid) for pid in children)


async def test_a_server_that_is_not_ours_is_left_alone_unless_told(nats_server: NatsServer, tmp_path: Path) -> None:
    port = ("--nats-port", str(nats_server.port))
    async with developing(tmp_path, *port) as process:
        await process.ready()
        assert "has none of our streams" in process.stderr
        assert "Started one" in process.stderr
        assert nats_server.monitor("jsz")["streams"] == 0
    async with developing(tmp_path, *port, "--use-existing") as process:
        await process.ready()
        assert nats_server.monitor("jsz")["streams"] > 0
    async with developing(tmp_path, *port) as process:  # now it has our streams
        await process.ready()
        assert f"Using the nats-server that listens on {nats_server.url}" in process.stderr.rpartition("Started")[2]


async def test_a_server_that_wants_credentials_is_left_alone(tmp_path: Path) -> None:
    async with NatsServer(tmp_path / "nats", extra="authorization { token: t }") as server:
        async with developing(tmp_path, "--nats-port", str(server.port)) as process:
            await process.ready()
            assert "wants credentials" in process.stderr


async def test_nats_url_is_used_where_it_is_set(nats_server: NatsServer, tmp_path: Path) -> None:
    async with developing(tmp_path, url=nats_server.url) as process:
        await process.ready()
        assert f"Using {nats_server.url}" in process.stderr
        assert await greeting(nats_server.url) == "Hello, World!"
        assert not (tmp_path / ".mesh").exists()


async def test_a_faulty_module_waits_for_its_repair(tmp_path: Path) -> None:
    async with developing(tmp_path, "--nats-port", str(free_port())) as process:
        await process.ready()
        (tmp_path / "app.py").write_text("1/0\n")
        await until(lambda: "ZeroDivisionError" in process.stderr, what="the traceback")
        (tmp_path / "app.py").write_text(APP)
        await until(lambda: process.stdout.count("ready") == 2, what="a second start")


async def test_without_reload_its_end_is_the_module_s(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("")
    process = start(tmp_path, "", "dev", "empty", "--no-reload", "--nats-port", str(free_port()))
    try:
        assert await process.exited() == 2
        assert "neither a service nor a workflow in empty" in process.stderr
    finally:
        await process.close()


async def test_it_ends_when_its_server_does(tmp_path: Path) -> None:
    async with developing(tmp_path, "--nats-port", str(free_port())) as process:
        await process.ready()
        os.kill(nats_server_of(process.pid), signal.SIGKILL)
        assert await process.exited() == 1
        assert "the nats-server ended by itself" in process.stderr


async def test_its_data_outlives_it(tmp_path: Path) -> None:
    port = free_port()
    for round_ in range(2):
        async with developing(tmp_path, "--nats-port", str(port)) as process:
            await process.ready()
            async with Client.connect(f"nats://127.0.0.1:{port}") as client:
                if round_ == 0:
                    await (await client.start("greet", "World", id="kept")).result(timeout=20)
                else:
                    assert (await client.handle("kept").describe()).status == "completed"
            process.terminate()
            assert await process.exited() == 0


def children_of(pid: int) -> list[str]:
    """The pids of all child processes, whichever thread started them."""
    return [child for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]
