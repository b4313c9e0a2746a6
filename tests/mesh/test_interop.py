"""gRPC's interoperability tests, each over grpc.aio, which gives the expected value, and over the mesh.

Names are those of grpc's doc/interop-test-descriptions.md.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest

import mesh
from tests.mesh.interop import (
    INITIAL_KEY,
    TRAILING_KEY,
    TestService,
    inputs,
    outputs,
    over_grpc,
    over_mesh,
)
from tests.mesh.protos import testing_pb2 as pb
from tests.mesh.protos import testing_pb2_grpc as stubs

Code = grpc.StatusCode
REQUESTS = (27182, 8, 1828, 45904)
RESPONSES = (31415, 9, 2653, 58979)


@dataclass
class Peer:
    """A served TestService and a channel to it."""

    stub: Any
    channel: Any
    service: TestService
    is_mesh: bool

    async def handler_is_cancelled(self) -> None:
        """K1: within 200 ms. grpc.aio's handler is left alone: it does not always see it."""
        if self.is_mesh:
            await asyncio.wait_for(self.service.cancelled.wait(), 0.2)


@pytest.fixture(params=["grpc", "mesh"])
async def peer(request: pytest.FixtureRequest, m: mesh.Mesh, caller: mesh.Mesh) -> AsyncIterator[Peer]:
    service = TestService()
    if request.param == "grpc":
        async with over_grpc(service) as channel:
            yield Peer(stubs.TestServiceStub(channel), channel, service, is_mesh=False)
    else:
        async with over_mesh(service, m) as server:
            yield Peer(stubs.TestServiceStub(caller.channel), caller.channel, service, is_mesh=True)
            await asyncio.sleep(0)
            assert not caller._caller.streams
        assert not server._host.sessions


