"""A service of the mesh that keeps the ledger: `mesh serve tests.kit.services`.

The name in a request says what happens: `gate:<name>` waits at that gate, `slow:<seconds>:<label>`
takes its time, anything else is answered at once.
"""

from __future__ import annotations

import asyncio
from typing import Any

from protos.hello_pb2 import HelloRequest, HelloResponse
from protos.hello_pb2_grpc import HelloServiceServicer
from tests.kit.gates import Gate
from tests.kit.ledger import Ledger


class HelloService(HelloServiceServicer):
    """Greets, and writes down each execution with the key and the run number that it came with."""

    def __init__(self) -> None:
        self._ledger = Ledger.of_environment()

    async def SayHello(self, request: HelloRequest, context: Any) -> HelloResponse:
        """Greet in the way that the name asks for."""
        metadata = dict(context.invocation_metadata() or ())
        written = {
            "invocation": str(metadata.get("mesh-invocation-id", "")),
            "step": request.name,
            "key": str(metadata.get("idempotency-key", "")),
            "run": str(metadata.get("mesh-run", "")),
        }
        self._ledger.write("begin", **written)
        kind, _, rest = request.name.partition(":")
        if kind == "gate":
            await Gate.of_environment(rest).wait()
        elif kind == "slow":
            await asyncio.sleep(float(rest.partition(":")[0]))
        self._ledger.write("end", **written)
        return HelloResponse(message=f"Hello, {request.name}!")
