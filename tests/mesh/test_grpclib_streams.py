"""grpclib's and betterproto's stubs and servicers with streams (U17): the same results as grpcio's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from betterproto2.grpclib import ServiceBase
from grpclib.client import StreamStreamMethod, StreamUnaryMethod, UnaryStreamMethod
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError

import mesh
from protos.hello_pb2 import HelloRequest, HelloResponse
from tests.mesh.test_grpclib import BetterRequest, BetterResponse, BetterStub

PATH = "/hello.Streams/"


class GrpclibStub:
    """What grpclib's plugin generates."""

    def __init__(self, channel: Any) -> None:
        self.Many = UnaryStreamMethod(channel, PATH + "Many", HelloRequest, HelloResponse)
        self.Join = StreamUnaryMethod(channel, PATH + "Join", HelloRequest, HelloResponse)
        self.Echo = StreamStreamMethod(channel, PATH + "Echo", HelloRequest, HelloResponse)


class GrpclibService:
    """Served by grpclib."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()

    async def Many(self, stream: Any) -> None:
        message = await stream.recv_message()
        await stream.send_initial_metadata(metadata={"i": "1"})
        for name in message.name.split():
            await stream.send_message(HelloResponse(message=name))
        if "error" in message.name:
            raise GRPCError(Status.NOT_FOUND, "no more")
        await stream.send_trailing_metadata(metadata={"t": "2"})

    async def Join(self, stream: Any) -> None:
        names = [message.name async for message in stream]
        await stream.send_message(HelloResponse(message="+".join(names)))

    async def Echo(self, stream: Any) -> None:
        try:
            async for message in stream:
                await stream.send_message(HelloResponse(message=message.name))
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    def __mapping__(self) -> dict[str, Handler]:
        return {
            PATH + "Many": Handler(self.Many, Cardinality.UNARY_STREAM, HelloRequest, HelloResponse),
            PATH + "Join": Handler(self.Join, Cardinality.STREAM_UNARY, HelloRequest, HelloResponse),
            PATH + "Echo": Handler(self.Echo, Cardinality.STREAM_STREAM, HelloRequest, HelloResponse),
        }


class BetterStreamsStub(BetterStub):
    """What betterproto2's plugin generates."""

    def words(self, message: BetterRequest) -> AsyncIterator[BetterResponse]:
        return self._unary_stream(PATH + "Many", message, BetterResponse)

    async def join(self, messages: Any) -> BetterResponse:
        return await self._stream_unary(PATH + "Join", messages, BetterRequest, BetterResponse)

    def echo(self, messages: Any) -> AsyncIterator[BetterResponse]:
        return self._stream_stream(PATH + "Echo", messages, BetterRequest, BetterResponse)


class BetterService(ServiceBase):
    """Served by betterproto."""

    async def many(self, message: BetterRequest) -> AsyncIterator[BetterResponse]:
        for name in message.name.split():
            yield BetterResponse(message=name)
        if "error" in message.name:
            raise GRPCError(Status.NOT_FOUND, "no more")

    async def _many(self, stream: Any) -> None:
        await self._call_rpc_handler_server_stream(self.many, stream, await stream.recv_message())

    async def _join(self, stream: Any) -> None:
        names = [message.name async for message in stream]
        await stream.send_message(BetterResponse(message="+".join(names)))

    async def _echo(self, stream: Any) -> None:
        async for message in stream:
            await stream.send_message(BetterResponse(message=message.name))

    def __mapping__(self) -> dict[str, Handler]:
        return {
            PATH + "Many": Handler(self._many, Cardinality.UNARY_STREAM, BetterRequest, BetterResponse),
            PATH + "Join": Handler(self._join, Cardinality.STREAM_UNARY, BetterRequest, BetterResponse),
            PATH + "Echo": Handler(self._echo, Cardinality.STREAM_STREAM, BetterRequest, BetterResponse),
        }


@pytest.fixture(params=[GrpclibService, BetterService])
async def served(request: pytest.FixtureRequest, m: mesh.Mesh) -> AsyncIterator[mesh.Server]:
    server = mesh.Server(m)
    server.add(request.param())
    await server.start()
    yield server
    await server.stop(None)


