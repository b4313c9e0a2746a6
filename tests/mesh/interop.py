"""The servicer of gRPC's interoperability tests, and the same stub over grpc.aio and over the mesh."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

import mesh
from tests.mesh.protos import testing_pb2 as pb
from tests.mesh.protos import testing_pb2_grpc as stubs

INITIAL_KEY = "x-grpc-test-echo-initial"
TRAILING_KEY = "x-grpc-test-echo-trailing-bin"


async def echo_metadata(context: Any) -> None:
    """What the interoperability tests ask of a server: echo these two keys, every value."""
    sent = list(context.invocation_metadata() or ())
    initial = [(key, value) for key, value in sent if key == INITIAL_KEY]
    trailing = [(key, value) for key, value in sent if key == TRAILING_KEY]
    if initial:
        await context.send_initial_metadata(initial)
    if trailing:
        context.set_trailing_metadata(trailing)


async def echo_status(request: Any, context: Any) -> None:
    if request.HasField("response_status"):
        code = next(code for code in grpc.StatusCode if code.value[0] == request.response_status.code)
        if code is not grpc.StatusCode.OK:
            await context.abort(code, request.response_status.message)


class TestService(stubs.TestServiceServicer):
    """The TestService of gRPC's interoperability tests."""

    __test__ = False

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()

    async def EmptyCall(self, request: pb.Empty, context: Any) -> pb.Empty:
        return pb.Empty()

    async def UnaryCall(self, request: pb.SimpleRequest, context: Any) -> pb.SimpleResponse:
        await echo_metadata(context)
        await echo_status(request, context)
        return pb.SimpleResponse(payload=pb.Payload(body=bytes(request.response_size)))

    async def _outputs(self, request: Any, context: Any) -> AsyncIterator[pb.StreamingOutputCallResponse]:
        for parameters in request.response_parameters:
            if parameters.interval_us:
                await asyncio.sleep(parameters.interval_us / 1e6)
            yield pb.StreamingOutputCallResponse(payload=pb.Payload(body=bytes(parameters.size)))
        await echo_status(request, context)

    async def StreamingOutputCall(self, request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            await echo_metadata(context)
            async for response in self._outputs(request, context):
                yield response
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def StreamingInputCall(self, request_iterator: Any, context: Any) -> pb.StreamingInputCallResponse:
        size = 0
        try:
            await echo_metadata(context)
            async for request in request_iterator:
                size += len(request.payload.body)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return pb.StreamingInputCallResponse(aggregated_payload_size=size)

    async def FullDuplexCall(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        try:
            await echo_metadata(context)
            async for request in request_iterator:
                async for response in self._outputs(request, context):
                    yield response
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def HalfDuplexCall(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        requests = [request async for request in request_iterator]
        for request in requests:
            async for response in self._outputs(request, context):
                yield response

    async def UnimplementedCall(self, request: pb.Empty, context: Any) -> pb.Empty:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not implemented!")
        raise AssertionError


@asynccontextmanager
async def over_grpc(servicer: Any) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    stubs.add_TestServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


@asynccontextmanager
async def over_mesh(servicer: Any, m: mesh.Mesh, **options: Any) -> AsyncIterator[mesh.Server]:
    server = mesh.Server(m, **options)
    stubs.add_TestServiceServicer_to_server(servicer, server)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(None)


def outputs(*sizes: int, interval_us: int = 0, body: int = 0) -> pb.StreamingOutputCallRequest:
    return pb.StreamingOutputCallRequest(
        response_parameters=[pb.ResponseParameters(size=size, interval_us=interval_us) for size in sizes],
        payload=pb.Payload(body=bytes(body)),
    )


def inputs(*sizes: int) -> list[pb.StreamingInputCallRequest]:
    return [pb.StreamingInputCallRequest(payload=pb.Payload(body=bytes(size))) for size in sizes]
