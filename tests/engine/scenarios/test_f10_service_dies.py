"""F10, E-C2: an instance that dies in mid-call is noticed within its keepalive, far before the time-out."""

from __future__ import annotations

import time

from engine import Context, workflow
from protos.hello_pb2 import HelloRequest
from protos.hello_pb2_grpc import HelloServiceStub
from tests.kit.stage import Stage


@workflow
async def patient_greeting(ctx: Context, name: str) -> str:
    """One call under the default time-out of a minute an attempt."""
    return (await HelloServiceStub(ctx.channel).SayHello(HelloRequest(name=name))).message


async def test_a_call_of_a_killed_instance_is_made_again_by_another_one(stage: Stage) -> None:
    async with stage.client() as client:
        instances = {}
        for _ in range(2):
            instance = await stage.service("tests.kit.services")
            instances[instance.pid] = instance
        await stage.processor(flows=__name__)
        handle = await client.start("patient_greeting", "slow:3600:first")
        begun = (await stage.ledger.wait_for(event="begin"))[0]
        instances[int(begun.pid)].kill()
        killed = time.monotonic()
        again = (await stage.ledger.wait_for(2, event="begin", timeout=25))[1]
        assert time.monotonic() - killed < 15
        assert again.pid != begun.pid
        assert (again.key, again.invocation) == (begun.key, begun.invocation)
        described = await handle.describe()
        assert described.status == "running"
