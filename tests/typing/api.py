"""The public API written out: type-checked by `make types`, never run."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import assert_type

import grpc
import grpc.aio

import engine
import mesh
from engine import CallFailedError, Context, RetryPolicy, StepFailedError, workflow
from protos.hello_pb2 import HelloRequest, HelloResponse
from protos.hello_pb2_grpc import HelloServiceStub, add_HelloServiceServicer_to_server
from services.hello import HelloService


@dataclass
class Order:
    number: int


def charge(order: Order, amount: float) -> str:
    return f"{order.number}: {amount}"


async def notify(order: Order) -> bool:
    return order.number > 0


@workflow
async def hello_workflow(ctx: Context, name: str) -> str:
    reply = await HelloServiceStub(ctx.channel).SayHello(HelloRequest(name=name))
    assert_type(reply, HelloResponse)
    return reply.message


@workflow
async def without_input(ctx: Context) -> int:
    return 1


@workflow(name="another-name", retention=timedelta(days=7), retry=RetryPolicy(max_attempts=3))
async def order_workflow(ctx: Context, order: Order) -> list[str]:
    assert_type(await ctx.run("charge", charge, order, 9.5), str)
    assert_type(await ctx.run("notify", notify, order), bool)
    reply = await ctx.call(
        "HelloService", "SayHello", HelloRequest(name="x"), HelloResponse, timeout=2, retry=RetryPolicy()
    )
    assert_type(reply, HelloResponse)
    patient = HelloServiceStub(
        ctx.channel.with_options(timeout=timedelta(minutes=5), retry=RetryPolicy(max_attempts=2))
    )
    first, second = await asyncio.gather(
        patient.SayHello(HelloRequest(name="a")), patient.SayHello(HelloRequest(name="b"), timeout=1)
    )
    cart: list[str] = await ctx.get("cart", list[str], default=[])
    approval = ctx.awakeable(Order)
    assert_type(await approval, Order)
    assert_type((approval.id, approval.subject), tuple[str, str])
    numbers = ctx.signals("number", int)
    assert_type(await numbers.get(), int)
    async for number in numbers:
        assert_type(number, int)
        break
    await ctx.set("cart", [*cart, "tea"])
    assert_type(await ctx.keys(), list[str])
    await ctx.clear("cart")
    await ctx.clear()
    assert_type(ctx.now(), datetime)
    assert_type(ctx.invocation_id, str)
    assert_type(ctx.is_replaying, bool)
    assert_type(ctx.attempt, int)
    ctx.logger.info("%s %s", ctx.uuid4(), ctx.random().random())
    try:
        await patient.SayHello(HelloRequest(name="c"))
    except CallFailedError as error:
        assert_type(error.code(), grpc.StatusCode)
        ctx.logger.info("%s %s %s", error.step, error.name, error.attempts)
    except StepFailedError as error:
        assert_type(error.message, str)
    return [first.message, second.message]


async def calls() -> None:
    async with mesh.connect("nats://127.0.0.1:4222", name="api", max_call=60.0) as m:
        server = mesh.Server(m, maximum_concurrent_rpcs=10)
        add_HelloServiceServicer_to_server(HelloService(), server)
        await server.start()
        channel: grpc.aio.Channel = m.channel
        stub = HelloServiceStub(channel)
        try:
            reply = await stub.SayHello(HelloRequest(name="World"), timeout=2, metadata=(("key", "value"),))
        except mesh.RpcError as error:
            assert_type(error.code(), grpc.StatusCode)
            raise
        assert_type(reply, HelloResponse)
        await HelloServiceStub(m.channel.at("eu")).SayHello(HelloRequest(name="World"))
        await server.stop(grace=5)
        await server.wait_for_termination()


async def workflows() -> None:
    async with engine.Client.connect("nats://127.0.0.1:4222", namespace="api") as client:
        assert_type(await client.invoke(hello_workflow, "World", timeout=5), str)
        assert_type(await client.invoke(without_input), int)
        handle = await client.start(order_workflow, Order(1), id="order-1", partition_key="customer-1")
        await client.pause(handle.id)
        await handle.resume()
        await handle.signal("number", 1)
        await client.resolve_awakeable("an-id", Order(1))
        await client.reject_awakeable("an-id", "no")
        await handle.cancel()
        assert_type(await handle.result(timeout=5), list[str])
        description = await handle.describe()
        assert_type(description.status, str)
        assert_type(description.attempts, int)
        for entry in description.journal:
            assert_type(entry.step, int)
            assert_type(entry.name, str)
        await client.invoke("hello_workflow", "by name")
        await client.handle("order-1").describe()


async def process(m: mesh.Mesh) -> None:
    processor = engine.Processor(m, [hello_workflow, without_input, order_workflow], max_concurrent=10, ack_wait=30)
    await processor.run()


async def wrong_inputs(client: engine.Client, ctx: Context) -> None:
    """What a type checker has to refuse: where it stops doing so, its `type: ignore` is unused, which is an error."""
    await client.invoke(hello_workflow, 5)  # type: ignore[misc]
    await client.start(order_workflow, "order-1")  # type: ignore[misc]
    await client.invoke(without_input, "too much")  # type: ignore[misc]
    await ctx.run("charge", charge, Order(1), "text")  # type: ignore[call-overload]
    await ctx.run(charge, Order(1), 9.5)  # type: ignore[call-overload]
    RetryPolicy(max_attempts="3")  # type: ignore[arg-type]
    workflow(charge)  # type: ignore[arg-type]


async def with_optional_things(client: engine.Client) -> None:
    handle = await client.start(hello_workflow, "World")
    assert_type(handle.id, str)
    assert_type(await handle.result(), str)
    again = client.handle(handle.id)
    assert_type((await again.describe()).workflow, str)
