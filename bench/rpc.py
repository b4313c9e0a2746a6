"""One unary call, three ways: bare nats-py `request`, grpc.aio, and a generated stub on `m.channel`.

    python -m bench.rpc floor-service|floor-client|grpc-service|grpc-client|mesh-service|mesh-client ADDRESS

The floor sends the same protobuf bytes, without headers, uvloop on both ends, the service in a process of its own.
"""

from __future__ import annotations

import sys
from typing import Any

import grpc
import nats
from nats.aio.msg import Msg

import mesh
from bench.child import run, serve_until_told, take_rounds
from protos import hello_pb2, hello_pb2_grpc

SUBJECT = "svc.hello.HelloService.SayHello"
FLOOR_SUBJECT = f"floor.{SUBJECT}"
NAME = "x" * 97
REQUEST = hello_pb2.HelloRequest(name=NAME)
GREETING = f"Hello, {NAME}!"


class HelloService(hello_pb2_grpc.HelloServiceServicer):
    """The servicer that both grpc.aio and the mesh host, unchanged."""

    async def SayHello(  # noqa: N802 - gRPC's name
        self,
        request: hello_pb2.HelloRequest,
        context: Any,
    ) -> hello_pb2.HelloResponse:
        """Greet."""
        return hello_pb2.HelloResponse(message=f"Hello, {request.name}!")


async def floor_service(url: str) -> None:
    """What a service costs at the least: one subscription, fixed bytes back."""
    client = await nats.connect(url)
    response = hello_pb2.HelloResponse(message=GREETING).SerializeToString()

    async def answer(message: Msg) -> None:
        await message.respond(response)

    await client.subscribe(FLOOR_SUBJECT, queue="q", cb=answer)
    await client.flush()
    await serve_until_told()
    await client.close()


async def floor_client(url: str) -> None:
    """`nc.request` with the same bytes."""
    client = await nats.connect(url)
    request = REQUEST.SerializeToString()

    async def call() -> None:
        await client.request(FLOOR_SUBJECT, request, timeout=10)

    await take_rounds(call)
    await client.close()


async def grpc_service(host: str) -> None:
    """grpc.aio hosting the servicer on a free port."""
    server = grpc.aio.server()
    hello_pb2_grpc.add_HelloServiceServicer_to_server(HelloService(), server)
    port = server.add_insecure_port(f"{host}:0")
    await server.start()
    await serve_until_told(f"{host}:{port}")
    await server.stop(1)


async def grpc_client(address: str) -> None:
    """The generated stub on grpc.aio's channel."""
    async with grpc.aio.insecure_channel(address) as channel:
        await _stub_rounds(hello_pb2_grpc.HelloServiceStub(channel))


async def mesh_service(url: str) -> None:
    """The mesh hosting the servicer."""
    async with mesh.connect(url) as m:
        server = mesh.Server(m)
        hello_pb2_grpc.add_HelloServiceServicer_to_server(HelloService(), server)
        await server.start()
        await serve_until_told()
        await server.stop(1)


async def mesh_client(url: str) -> None:
    """The generated stub on the mesh's channel."""
    async with mesh.connect(url) as m:
        await _stub_rounds(hello_pb2_grpc.HelloServiceStub(m.channel))


async def _stub_rounds(stub: Any) -> None:
    async def call() -> None:
        await stub.SayHello(REQUEST)

    assert (await stub.SayHello(REQUEST)).message == GREETING
    await take_rounds(call)


ROLES = {
    "floor-service": floor_service,
    "floor-client": floor_client,
    "grpc-service": grpc_service,
    "grpc-client": grpc_client,
    "mesh-service": mesh_service,
    "mesh-client": mesh_client,
}

if __name__ == "__main__":
    role, address = sys.argv[1:]
    run(lambda: ROLES[role](address))
