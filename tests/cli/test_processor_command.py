"""`mesh processor`: ready when it takes commands, hands over on SIGTERM, says what is wrong with a module."""

from __future__ import annotations

import json
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from engine.client import Client
from tests.cli.commands import start
from tests.kit.gates import Gate
from tests.kit.ledger import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.kit.process import Process
    from tests.kit.raw import Raw
    from tests.kit.server import NatsServer

FLOWS = """
import asyncio
from pathlib import Path
from engine import Context, workflow
from tests.kit.gates import Gate

async def slowly() -> str:
    print("begun", flush=True)
    await Gate(Path.cwd(), "slow").wait()
    return "done"

@workflow
async def greet(ctx: Context, name: str) -> str:
    return f"Hello, {name}!"

@workflow
async def slow(ctx: Context) -> str:
    return await ctx.run("slowly", slowly)
"""
ROLES = """
authorization {
  users = [
    {user: operator, password: secret}
    {user: processor, password: secret, permissions: {
      publish: ["$JS.API.STREAM.INFO.>", "$JS.API.CONSUMER.INFO.>", "_INBOX.>"], subscribe: ["_INBOX.>", "wf.>"]}}
  ]
}
"""


@asynccontextmanager
async def processing(folder: Path, url: str, *arguments: str, source: str = FLOWS) -> AsyncIterator[Process]:
    (folder / "flows.py").write_text(source)
    process = start(folder, url, "processor", *arguments)
    try:
        yield process
    finally:
        await process.close()


async def test_it_is_ready_when_it_serves_and_ends_with_0(nats_server: NatsServer, raw: Raw, tmp_path: Path) -> None:
    async with processing(tmp_path, nats_server.url, "flows", "--ack-wait", "3s") as process:
        assert await process.line("ready") == "ready greet slow"
        assert (await raw.consumer("greet"))["config"]["ack_wait"] == 3_000_000_000
        async with Client.connect(nats_server.url) as client:
            assert await client.invoke("greet", "Ada", timeout=10) == "Hello, Ada!"
            assert await client.is_served("greet")
            process.terminate()
            assert await process.exited() == 0
            assert not await client.is_served("greet")


async def test_one_workflow_of_a_module_and_json(nats_server: NatsServer, tmp_path: Path) -> None:
    async with processing(tmp_path, nats_server.url, "flows:greet", "--json") as process:
        assert json.loads(await process.line("{")) == {"event": "ready", "workflows": ["greet"]}


async def test_sigterm_finishes_the_step_that_is_executing(nats_server: NatsServer, tmp_path: Path) -> None:
    async with processing(tmp_path, nats_server.url, "flows") as process, Client.connect(nats_server.url) as client:
        await process.ready()
        handle = await client.start("slow", id="x")
        await process.line("begun")
        process.terminate()
        while await client.is_served("slow"):
            assert process.exit_code is None
        assert process.exit_code is None
        Gate(tmp_path, "slow").open()
        assert await process.exited() == 0
        async with processing(tmp_path, nats_server.url, "flows") as other:
            await other.ready()
            assert await handle.result(timeout=20) == "done"
            assert other.stdout.count("begun") <= 1


async def test_a_second_signal_ends_it_at_once(nats_server: NatsServer, tmp_path: Path) -> None:
    async with processing(tmp_path, nats_server.url, "flows") as process, Client.connect(nats_server.url) as client:
        await process.ready()
        await client.start("slow")
        await process.line("begun")
        process.signal(signal.SIGINT)
        process.signal(signal.SIGTERM)
        assert await process.exited(timeout=5) not in (0, None)


@pytest.mark.parametrize(
    ("source", "argument", "said"),
    [
        ("x = 1", "flows", "no workflow in flows"),
        ("raise RuntimeError('broken module')", "flows", "broken module"),
        (FLOWS, "flows:slowly", "no workflow in flows:slowly"),
        (FLOWS, "flows:nothing", "no attribute 'nothing'"),
        (FLOWS, "missing", "no module 'missing'"),
        (FLOWS + "\n@workflow(name='greet')\nasync def other(ctx): ...\n", "flows", "two workflows are called 'greet'"),
    ],
)
async def test_a_module_that_gives_no_workflows_is_exit_2(
    nats_server: NatsServer, tmp_path: Path, source: str, argument: str, said: str
) -> None:
    async with processing(tmp_path, nats_server.url, argument, source=source) as process:
        assert await process.exited() == 2
        assert said in process.stderr


async def test_missing_streams_that_it_may_not_make_are_exit_1_and_name_mesh_init(tmp_path: Path) -> None:
    from tests.kit.server import NatsServer

    async with NatsServer(tmp_path / "nats", extra=ROLES) as server:
        arguments = ("flows", "--user", "processor", "--password", "secret")
        async with processing(tmp_path, server.url, *arguments) as process:
            assert await process.exited() == 1
            assert "KV_EXECUTION_STATE is missing" in process.stderr
            assert "mesh init" in process.stderr
            assert "Traceback" not in process.stderr


async def test_without_a_server_it_keeps_trying_unless_told(tmp_path: Path, nats_server: NatsServer) -> None:
    url = nats_server.url
    await nats_server.astop()
    async with processing(tmp_path, url, "flows") as process:
        await until(lambda: "no connection to" in process.stderr, what="an attempt that fails")
        await nats_server.astart()
        await process.ready()
    await nats_server.astop()
    async with processing(tmp_path, url, "flows", "--connect-timeout", "300ms") as process:
        assert await process.exited() == 6
