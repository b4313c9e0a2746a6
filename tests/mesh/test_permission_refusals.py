"""What the NATS server refuses is said, by subject, within a second (M-H5)."""

from __future__ import annotations

import time
from collections.abc import Iterator

import grpc
import pytest

import mesh
from mesh.discovery import discover
from mesh.localserver import LocalServer
from protos.hello_pb2_grpc import add_HelloServiceServicer_to_server
from tests.mesh.hello import SUBJECT, HelloService, request, serving, stub

Code = grpc.StatusCode


@pytest.fixture(scope="module")
def restricted() -> Iterator[str]:
    """Users of one account that may do little."""
    config = """
    authorization { users: [
      {user: all, password: p}
      {user: nothing, password: p, permissions: {publish: ["_INBOX.>"], subscribe: ["_INBOX.>"]}}
      {user: method, password: p, permissions: {
        publish: ["svc.hello.HelloService.SayHello", "_INBOX.>"], subscribe: ["_INBOX.>"]}}
      {user: half, password: p, permissions: {
        publish: [">"], subscribe: ["_INBOX.>", "$SRV.>", "svc.hello.HelloService._mesh.>"]}}
    ] }
    """
    with LocalServer(relaxed_sync=True, jetstream=False, config=config) as server:
        yield server.url


def connect(url: str, user: str) -> mesh.facade.Connecting:
    return mesh.connect(url, user=user, password="p")


async def test_call_that_may_not_be_published_is_permission_denied(restricted: str) -> None:
    async with connect(restricted, "all") as m, serving(m), connect(restricted, "nothing") as caller:
        for timeout in (None, 5):
            began = time.monotonic()
            with pytest.raises(mesh.RpcError) as caught:
                await stub(caller).SayHello(request(), timeout=timeout)
            assert time.monotonic() - began < 1
            assert caught.value.code() is Code.PERMISSION_DENIED
            assert SUBJECT in (caught.value.details() or "")
        with pytest.raises(mesh.PermissionDeniedError):
            await discover(caller.connection)


async def test_user_of_one_method_needs_no_other_right(restricted: str) -> None:
    """Also where nobody is there, and the mesh may not ask whether the service is."""
    async with connect(restricted, "method") as caller:
        began = time.monotonic()
        with pytest.raises(mesh.RpcError) as caught:
            await stub(caller).SayHello(request())
        assert (caught.value.code(), time.monotonic() - began < 0.5) == (Code.UNAVAILABLE, True)
        async with connect(restricted, "all") as m, serving(m):
            assert (await stub(caller).SayHello(request())).message == "Hello, World!"


async def test_server_that_may_not_subscribe_does_not_start(restricted: str) -> None:
    async with connect(restricted, "half") as m, connect(restricted, "all") as caller:
        server = mesh.Server(m)
        add_HelloServiceServicer_to_server(HelloService(), server)
        with pytest.raises(mesh.PermissionDeniedError, match="subscribe") as caught:
            await server.start()
        assert caught.value.subject.startswith("svc.hello.HelloService.")
        assert await discover(caller.connection) == [], "nothing is left of it"
