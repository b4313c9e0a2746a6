"""The real `nats` command against our services: `nats micro ls|info|stats|ping`, and requests by hand."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator

import pytest

import mesh
from protos.hello_pb2 import HelloResponse
from tests.mesh.hello import SERVICE, SUBJECT, request, serving, stub

NATS = shutil.which("nats")


@pytest.fixture(autouse=True)
def _command() -> None:
    if NATS is None:
        pytest.skip(
            "NOT TESTED: the nats command is not installed, so nothing here shows that it understands us; "
            "install it by: go install github.com/nats-io/natscli/nats@v0.5.0"
        )


@pytest.fixture
async def served(m: mesh.Mesh) -> AsyncIterator[mesh.Server]:
    async with serving(m) as server:
        await stub(m).SayHello(request())
        yield server


async def nats(url: str, *arguments: str) -> str:
    """Run the command; its output, once it ended well."""
    process = await asyncio.create_subprocess_exec(
        *(str(NATS), "--server", url, "--timeout", "2s", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_micro_ls_lists_us_as_valid(url: str, served: mesh.Server) -> None:
    assert re.search(rf"HelloService\W+0\.0\.0\W+{served.services[0].id}\W+Greets\.", await nats(url, "micro", "ls"))
    (info,) = json.loads(await nats(url, "micro", "ls", "--json"))
    assert (info["id"], info["metadata"]["proto.service"]) == (served.services[0].id, SERVICE)


async def test_micro_info_shows_endpoints_and_metadata(url: str, served: mesh.Server) -> None:
    text = await nats(url, "micro", "info", "HelloService")
    for expected in (f"Subject: {SUBJECT}", "Queue Group: q", "proto.request: hello.HelloRequest", "Requests: 1"):
        assert expected in text
    document = json.loads(await nats(url, "micro", "info", "HelloService", served.services[0].id, "--json"))
    assert document["info"]["endpoints"][0]["name"] == "SayHello"
    assert document["stats"]["endpoints"][0]["num_requests"] == 1


async def test_micro_stats_and_ping_see_every_instance(url: str, served: mesh.Server) -> None:
    async with mesh.connect(url) as other, serving(other) as second:
        ids = {served.services[0].id, second.services[0].id}
        stats = await nats(url, "micro", "stats", "HelloService")
        ping = await nats(url, "micro", "ping", "HelloService")
        for id_ in ids:
            assert id_ in stats
            assert id_ in ping


async def test_micro_request_and_req_reach_the_method(url: str, served: mesh.Server) -> None:
    greeting = HelloResponse(message="Hello, !").SerializeToString().decode()
    assert greeting in await nats(url, "micro", "request", "HelloService", "SayHello", "")
    output = await nats(url, "req", SUBJECT, '{"name": "Hand"}', "-H", "Content-Type: application/json", "--raw")
    assert json.loads(output) == {"message": "Hello, Hand!"}
    output = await nats(url, "req", SUBJECT, '{"nme": 1}', "-H", "Content-Type: application/json")
    assert "Nats-Service-Error-Code: 400" in output
