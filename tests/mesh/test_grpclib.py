"""grpclib's and betterproto's stubs and servicers, with google's and betterproto's messages (U17)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import betterproto2
import grpc
import grpclib
import pytest
from betterproto2.grpclib import ServiceBase, ServiceStub
from grpclib.client import UnaryStreamMethod, UnaryUnaryMethod
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.metadata import Deadline

import mesh
from protos.hello_pb2 import HelloRequest, HelloResponse
from tests.mesh.hello import SUBJECT, serving, stub

Code = grpc.StatusCode
PATH = "/hello.HelloService/SayHello"


# What grpclib's plugin generates.
class GrpclibStub:
    def __init__(self, channel: Any) -> None:
        self.SayHello = UnaryUnaryMethod(channel, PATH, HelloRequest, HelloResponse)
        self.Many = UnaryStreamMethod(channel, "/hello.HelloService/Many", HelloRequest, HelloResponse)


class GrpclibService:
    """Served by grpclib."""

    async def SayHello(self, stream: Any) -> None:
        message = await stream.recv_message()
        assert await stream.recv_message() is None
        match message.name:
            case "error":
                raise GRPCError(Status.NOT_FOUND, "no such")
            case "nothing":
                return
            case "sleep":
                await asyncio.sleep(30)
            case "trailers":
                await stream.send_initial_metadata(metadata={"i": "1"})
                await stream.send_message(HelloResponse(message=repr(sorted(stream.metadata.items()))))
                await stream.send_trailing_metadata(metadata=[("t", "1"), ("t", "2")])
                return
            case "deadline":
                await stream.send_message(HelloResponse(message=str(stream.deadline.time_remaining() > 1)))
                return
        await stream.send_message(HelloResponse(message=f"Hello, {message.name}!"))

    async def Many(self, stream: Any) -> None:
        """Never reached."""

    def __mapping__(self) -> dict[str, Handler]:
        return {
            PATH: Handler(self.SayHello, Cardinality.UNARY_UNARY, HelloRequest, HelloResponse),
            "/hello.HelloService/Many": Handler(self.Many, Cardinality.UNARY_STREAM, HelloRequest, HelloResponse),
        }


# What betterproto2's plugin generates.
@dataclass(eq=False, repr=False)
class BetterRequest(betterproto2.Message):
    name: str = betterproto2.field(1, betterproto2.TYPE_STRING)


@dataclass(eq=False, repr=False)
class BetterResponse(betterproto2.Message):
    message: str = betterproto2.field(1, betterproto2.TYPE_STRING)


class BetterStub(ServiceStub):
    async def say_hello(self, message: BetterRequest, **kwargs: Any) -> BetterResponse:
        return await self._unary_unary(PATH, message, BetterResponse, **kwargs)

    async def many(self, message: BetterRequest) -> AsyncIterator[BetterResponse]:
        async for response in self._unary_stream("/hello.HelloService/Many", message, BetterResponse):
            yield response


def better(m: mesh.Mesh, cluster: str | None = None, **options: Any) -> BetterStub:
    channel: Any = m.channel if cluster is None else m.channel.at(cluster)  # to mypy it is no grpclib.client.Channel
    return BetterStub(channel, **options)


class BetterService(ServiceBase):
    """Served by betterproto."""

    async def say_hello(self, message: BetterRequest) -> BetterResponse:
        if message.name == "error":
            raise grpclib.GRPCError(grpclib.const.Status.ABORTED, "better")
        return BetterResponse(message=f"Hello, {message.name}!")

    async def _rpc_say_hello(self, stream: Any) -> None:
        await stream.send_message(await self.say_hello(await stream.recv_message()))

    def __mapping__(self) -> dict[str, Handler]:
        return {PATH: Handler(self._rpc_say_hello, Cardinality.UNARY_UNARY, BetterRequest, BetterResponse)}


@pytest.fixture(params=[GrpclibService, BetterService])
async def served(request: pytest.FixtureRequest, m: mesh.Mesh) -> AsyncIterator[mesh.Server]:
    server = mesh.Server(m)
    server.add(request.param())
    await server.start()
    yield server
    await server.stop(None)


@pytest.fixture
async def grpclib_served(m: mesh.Mesh) -> AsyncIterator[mesh.Server]:
    server = mesh.Server(m)
    server.add(GrpclibService())
    await server.start()
    yield server
    await server.stop(None)


async def test_every_stub_calls_every_servicer(served: mesh.Server, caller: mesh.Mesh) -> None:
    of_grpclib = await GrpclibStub(caller.channel).SayHello(HelloRequest(name="g"), timeout=2)
    of_betterproto = await better(caller).say_hello(BetterRequest(name="b"), timeout=2)
    of_grpcio = await stub(caller).SayHello(HelloRequest(name="c"))
    assert [reply.message for reply in (of_grpclib, of_betterproto, of_grpcio)] == [
        "Hello, g!",
        "Hello, b!",
        "Hello, c!",
    ]


async def test_their_stubs_call_grpcio_servicers_also_in_another_cluster(m: mesh.Mesh, caller: mesh.Mesh) -> None:
    async with serving(m, cluster="eu"):
        assert (await better(caller).say_hello(BetterRequest(name="b"))).message == "Hello, b!"
        assert (await better(caller, "eu").say_hello(BetterRequest(name="b"))).message == "Hello, b!"


async def test_errors_are_both_libraries_errors(served: mesh.Server, caller: mesh.Mesh) -> None:
    for call in (
        lambda: GrpclibStub(caller.channel).SayHello(HelloRequest(name="error")),
        lambda: better(caller).say_hello(BetterRequest(name="error")),
    ):
        with pytest.raises(GRPCError) as caught:
            await call()
        assert isinstance(caught.value, mesh.RpcError)
        assert isinstance(caught.value, grpc.aio.AioRpcError)
        error: Any = caught.value
        assert (error.status.name, error.message) in {("NOT_FOUND", "no such"), ("ABORTED", "better")}
        assert error.code().name == error.status.name
        assert error.details() == error.message
        assert list(error.details) == []


async def test_nobody_there_and_deadline_are_their_errors(
    grpclib_served: mesh.Server, m: mesh.Mesh, caller: mesh.Mesh
) -> None:
    by_name = GrpclibStub(caller.channel)
    with pytest.raises(GRPCError) as caught:
        await by_name.SayHello(HelloRequest(name="sleep"), timeout=0.1)
    assert caught.value.status is Status.DEADLINE_EXCEEDED
    with pytest.raises(GRPCError) as caught:
        await better(caller, deadline=Deadline.from_timeout(0.1)).say_hello(BetterRequest(name="sleep"))
    assert caught.value.status is Status.DEADLINE_EXCEEDED
    await grpclib_served.stop(None)
    with pytest.raises(GRPCError) as caught:
        await by_name.SayHello(HelloRequest(name="x"))
    assert caught.value.status is Status.UNAVAILABLE


async def test_metadata_deadline_and_an_open_stream(grpclib_served: mesh.Server, caller: mesh.Mesh) -> None:
    by_name = GrpclibStub(caller.channel)
    sent: dict[str, str | bytes] = {"a": "1", "b-bin": b"\x00"}
    async with by_name.SayHello.open(metadata=sent) as stream:
        await stream.send_message(HelloRequest(name="trailers"), end=True)
        reply = await stream.recv_message()
        assert await stream.recv_message() is None
        await stream.recv_trailing_metadata()
    assert reply is not None
    assert reply.message == "[('a', '1'), ('b-bin', b'\\x00')]"
    assert dict(stream.initial_metadata or {}) == {"i": "1"}
    assert stream.trailing_metadata is not None
    assert stream.trailing_metadata.getall("t") == ["1", "2"]
    assert (await by_name.SayHello(HelloRequest(name="deadline"), timeout=5)).message == "True"


async def test_handler_that_sends_nothing_is_internal(grpclib_served: mesh.Server, caller: mesh.Mesh) -> None:
    with pytest.raises(GRPCError) as caught:
        await GrpclibStub(caller.channel).SayHello(HelloRequest(name="nothing"))
    assert caught.value.status is Status.INTERNAL


async def test_json_of_both_kinds_of_messages(served: mesh.Server, foreigner: Any) -> None:
    json_type = {"Content-Type": "application/json"}
    reply = await foreigner.request(SUBJECT, b'{"name": "J"}', headers=json_type)
    assert json.loads(reply.data) == {"message": "Hello, J!"}
    reply = await foreigner.request(SUBJECT, b'{"name": ', headers=json_type)
    assert json.loads(reply.data)["code"] == "INVALID_ARGUMENT"


async def test_cancelled_task_cancels_the_call(grpclib_served: mesh.Server, caller: mesh.Mesh) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(GrpclibStub(caller.channel).SayHello(HelloRequest(name="sleep")), 0.1)
    await caller.connection.round_trip()
    await asyncio.sleep(0.05)
    assert not grpclib_served._host.calls


async def test_mapping_that_is_none_is_refused(m: mesh.Mesh) -> None:
    class Wrong:
        def __mapping__(self) -> dict[str, Any]:
            return {PATH: "handler"}

    with pytest.raises(TypeError, match="Handler"):
        mesh.Server(m).add(Wrong())
