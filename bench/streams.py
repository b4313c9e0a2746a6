"""Server streams of 1,000 messages of 100 bytes: grpc.aio, and the same handler and call on `m.channel`.

    python -m bench.streams grpc-service|grpc-client|mesh-service|mesh-client ADDRESS

Messages are plain bytes on both sides: protobuf would cost both the same.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

import mesh
from bench.child import run, serve_until_told, take_rounds

SERVICE = "bench.Streams"
PATH = f"/{SERVICE}/Many"
MESSAGES = 1000
MESSAGE = bytes(100)


async def many(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
    """The handler that both host."""
    for _ in range(MESSAGES):
        yield MESSAGE


HANDLERS: dict[str, Any] = {"Many": grpc.unary_stream_rpc_method_handler(many)}


async def grpc_service(host: str) -> None:
    """grpc.aio on a free port."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, HANDLERS),))
    port = server.add_insecure_port(f"{host}:0")
    await server.start()
    await serve_until_told(f"{host}:{port}")
    await server.stop(1)


async def mesh_service(url: str) -> None:
    """The mesh."""
    async with mesh.connect(url) as m:
        server = mesh.Server(m)
        server.add_registered_method_handlers(SERVICE, HANDLERS)
        await server.start()
        await serve_until_told()
        await server.stop(1)


async def grpc_client(address: str) -> None:
    """A call on grpc.aio's channel."""
    async with grpc.aio.insecure_channel(address) as channel:
        await _stream_rounds(channel)


async def mesh_client(url: str) -> None:
    """A call on the mesh's channel."""
    async with mesh.connect(url) as m:
        await _stream_rounds(m.channel)


async def _stream_rounds(channel: Any) -> None:
    method = channel.unary_stream(PATH)

    async def call() -> None:
        got = 0
        async for _ in method(b""):
            got += 1
        assert got == MESSAGES

    await take_rounds(call)


ROLES = {
    "grpc-service": grpc_service,
    "grpc-client": grpc_client,
    "mesh-service": mesh_service,
    "mesh-client": mesh_client,
}

if __name__ == "__main__":
    role, address = sys.argv[1:]
    run(lambda: ROLES[role](address))
