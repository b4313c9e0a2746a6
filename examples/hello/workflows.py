"""The smallest workflow: `mesh processor examples.hello.workflows`."""

from __future__ import annotations

from engine import Context, workflow
from protos.hello_pb2 import HelloRequest
from protos.hello_pb2_grpc import HelloServiceStub


@workflow
async def hello_workflow(ctx: Context, name: str) -> str:
    """Have HelloService greet somebody: the call is a durable step, its answer is recorded."""
    hello = HelloServiceStub(ctx.channel)
    reply = await hello.SayHello(HelloRequest(name=name))
    return reply.message
