"""HelloService with a handler of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from nats.aio.client import Client

import mesh
from protos.hello_pb2 import HelloRequest, HelloResponse
from protos.hello_pb2_grpc import (
    HelloServiceServicer,
    HelloServiceStub,
    add_HelloServiceServicer_to_server,
)

SERVICE = "hello.HelloService"
SUBJECT = "svc.hello.HelloService.SayHello"

Handler = Callable[[HelloRequest, Any], Awaitable[Any]]


async def greet(request: HelloRequest, _context: Any) -> HelloResponse:
    return HelloResponse(message=f"Hello, {request.name}!")


class HelloService(HelloServiceServicer):
    """Greets."""

    def __init__(self, handler: Handler = greet) -> None:
        self.handler = handler

    async def SayHello(self, request: HelloRequest, context: Any) -> Any:
        return await self.handler(request, context)


@asynccontextmanager
async def serving(m: mesh.Mesh, handler: Handler = greet, **options: Any) -> AsyncIterator[mesh.Server]:
    """A started server of it; stopped without grace."""
    server = mesh.Server(m, **options)
    add_HelloServiceServicer_to_server(HelloService(handler), server)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(None)


def stub(m: mesh.Mesh, cluster: str | None = None) -> Any:
    return HelloServiceStub(m.channel if cluster is None else m.channel.at(cluster))


def request(name: str = "World") -> HelloRequest:
    return HelloRequest(name=name)


async def flushed(client: Client) -> None:
    """Return when the server knows all that nats-py was told: its first PING may overtake what is buffered."""
    await client.flush()
    await client.flush()