@pytest.fixture
async def grpclib_service(m: mesh.Mesh) -> AsyncIterator[GrpclibService]:
    server, service = mesh.Server(m), GrpclibService()
    server.add(service)
    await server.start()
    yield service
    await server.stop(None)


def better(m: mesh.Mesh) -> BetterStreamsStub:
    channel: Any = m.channel
    return BetterStreamsStub(channel)


def requests(*names: str) -> list[HelloRequest]:
    return [HelloRequest(name=name) for name in names]


async def better_requests(*names: str) -> AsyncIterator[BetterRequest]:
    for name in names:
        yield BetterRequest(name=name)


async def test_every_stub_streams_with_every_servicer(served: mesh.Server, caller: mesh.Mesh) -> None:
    by_grpclib, by_better, by_grpcio = GrpclibStub(caller.channel), better(caller), caller.channel
    assert [reply.message for reply in await by_grpclib.Many(HelloRequest(name="a b c"), timeout=2)] == ["a", "b", "c"]
    assert [reply.message async for reply in by_better.words(BetterRequest(name="a b c"))] == ["a", "b", "c"]
    raw = by_grpcio.unary_stream(PATH + "Many", HelloRequest.SerializeToString, HelloResponse.FromString)
    assert [reply.message async for reply in raw(HelloRequest(name="a b c"))] == ["a", "b", "c"]
    joined = await by_grpclib.Join(requests("a", "b"))
    assert joined is not None
    assert joined.message == "a+b"
    assert (await by_better.join(better_requests("a", "b"))).message == "a+b"
    assert [reply.message for reply in await by_grpclib.Echo(requests("x", "y"))] == ["x", "y"]
    assert [reply.message async for reply in by_better.echo(better_requests("x", "y"))] == ["x", "y"]
    assert (await by_grpclib.Join([])) == HelloResponse()
    assert not caller._caller.streams


async def test_errors_after_messages_are_both_libraries_errors(served: mesh.Server, caller: mesh.Mesh) -> None:
    got = []

    async def read() -> None:
        async for reply in better(caller).words(BetterRequest(name="a error")):
            got.append(reply.message)  # noqa: PERF401  # kept over the error

    with pytest.raises(GRPCError, match="no more") as caught:
        await read()
    assert (got, caught.value.status) == (["a", "error"], Status.NOT_FOUND)
    assert isinstance(caught.value, mesh.RpcError)
    with pytest.raises(GRPCError):
        await GrpclibStub(caller.channel).Many(HelloRequest(name="a error"))
    with pytest.raises(GRPCError) as caught:
        await UnaryStreamMethod(caller.channel, "/hello.Nobody/Many", HelloRequest, HelloResponse)(  # type: ignore[arg-type]  # the channel is ours
            HelloRequest(name="a")
        )
    assert caught.value.status is Status.UNAVAILABLE


async def test_an_open_stream_has_metadata_and_is_cancelled(grpclib_service: GrpclibService, caller: mesh.Mesh) -> None:
    stub = GrpclibStub(caller.channel)
    async with stub.Many.open() as stream:
        await stream.send_message(HelloRequest(name="a"), end=True)
        await stream.recv_initial_metadata()
        assert dict(stream.initial_metadata or {}) == {"i": "1"}
        assert [reply.message async for reply in stream] == ["a"]
        await stream.recv_trailing_metadata()
    assert dict(stream.trailing_metadata or {}) == {"t": "2"}
    async with stub.Echo.open() as echo:
        await echo.send_message(HelloRequest(name="a"))
        assert (await echo.recv_message() or HelloResponse()).message == "a"
        await echo.cancel()
    await asyncio.wait_for(grpclib_service.cancelled.wait(), 1)
    grpclib_service.cancelled.clear()
    async with stub.Echo.open() as echo:  # left without an end: nobody wants it any more
        await echo.send_message(HelloRequest(name="a"))
        await echo.recv_message()
    await asyncio.wait_for(grpclib_service.cancelled.wait(), 1)
