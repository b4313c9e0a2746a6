"""Streams through what lies between clusters: account imports, leafnodes, users that may do little."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import grpc
import grpc.aio
import pytest

import mesh
from mesh.localserver import LocalServer
from tests.mesh.test_streams import SERVICE, Handlers, failure, serving, until

Code = grpc.StatusCode

ACCOUNTS = """
accounts {
  SVC: {
    users: [{user: svc, password: s, permissions: {
      subscribe: ["svc.>", "$SRV.>", "_INBOX.>"],
      publish: {allow: ["_INBOX.>"]},
      allow_responses: {max: -1, expires: "1m"}
    }}]
    exports: [{service: "svc.>", response_type: stream}]
  }
  APP: {
    users: [{user: app, password: a, permissions: {publish: ["partner.svc.>", "_INBOX.>"], subscribe: "_INBOX.>"}}]
    imports: [{service: {account: SVC, subject: "svc.>"}, to: "partner.svc.>"}]
  }
}
"""


async def talk(caller: mesh.Mesh, frames: int = 500) -> None:
    """Everything that crosses: echoes in order, large messages, a long stream, a cancellation."""
    call = caller.channel.stream_stream(f"/{SERVICE}/Echo")()
    for n in range(frames):
        await call.write(b"%d" % n)
        assert await call.read() == b"%d" % n
    await call.write(bytes(3_000_000))
    assert len(await call.read()) == 3_000_000
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    counted = caller.channel.unary_stream(f"/{SERVICE}/Count")(b"5000 1000")
    assert [int.from_bytes(answer[:4], "big") async for answer in counted] == list(range(5000))
    unary: Any = caller.channel.unary_unary(f"/{SERVICE}/Unary")
    assert len(await unary(bytes(3_000_000))) == 3_000_000


async def test_through_an_account_import_with_another_prefix_and_restricted_users() -> None:
    handlers = Handlers()
    with LocalServer(relaxed_sync=True, jetstream=False, config=ACCOUNTS) as server:
        async with (
            mesh.connect(server.url, user="svc", password="s") as m,
            mesh.connect(server.url, user="app", password="a", prefix="partner.svc", keepalive=1.0) as caller,
            serving(m, handlers) as served,
        ):
            await talk(caller)
            call = caller.channel.stream_stream(f"/{SERVICE}/Echo")()
            await call.write(b"x")
            assert await call.read() == b"x"
            await asyncio.sleep(1.2)  # longer than the keepalive: signs of life cross, too
            await call.write(b"y")
            assert await call.read() == b"y"
            call.cancel()
            await asyncio.wait_for(handlers.cancelled.wait(), 1)
            await until(lambda: not served._host.sessions)


async def test_over_a_leafnode() -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    hub_config = f'leafnodes {{ listen: "127.0.0.1:{port}" }}'
    leaf_config = f'leafnodes {{ remotes: [{{url: "nats-leaf://127.0.0.1:{port}"}}] }}'
    with (
        LocalServer(relaxed_sync=True, jetstream=False, config=hub_config) as hub,
        LocalServer(relaxed_sync=True, jetstream=False, config=leaf_config) as leaf,
    ):
        async with mesh.connect(leaf.url) as m, mesh.connect(hub.url) as caller, serving(m, Handlers()):
            ready: Any = caller.channel.unary_unary(f"/{SERVICE}/Unary")
            assert await ready(b"x", wait_for_ready=True, timeout=10) == b"x"
            await talk(caller)


async def test_a_user_that_may_not_call_is_told_so() -> None:
    config = """
    authorization { users: [
      {user: svc, password: s},
      {user: app, password: a, permissions: {publish: {deny: "svc.tests.>"}}}
    ] }
    """
    with LocalServer(relaxed_sync=True, jetstream=False, config=config) as server:
        async with (
            mesh.connect(server.url, user="svc", password="s") as m,
            mesh.connect(server.url, user="app", password="a") as caller,
            serving(m, Handlers()),
        ):
            error = await failure(caller.channel.unary_stream(f"/{SERVICE}/Count")(b"1 4").read())
            assert error.code() is Code.PERMISSION_DENIED
            assert f"svc.{SERVICE}.Count" in (error.details() or "")


@pytest.mark.parametrize("count", [300])
async def test_many_streams_of_large_messages_have_nobody_cut_off(m: mesh.Mesh, caller: mesh.Mesh, count: int) -> None:
    """The server cuts off whoever has 64 MB waiting: readers say how far ahead their writers may be."""

    async def many(_request: bytes, _context: Any) -> Any:
        for _ in range(2):
            yield bytes(400_000)

    states: list[str] = []
    for connection in (m.connection, caller.connection):
        connection.on_state(states.append)
    async with serving(m, {"Many": grpc.unary_stream_rpc_method_handler(many)}):

        async def read() -> int:
            call = caller.channel.unary_stream(f"/{SERVICE}/Many")(b"")
            return sum([len(answer) async for answer in call])

        assert await asyncio.gather(*(read() for _ in range(count))) == [800_000] * count
    assert states == []
