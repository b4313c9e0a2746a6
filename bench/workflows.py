"""The workflow whose messages the floor sends, run by the engine; and the client that invokes it.

mesh serve bench.workflows:HelloService          mesh processor bench.workflows
python -m bench.workflows client URL
"""

from __future__ import annotations

import sys

import engine
from bench.child import run, take_rounds
from bench.rpc import GREETING, NAME, HelloService
from protos import hello_pb2, hello_pb2_grpc

__all__ = ["HelloService", "three_steps"]


@engine.workflow
async def three_steps(ctx: engine.Context, name: str) -> str:
    """Three durable calls by the generated stub."""
    stub = hello_pb2_grpc.HelloServiceStub(ctx.channel)
    reply = hello_pb2.HelloResponse()
    for _ in range(3):
        reply = await stub.SayHello(hello_pb2.HelloRequest(name=name))
    return reply.message


async def client(url: str) -> None:
    """`engine.Client.invoke`: submit and wait for the result."""
    async with engine.Client.connect(url) as invoker:
        assert await invoker.invoke(three_steps, NAME) == GREETING

        async def call() -> None:
            await invoker.invoke(three_steps, NAME)

        await take_rounds(call)


if __name__ == "__main__":
    run(lambda: client(sys.argv[2]))
