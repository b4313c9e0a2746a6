"""What a handler can do, and what its caller sees of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from typing import Any

import grpc
import pytest

import mesh
from protos.hello_pb2 import HelloRequest, HelloResponse
from protos.hello_pb2_grpc import HelloServiceServicer, add_HelloServiceServicer_to_server
from tests.mesh.hello import SUBJECT, greet, request, serving, stub

Code = grpc.StatusCode


async def failure(call: Any) -> mesh.RpcError:
    with pytest.raises(mesh.RpcError) as caught:
        await call
    return caught.value


@pytest.fixture(autouse=True)
def _handlers_fail_on_purpose(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="mesh.server")


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
async def test_abort_reaches_the_caller_exactly(m: mesh.Mesh, code: grpc.StatusCode) -> None:
    text = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n 100%"

    async def handler(_message: HelloRequest, context: Any) -> None:
        await context.abort(code, text, (("k", "1"), ("k", "2"), ("d-bin", b"\xab\xab")))

    async with serving(m, handler):
        error = await failure(stub(m).SayHello(request()))
        assert (error.code(), error.details()) == (code, text)
        assert list(error.trailing_metadata() or ()) == [("k", "1"), ("k", "2"), ("d-bin", b"\xab\xab")]


async def test_what_follows_an_abort_changes_nothing(m: mesh.Mesh) -> None:
    async def handler(message: HelloRequest, context: Any) -> HelloResponse:
        with contextlib.suppress(Exception):
            await context.abort(Code.ABORTED, "first")
        return await greet(message, context)

    async with serving(m, handler):
        assert (await failure(stub(m).SayHello(request()))).details() == "first"


async def test_rich_status_details_travel(m: mesh.Mesh) -> None:
    async def handler(_message: HelloRequest, context: Any) -> None:
        await context.abort(Code.FAILED_PRECONDITION, "rich", (("grpc-status-details-bin", b"\x08\x09"),))

    async with serving(m, handler):
        error = await failure(stub(m).SayHello(request()))
        assert list(error.trailing_metadata() or ()) == [("grpc-status-details-bin", b"\x08\x09")]


def _returns(value: Any) -> Any:
    async def handler(_message: HelloRequest, _context: Any) -> Any:
        return value

    return handler


def _raises(error: BaseException) -> Any:
    async def handler(_message: HelloRequest, _context: Any) -> Any:
        raise error

    return handler


@pytest.mark.parametrize(
    ("handler", "code", "text"),
    [
        (_raises(ValueError("boom")), Code.UNKNOWN, "Unexpected <class 'ValueError'>: boom"),
        (_raises(asyncio.CancelledError()), Code.CANCELLED, "cancelled"),
        (_returns(None), Code.INTERNAL, "NoneType, not hello.HelloResponse"),
        (_returns("text"), Code.INTERNAL, "str, not hello.HelloResponse"),
        (_returns(HelloRequest()), Code.INTERNAL, "HelloRequest, not hello.HelloResponse"),
    ],
)
async def test_misbehaviour_is_answered_as_grpc_aio_does(m: mesh.Mesh, handler: Any, code: Code, text: str) -> None:
    """M-C7, U7: a hundred times, and the service lives."""
    async with serving(m, handler) as server:
        for _ in range(100):
            error = await failure(stub(m).SayHello(request()))
            assert (error.code(), text in (error.details() or "")) == (code, True), error
        stats = server.services[0].info.endpoints[0].stats
        assert (stats.num_requests, stats.num_errors, stats.in_flight) == (100, 100, 0)
        assert stats.last_error.partition(":")[0] in {"500", "499"}


async def test_code_set_without_raising_counts(m: mesh.Mesh) -> None:
    async def handler(_message: HelloRequest, context: Any) -> HelloResponse:
        context.set_code(Code.DATA_LOSS)
        context.set_details("set")
        assert (context.code(), context.details()) == (Code.DATA_LOSS, "set")
        return HelloResponse()

    async with serving(m, handler):
        error = await failure(stub(m).SayHello(request()))
        assert (error.code(), error.details()) == (Code.DATA_LOSS, "set")


async def test_code_set_before_raising_is_kept(m: mesh.Mesh) -> None:
    async def handler(_message: HelloRequest, context: Any) -> HelloResponse:
        context.set_code(Code.NOT_FOUND)
        raise KeyError("x")

    async with serving(m, handler):
        assert (await failure(stub(m).SayHello(request()))).code() is Code.NOT_FOUND


async def test_generated_default_method_is_unimplemented(m: mesh.Mesh) -> None:
    server = mesh.Server(m)
    add_HelloServiceServicer_to_server(HelloServiceServicer(), server)  # type: ignore[abstract]
    await server.start()
    error = await failure(stub(m).SayHello(request()))
    assert (error.code(), "Method not implemented!" in (error.details() or "")) == (Code.UNIMPLEMENTED, True)
    await server.stop(None)


async def test_request_that_does_not_decode_names_the_type(m: mesh.Mesh) -> None:
    async with serving(m) as server:
        error = await failure(m.channel.unary_unary("/hello.HelloService/SayHello")(b"\xff\xff"))
        assert (error.code(), "hello.HelloRequest" in (error.details() or "")) == (Code.INVALID_ARGUMENT, True)
        assert server.services[0].info.endpoints[0].stats.malformed == 1


async def test_metadata_travels_both_ways(m: mesh.Mesh) -> None:
    """MD1, MD2: repeated keys in order, `-bin` as bytes, initial and trailing apart."""
    sent = [("k", "1"), ("x-bin", b"\xab\xab\xab"), ("k", "2"), ("empty", ""), ("comma", "a,b%")]
    seen: list[Any] = []

    async def handler(message: HelloRequest, context: Any) -> HelloResponse:
        seen.extend(context.invocation_metadata())
        await context.send_initial_metadata([("i", "1"), ("i", "2"), ("i-bin", b"\x00")])
        context.set_trailing_metadata(grpc.aio.Metadata(("t", "3"), ("t", "4")))
        return await greet(message, context)

    async with serving(m, handler):
        call = stub(m).SayHello(request(), metadata=sent)
        assert await call
        assert sorted(seen, key=lambda pair: pair[0]) == sorted(sent, key=lambda pair: pair[0])
        assert list(await call.initial_metadata()) == [("i", "1"), ("i", "2"), ("i-bin", b"\x00")]
        assert list(await call.trailing_metadata()) == [("t", "3"), ("t", "4")]


@pytest.mark.parametrize("key", ["grpc-x", "Upper", "a b", "nats:x", "", "a\r\nb"])
async def test_bad_metadata_is_refused_and_nothing_sent(m: mesh.Mesh, key: str) -> None:
    async with serving(m) as server:
        with pytest.raises(ValueError, match="key"):
            stub(m).SayHello(request(), metadata=[(key, "v")])
        assert server.services[0].info.endpoints[0].stats.num_requests == 0


async def test_bad_metadata_of_a_handler_is_its_own_error(m: mesh.Mesh) -> None:
    async def handler(message: HelloRequest, context: Any) -> HelloResponse:
        context.set_trailing_metadata([("Nats-Rollup", "all")])
        return await greet(message, context)

    async with serving(m, handler):
        error = await failure(stub(m).SayHello(request()))
        assert (error.code(), "ValueError" in (error.details() or "")) == (Code.UNKNOWN, True)


async def test_too_much_metadata_is_resource_exhausted(m: mesh.Mesh) -> None:
    async with serving(m):
        error = await failure(stub(m).SayHello(request(), metadata=[("k", "v" * 20_000)]))
        assert (error.code(), "16384" in (error.details() or "")) == (Code.RESOURCE_EXHAUSTED, True)


async def test_context_says_who_and_how_long(m: mesh.Mesh) -> None:
    ended: list[Any] = []

    async def handler(message: HelloRequest, context: Any) -> HelloResponse:
        assert context.peer().startswith("nats:")
        assert context.time_remaining() is None
        assert (context.peer_identities(), context.auth_context()) == (None, {})
        assert (context.done(), context.cancelled()) == (False, False)
        context.add_done_callback(ended.append)
        with pytest.raises(grpc.aio.UsageError):
            await context.read()
        return await greet(message, context)

    async with serving(m, handler):
        await stub(m).SayHello(request())
        await m.connection.round_trip()
        assert [context.done() for context in ended] == [True]


async def test_request_without_reply_runs_the_handler_and_publishes_nothing(m: mesh.Mesh) -> None:
    """S-25."""
    ran = asyncio.Event()

    async def handler(message: HelloRequest, context: Any) -> HelloResponse:
        ran.set()
        return await greet(message, context)

    async with serving(m, handler) as server:
        m.connection.publish(SUBJECT, b"")
        await asyncio.wait_for(ran.wait(), 2)
        await m.connection.round_trip()
        assert server.services[0].info.endpoints[0].stats.num_errors == 0


class Synchronous(HelloServiceServicer):
    """Plain functions, which run in threads."""

    def __init__(self) -> None:
        self.threads: set[int] = set()
        self.together = threading.Barrier(3, timeout=5)

    def SayHello(self, message: HelloRequest, context: Any) -> HelloResponse:
        self.threads.add(threading.get_ident())
        if message.name == "abort":
            context.abort(Code.ABORTED, "sync", (("k", "v"),))
        if message.name == "together":
            self.together.wait()
        assert context.is_active()
        assert context.time_remaining() is None or context.time_remaining() > 0
        assert mesh.current() is not None
        context.send_initial_metadata((("i", "1"),))
        context.set_trailing_metadata((("t", repr(context.invocation_metadata())),))
        return HelloResponse(message=f"sync {message.name}")


async def test_synchronous_servicer_runs_in_threads(m: mesh.Mesh) -> None:
    servicer = Synchronous()
    server = mesh.Server(m)
    add_HelloServiceServicer_to_server(servicer, server)
    await server.start()
    replies = await asyncio.gather(*(stub(m).SayHello(request("together"), timeout=10) for _ in range(3)))
    assert {reply.message for reply in replies} == {"sync together"}
    assert threading.get_ident() not in servicer.threads
    assert len(servicer.threads) == 3
    call = stub(m).SayHello(request("x"), metadata=[("a", "b")])
    assert (await call).message == "sync x"
    assert list(await call.initial_metadata()) == [("i", "1")]
    error = await failure(stub(m).SayHello(request("abort")))
    assert (error.code(), error.details()) == (Code.ABORTED, "sync")
    assert list(error.trailing_metadata() or ()) == [("k", "v")]
    await server.stop(1)


async def test_description_and_version_come_from_the_servicer(m: mesh.Mesh) -> None:
    """M-B4."""
    server = mesh.Server(m, service_version="2.0.0")
    add_HelloServiceServicer_to_server(Synchronous(), server)
    assert (server.services[0].info.description, server.services[0].info.version) == (
        "Plain functions, which run in threads.",
        "2.0.0",
    )

    class Own(HelloServiceServicer):
        version = "1.2.3"
        description = "said"

    server = mesh.Server(m, service_version="2.0.0")
    add_HelloServiceServicer_to_server(Own(), server)  # type: ignore[abstract]
    assert (server.services[0].info.description, server.services[0].info.version) == ("said", "1.2.3")
    server = mesh.Server(m)
    add_HelloServiceServicer_to_server(HelloServiceServicer(), server)  # type: ignore[abstract]
    assert server.services[0].info.version == "0.0.0"


class _Status:
    """What grpcio-status makes of rich details."""

    code = Code.RESOURCE_EXHAUSTED
    details = "rich"
    trailing_metadata = (("grpc-status-details-bin", b"\x01"),)


async def test_abort_with_status(m: mesh.Mesh) -> None:
    async def handler(_message: HelloRequest, context: Any) -> None:
        await context.abort_with_status(_Status)

    async with serving(m, handler):
        error = await failure(stub(m).SayHello(request()))
        assert (error.code(), error.details()) == (Code.RESOURCE_EXHAUSTED, "rich")
        assert list(error.trailing_metadata() or ()) == [("grpc-status-details-bin", b"\x01")]


async def test_abort_with_ok_is_unknown_and_codes_may_be_numbers(m: mesh.Mesh) -> None:
    async def handler(message: HelloRequest, context: Any) -> Any:
        if message.name == "ok":
            await context.abort(Code.OK, "")
        context.set_code(5)
        context.set_details("by number")
        assert context.trailing_metadata() == ()
        return HelloResponse()

    async with serving(m, handler):
        assert (await failure(stub(m).SayHello(request("ok")))).code() is Code.UNKNOWN
        assert (await failure(stub(m).SayHello(request()))).code() is Code.NOT_FOUND


def _broken(_message: Any) -> bytes:
    raise OverflowError("broken")


@pytest.mark.parametrize(("serializer", "text"), [(_broken, "broken"), (lambda _: "text", "returned str, not bytes")])
async def test_response_that_does_not_serialize_is_internal(m: mesh.Mesh, serializer: Any, text: str) -> None:
    server = mesh.Server(m)
    handler: Any = grpc.unary_unary_rpc_method_handler(greet, lambda _: request(), serializer)
    server.add_registered_method_handlers("tests.Broken", {"M": handler})
    await server.start()
    error = await failure(m.channel.unary_unary("/tests.Broken/M")(b""))
    assert (error.code(), text in (error.details() or "")) == (Code.INTERNAL, True)
    await server.stop(None)


class SynchronousContext(HelloServiceServicer):
    """What else the context of a plain function can do."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def SayHello(self, message: HelloRequest, context: Any) -> HelloResponse:
        assert context.peer().startswith("nats:")
        assert (context.peer_identities(), context.peer_identity_key(), context.auth_context()) == (None, None, {})
        context.set_compression(grpc.Compression.Gzip)
        context.disable_next_message_compression()
        assert context.add_callback(self.ended.set)
        match message.name:
            case "code":
                context.set_code(Code.ABORTED)
                context.set_details("set")
                assert (context.code(), context.details(), context.trailing_metadata()) == (Code.ABORTED, "set", ())
            case "cancel":
                assert context.cancel()
            case "status":
                context.abort_with_status(_Status)
        return HelloResponse()