async def failure(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_empty_unary(peer: Peer) -> None:
    assert await peer.stub.EmptyCall(pb.Empty()) == pb.Empty()


async def test_large_unary(peer: Peer) -> None:
    request = pb.SimpleRequest(response_size=314159, payload=pb.Payload(body=bytes(271828)))
    response = await peer.stub.UnaryCall(request)
    assert len(response.payload.body) == 314159


async def test_unary_up_to_four_mib(peer: Peer) -> None:
    """U1, U2: as large as gRPC's limit allows, in pieces where `max_payload` is smaller."""
    size = 4_194_304 - 20
    assert len((await peer.stub.UnaryCall(pb.SimpleRequest(response_size=size))).payload.body) == size
    request = pb.SimpleRequest(response_size=size, payload=pb.Payload(body=bytes(size)))
    assert len((await peer.stub.UnaryCall(request, timeout=10)).payload.body) == size
    for too_large in (
        pb.SimpleRequest(response_size=4_194_304),
        pb.SimpleRequest(payload=pb.Payload(body=bytes(4_194_304))),
    ):
        error = await failure(peer.stub.UnaryCall(too_large))
        assert (error.code(), "4194304" in error.details()) == (Code.RESOURCE_EXHAUSTED, True)
    assert await peer.stub.EmptyCall(pb.Empty()) == pb.Empty()


async def test_client_streaming(peer: Peer) -> None:
    response = await peer.stub.StreamingInputCall(iter(inputs(*REQUESTS)))
    assert response.aggregated_payload_size == 74922
    call = peer.stub.StreamingInputCall()
    for request in inputs(*REQUESTS):
        await call.write(request)
    await call.done_writing()
    assert (await call).aggregated_payload_size == 74922
    assert await call.code() is Code.OK
    assert (await peer.stub.StreamingInputCall(iter(()))).aggregated_payload_size == 0


async def test_server_streaming(peer: Peer) -> None:
    call = peer.stub.StreamingOutputCall(outputs(*RESPONSES))
    assert [len(response.payload.body) async for response in call] == list(RESPONSES)
    assert (await call.code(), call.done(), call.cancelled()) == (Code.OK, True, False)
    call = peer.stub.StreamingOutputCall(outputs(*RESPONSES))
    got = []
    while (response := await call.read()) is not grpc.aio.EOF:
        got.append(len(response.payload.body))
    assert got == list(RESPONSES)
    assert await call.read() is grpc.aio.EOF


async def test_ping_pong(peer: Peer) -> None:
    call = peer.stub.FullDuplexCall()
    for request_size, response_size in zip(REQUESTS, RESPONSES, strict=True):
        await call.write(outputs(response_size, body=request_size))
        assert len((await call.read()).payload.body) == response_size
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is Code.OK


async def test_empty_stream(peer: Peer) -> None:
    call = peer.stub.FullDuplexCall()
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is Code.OK
    assert [_ async for _ in peer.stub.StreamingOutputCall(outputs())] == []


async def test_half_duplex(peer: Peer) -> None:
    """U12."""
    call = peer.stub.HalfDuplexCall(iter([outputs(1), outputs(2, 3)]))
    assert [len(response.payload.body) async for response in call] == [1, 2, 3]


async def test_an_async_iterator_of_requests(peer: Peer) -> None:
    async def requests() -> AsyncIterator[Any]:
        for size in RESPONSES:
            yield outputs(size)

    call = peer.stub.FullDuplexCall(requests())
    assert [len(response.payload.body) async for response in call] == list(RESPONSES)


async def test_custom_metadata(peer: Peer) -> None:
    """MD1, MD2: unary and streams, text and bytes, several values of a key in their order."""
    sent = [
        (INITIAL_KEY, "test_initial_metadata_value"),
        (INITIAL_KEY, "second, with a comma"),
        (TRAILING_KEY, b"\xab\xab\xab"),
        (TRAILING_KEY, b""),
    ]
    calls: list[Any] = [
        peer.stub.UnaryCall(pb.SimpleRequest(response_size=1), metadata=sent),
        peer.stub.StreamingOutputCall(outputs(1), metadata=sent),
        peer.stub.StreamingInputCall(iter(inputs(1)), metadata=sent),
        peer.stub.FullDuplexCall(iter([outputs(1)]), metadata=sent),
    ]
    for call in calls:
        assert [pair for pair in await call.initial_metadata() if pair[0] == INITIAL_KEY] == sent[:2]
        if hasattr(call, "__aiter__"):
            assert [len(response.payload.body) async for response in call] == [1]
        else:
            await call
        assert [pair for pair in await call.trailing_metadata() if pair[0] == TRAILING_KEY] == sent[2:]


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK], ids=lambda code: code.name)
async def test_status_code_and_message(peer: Peer, code: Code) -> None:
    """U3, and special_status_message."""
    text = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"
    status = pb.EchoStatus(code=code.value[0], message=text)
    error = await failure(peer.stub.UnaryCall(pb.SimpleRequest(response_status=status)))
    assert (error.code(), error.details()) == (code, text)
    call = peer.stub.FullDuplexCall()
    await call.write(pb.StreamingOutputCallRequest(response_status=status))
    await call.done_writing()
    error = await failure(call.read())
    assert (error.code(), error.details()) == (code, text)
    assert (await call.code(), await call.details()) == (code, text)


async def test_error_after_responses(peer: Peer) -> None:
    """U5: two messages, then the error, with metadata and details."""
    request = outputs(7, 8)
    request.response_status.code, request.response_status.message = 9, "after two"
    call = peer.stub.StreamingOutputCall(request, metadata=[(INITIAL_KEY, "i"), (TRAILING_KEY, b"t")])
    assert [len((await call.read()).payload.body) for _ in range(2)] == [7, 8]
    error = await failure(call.read())
    assert (error.code(), error.details()) == (Code.FAILED_PRECONDITION, "after two")
    assert (INITIAL_KEY, "i") in list(error.initial_metadata())
    assert (TRAILING_KEY, b"t") in list(error.trailing_metadata())


async def test_unimplemented_method(peer: Peer) -> None:
    began = time.monotonic()
    assert (await failure(peer.stub.UnimplementedCall(pb.Empty()))).code() is Code.UNIMPLEMENTED
    nope = peer.channel.unary_stream("/grpc.testing.TestService/Nope")
    assert (await failure(nope(b"").read())).code() is Code.UNIMPLEMENTED
    assert time.monotonic() - began < 0.2


