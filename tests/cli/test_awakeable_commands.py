"""`mesh awakeable`: what scripts can rely on."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from engine import Client
from engine.cli.awakeable import command
from engine.names import awakeable_id
from mesh.cli import cli
from tests.cli.commands import mesh

if TYPE_CHECKING:
    from click.testing import Result

    from tests.kit.raw import Raw
    from tests.kit.server import NatsServer


cli.add_command(command)  # so that it is found where the package was installed before it had this command


async def awakeable(server: NatsServer, *arguments: str, **extra: Any) -> Result:
    return await asyncio.to_thread(mesh, server.url, "awakeable", *arguments, **extra)


async def test_the_first_value_counts_and_the_second_is_told_so(nats_server: NatsServer, raw: Raw) -> None:
    async with Client.connect(nats_server.url) as client:
        handle = await client.start("greet", "x")
    queued = await raw.command(handle.id)
    assert queued is not None
    first = awakeable_id(handle.id, queued.headers["Mesh-Incarnation"], 0)
    second = awakeable_id(handle.id, queued.headers["Mesh-Incarnation"], 1)
    done = await awakeable(nats_server, "resolve", first, '{"ok": true}', "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"awakeable_id": first, "status": "resolved"})
    again = await awakeable(nats_server, "reject", first, "no")
    assert (again.exit_code, again.stdout) == (4, "")
    assert (await awakeable(nats_server, "reject", second, "no")).stdout == "rejected\n"
    stored = await raw.controls(handle.id)
    assert [json.loads(control.data) if control.data else None for control in stored] == [{"ok": True}, None]
    assert stored[1].headers["Nats-Service-Error"] == "no"


async def test_an_unknown_id_and_a_malformed_one(nats_server: NatsServer) -> None:
    assert (await awakeable(nats_server, "resolve", "nobody")).exit_code == 3
    assert (await awakeable(nats_server, "resolve", "a.b")).exit_code == 2