@pytest.mark.parametrize(
    ("name", "code"),
    [("code", Code.ABORTED), ("cancel", Code.CANCELLED), ("status", Code.RESOURCE_EXHAUSTED)],
)
async def test_context_of_a_synchronous_servicer(m: mesh.Mesh, name: str, code: grpc.StatusCode) -> None:
    servicer = SynchronousContext()
    server = mesh.Server(m)
    add_HelloServiceServicer_to_server(servicer, server)
    await server.start()
    assert (await failure(stub(m).SayHello(request(name)))).code() is code
    await server.stop(1)
    assert await asyncio.to_thread(servicer.ended.wait, 1)


async def test_cancelled_call_frees_its_place_though_its_thread_goes_on(m: mesh.Mesh) -> None:
    release = threading.Event()

    class Blocking(HelloServiceServicer):
        def SayHello(self, message: HelloRequest, context: Any) -> HelloResponse:
            release.wait(10)
            return HelloResponse()

    server = mesh.Server(m)
    add_HelloServiceServicer_to_server(Blocking(), server)
    await server.start()
    error = await failure(stub(m).SayHello(request(), timeout=0.1))
    assert error.code() is Code.DEADLINE_EXCEEDED
    await m.connection.round_trip()
    assert server._host.in_flight == 0
    release.set()
    await server.stop(1)