async def test_unimplemented_service(peer: Peer) -> None:
    """U6: on the mesh nobody is there, which is UNAVAILABLE."""
    error = await failure(stubs.UnimplementedServiceStub(peer.channel).UnimplementedCall(pb.Empty()))
    assert error.code() is (Code.UNAVAILABLE if peer.is_mesh else Code.UNIMPLEMENTED)
    began = time.monotonic()
    nobody = peer.channel.stream_stream("/grpc.testing.UnimplementedService/Nope")
    assert (await failure(nobody().read())).code() is error.code()
    assert time.monotonic() - began < 0.1


async def test_cancel_after_begin(peer: Peer) -> None:
    call = peer.stub.StreamingInputCall()
    await asyncio.sleep(0.05)
    ended: list[Any] = []
    call.add_done_callback(ended.append)
    assert call.cancel()
    assert not call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (await call.code(), call.cancelled(), call.done()) == (Code.CANCELLED, True, True)
    await peer.handler_is_cancelled()
    assert ended == [call]


async def test_cancel_after_first_response(peer: Peer) -> None:
    call = peer.stub.FullDuplexCall()
    await call.write(outputs(31415))
    assert len((await call.read()).payload.body) == 31415
    began = time.monotonic()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call.read()
    assert await call.code() is Code.CANCELLED
    await peer.handler_is_cancelled()
    assert time.monotonic() - began < 0.25


async def test_cancelling_the_reading_task_cancels_the_call(peer: Peer) -> None:
    call = peer.stub.FullDuplexCall()
    await call.write(outputs(1))
    await call.read()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(call.read(), 0.05)
    assert call.cancelled()
    await peer.handler_is_cancelled()


async def test_timeout_on_sleeping_server(peer: Peer) -> None:
    """D1: caller and handler end at the deadline."""
    call = peer.stub.FullDuplexCall(timeout=0.2)
    began = time.monotonic()
    await call.write(outputs(1, interval_us=1_500_000))
    error = await failure(call.read())
    assert error.code() is Code.DEADLINE_EXCEEDED
    assert 0.19 <= time.monotonic() - began < 0.35
    await peer.handler_is_cancelled()


async def test_what_a_call_object_refuses(peer: Peer) -> None:
    call = peer.stub.FullDuplexCall(iter(()))
    with pytest.raises(grpc.aio.UsageError):
        await call.write(outputs(1))
    assert await call.read() is grpc.aio.EOF
    with pytest.raises(grpc.aio.UsageError):
        _ = [_ async for _ in call]
    call = peer.stub.FullDuplexCall()
    await call.done_writing()
    with pytest.raises(asyncio.InvalidStateError):
        await call.write(outputs(1))
    assert await call.read() is grpc.aio.EOF
    with pytest.raises(asyncio.InvalidStateError):
        await call.write(outputs(1))


async def test_an_iterator_of_requests_that_raises_cancels_the_call(peer: Peer) -> None:
    async def requests() -> AsyncIterator[Any]:
        yield outputs(1)
        raise RuntimeError("mine")

    call = peer.stub.FullDuplexCall(requests())
    with pytest.raises(asyncio.CancelledError):
        _ = [response async for response in call]
    assert await call.code() is Code.CANCELLED


async def test_large_messages_in_streams(peer: Peer) -> None:
    sizes = [3_000_000, 0, 1, 4_000_000]
    call = peer.stub.FullDuplexCall()
    for size in sizes:
        await call.write(outputs(size, body=size))
        assert len((await call.read()).payload.body) == size
    await call.write(outputs(1, 4_194_304))
    assert len((await call.read()).payload.body) == 1
    error = await failure(call.read())
    assert error.code() is Code.RESOURCE_EXHAUSTED or not peer.is_mesh  # some versions of grpc.aio say CANCELLED
    assert await peer.stub.EmptyCall(pb.Empty()) == pb.Empty()


async def test_unconstrained_concurrency(peer: Peer) -> None:
    async def ping_pong() -> list[int]:
        call = peer.stub.FullDuplexCall()
        got = []
        for size in (1, 2, 3, 4):
            await call.write(outputs(size))
            got.append(len((await call.read()).payload.body))
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        return got

    assert await asyncio.gather(*(ping_pong() for _ in range(200))) == [[1, 2, 3, 4]] * 200
