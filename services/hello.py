"""The hello service: `mesh serve services.hello`."""

from __future__ import annotations

from typing import Any

import grpc.aio

from protos import hello_pb2, hello_pb2_grpc
from services import ledger


class HelloService(hello_pb2_grpc.HelloServiceServicer):
    """Greets whoever calls."""

    async def SayHello(
        self, request: hello_pb2.HelloRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> hello_pb2.HelloResponse:
        """Answer with a greeting of the name given."""
        await ledger.execute("HelloService.SayHello", context)
        return hello_pb2.HelloResponse(message=f"Hello, {request.name}!")
