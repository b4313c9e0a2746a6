"""The services API asked and answered; descriptors from the service itself."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import grpc
import nats.errors
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from nats.aio.client import Client

import mesh
from mesh import micro
from mesh.client import describe_service, methods_of
from mesh.discovery import discover
from protos.orders_pb2_grpc import OrderServiceServicer, add_OrderServiceServicer_to_server
from tests.mesh.hello import SERVICE, SUBJECT, flushed, greet, request, serving, stub


async def collect(client: Client, subject: str, wait: float = 0.3, **kwargs: Any) -> list[dict[str, Any]]:
    """All answers to a bare request."""
    answers: list[dict[str, Any]] = []

    async def keep(message: Any) -> None:
        if message.data:
            answers.append({**json.loads(message.data), "headers": message.headers})

    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox, cb=keep)
    await client.publish(subject, reply=inbox, **kwargs)
    await flushed(client)
    await asyncio.sleep(wait)
    await subscription.unsubscribe()
    return answers


@pytest.mark.parametrize("verb", micro.VERBS)
async def test_every_instance_answers_on_all_its_subjects(url: str, m: mesh.Mesh, foreigner: Client, verb: str) -> None:
    """S-10, S-12: no queue group, whatever the payload; nothing of the request is echoed."""
    async with serving(m) as one, mesh.connect(url) as n, serving(n) as two:
        ids = {one.services[0].id, two.services[0].id}
        accept = {"Accept-Encoding": "snappy"}
        for subject, expected in (
            (f"$SRV.{verb}", ids),
            (f"$SRV.{verb}.HelloService", ids),
            (f"$SRV.{verb}.HelloService.{one.services[0].id}", {one.services[0].id}),
        ):
            answers = await collect(foreigner, subject, payload=b"{}", headers=accept)
            assert {answer["id"] for answer in answers} == expected
            assert all(micro.fault(verb, answer) == "" and answer["headers"] is None for answer in answers)
        for nobody in (f"$SRV.{verb}.helloservice", f"$SRV.{verb}.HelloService.x", f"$SRV.{verb.lower()}"):
            with pytest.raises(nats.errors.NoRespondersError):
                await foreigner.request(nobody, b"")


async def test_info_says_what_protobuf_says(m: mesh.Mesh, foreigner: Client) -> None:
    """M-B3."""
    async with serving(m, cluster="eu"):
        (info,) = await collect(foreigner, "$SRV.INFO.HelloService")
    assert info["metadata"] == {"proto.service": SERVICE, "proto.package": "hello", "cluster": "eu"}
    assert (info["description"], info["version"]) == ("Greets.", "0.0.0")
    assert info["endpoints"] == [
        {
            "name": "SayHello",
            "subject": SUBJECT,
            "queue_group": "q",
            "metadata": {
                "proto.method": f"{SERVICE}/SayHello",
                "proto.request": "hello.HelloRequest",
                "proto.response": "hello.HelloResponse",
                "proto.client_streaming": "false",
                "proto.server_streaming": "false",
            },
        }
    ]


async def test_stats_count_exactly_over_instances(url: str, m: mesh.Mesh, foreigner: Client) -> None:
    """S-17, S-20, N2."""

    async def handler(message: Any, context: Any) -> Any:
        if message.name == "abort":
            await context.abort(grpc.StatusCode.NOT_FOUND, "gone")
        return await greet(message, context)

    async with serving(m, handler), mesh.connect(url) as n, serving(n, handler):
        calls = [stub(m).SayHello(request("abort" if index % 5 == 0 else "ok")) for index in range(50)]
        await asyncio.gather(*calls, return_exceptions=True)
        endpoints = [answer["endpoints"][0] for answer in await collect(foreigner, "$SRV.STATS.HelloService")]
        assert sum(endpoint["num_requests"] for endpoint in endpoints) == 50
        assert sum(endpoint["num_errors"] for endpoint in endpoints) == 10
        for endpoint in endpoints:
            if endpoint["num_errors"]:
                assert endpoint["last_error"] == "404:gone"
            assert endpoint["average_processing_time"] == endpoint["processing_time"] // endpoint["num_requests"]
            assert endpoint["data"] == {"in_flight": 0, "rejected": 0, "expired": 0, "malformed": 0}


async def test_queue_group_can_be_disabled(url: str, m: mesh.Mesh, foreigner: Client) -> None:
    """S-8, S-20: then every instance answers."""
    async with serving(m, queue_group=""), mesh.connect(url) as n, serving(n, queue_group=""):
        (info, _) = await collect(foreigner, "$SRV.INFO.HelloService")
        assert info["endpoints"][0]["queue_group"] == ""
        replies: list[bytes] = []

        async def keep(message: Any) -> None:
            replies.append(message.data)

        await foreigner.subscribe("both", cb=keep)
        await foreigner.publish(SUBJECT, b"", reply="both")
        await flushed(foreigner)
        await asyncio.sleep(0.2)
        assert len(replies) == 2


async def test_control_message_without_reply_is_ignored(m: mesh.Mesh, caller: mesh.Mesh, foreigner: Client) -> None:
    """S-13, N6."""
    async with serving(m):
        for _ in range(1000):
            for verb in ("PING", "INFO", "STATS", "WHAT"):
                await foreigner.publish(f"$SRV.{verb}", b"x")
        await flushed(foreigner)
        assert (await stub(caller).SayHello(request())).message == "Hello, World!"


async def test_discover_finds_all_and_filters_by_full_name(url: str, m: mesh.Mesh, caller: mesh.Mesh) -> None:
    began = time.monotonic()
    assert await discover(caller.connection) == []
    assert time.monotonic() - began < 0.2, "nobody there is known at once"
    async with serving(m), mesh.connect(url) as n, serving(n):
        server = mesh.Server(m)
        add_OrderServiceServicer_to_server(OrderServiceServicer(), server)  # type: ignore[abstract]
        await server.start()
        found = await discover(caller.connection)
        assert [item.service for item in found] == [SERVICE, SERVICE, "orders.OrderService"]
        assert found[2].methods == ["Reserve", "Confirm", "Cancel"]
        assert all(item.fault == "" and 0 < item.rtt < 1 for item in found)
        assert len(await discover(caller.connection, SERVICE)) == 2
        assert len(await discover(caller.connection, "HelloService", verb=micro.PING)) == 2
        assert await discover(caller.connection, "other.HelloService") == []
        one = found[0]
        (stats,) = await discover(caller.connection, "HelloService", one.id, verb=micro.STATS)
        assert stats.id == one.id
        began = time.monotonic()
        assert len(await discover(caller.connection, limit=1)) == 1
        assert time.monotonic() - began < 0.2
        await server.stop(None)
    for name in ("a b", "*", "a..b", ">"):
        with pytest.raises(mesh.InvalidNameError):
            await discover(caller.connection, name)


async def test_odd_answers_are_shown_as_invalid(m: mesh.Mesh, caller: mesh.Mesh, foreigner: Client) -> None:
    odd = [b"not json", b"[]", b"\xff", b"[" * 100_000, b'{"type": "x"}', b""]

    async def answer(message: Any) -> None:
        for body in odd:
            await foreigner.publish(message.reply, body)

    await foreigner.subscribe("$SRV.INFO", cb=answer)
    await flushed(foreigner)
    async with serving(m):
        found = await discover(caller.connection)
        assert sum(not item.fault for item in found) == 1
        assert sum(bool(item.fault) for item in found) == len(odd)
        for item in found:
            assert (item.name, item.methods, item.metadata) is not None


async def test_descriptors_come_from_the_service_itself(m: mesh.Mesh, caller: mesh.Mesh) -> None:
    async with serving(m):
        files = FileDescriptorSet.FromString(await describe_service(caller.connection, SERVICE))
        pool = DescriptorPool()
        for file in files.file:
            pool.Add(file)
        method = pool.FindServiceByName(SERVICE).methods_by_name["SayHello"]
        assert method.input_type.full_name == "hello.HelloRequest"
        assert method.output_type.full_name == "hello.HelloResponse"
    with pytest.raises(mesh.NoRespondersError):
        await describe_service(caller.connection, SERVICE)
    with pytest.raises(mesh.InvalidNameError):
        await describe_service(caller.connection, "a b")


async def test_methods_come_from_the_service_itself(m: mesh.Mesh, caller: mesh.Mesh, foreigner: Client) -> None:
    async with serving(m):
        assert await methods_of(caller.connection, SERVICE) == {"SayHello"}

    async def odd(message: Any) -> None:
        await message.respond(b"[]")

    await foreigner.subscribe("svc.tests.Odd._mesh.methods", cb=odd)
    await flushed(foreigner)
    with pytest.raises(mesh.ProtocolError):
        await methods_of(caller.connection, "tests.Odd")
    with pytest.raises(mesh.NoRespondersError):
        await methods_of(caller.connection, SERVICE)


async def test_service_without_descriptors_says_so(m: mesh.Mesh) -> None:
    server = mesh.Server(m)
    server.add_registered_method_handlers("tests.Nameless", {"M": grpc.unary_unary_rpc_method_handler(greet)})
    await server.start()
    with pytest.raises(mesh.RpcError) as caught:
        await describe_service(m.connection, "tests.Nameless")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    await server.stop(None)
