"""Streams over a real server: who is slow, who dies, who stops, who speaks garbage, and what is left of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

import mesh
from mesh import streams
from mesh.streamcall import StreamCall
from mesh.streams import HEAD
from tests.mesh.hello import flushed
from tests.mesh.interop import TestService, outputs, over_mesh
from tests.mesh.protos import testing_pb2_grpc as stubs

Code = grpc.StatusCode
SERVICE = "tests.Streams"


class Handlers:
    """Methods on bytes."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.written = 0
        self.running = 0

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        self.running += 1
        self.started.set()
        try:
            yield
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            self.running -= 1

    async def count(self, request: bytes, _context: Any) -> AsyncIterator[bytes]:
        with self.noted():
            number, size = map(int, request.split())
            for n in range(number):
                yield n.to_bytes(4, "big") + bytes(size - 4)
                self.written += 1

    async def echo(self, requests: Any, _context: Any) -> AsyncIterator[bytes]:
        with self.noted():
            async for request in requests:
                yield request

    async def slow_sum(self, requests: Any, context: Any) -> bytes:
        with self.noted():
            size = 0
            while (request := await context.read()) is not grpc.aio.EOF:
                size += len(request)
                await asyncio.sleep(0.001)
            return str(size).encode()

    async def unary(self, request: bytes, _context: Any) -> bytes:
        return request

    def methods(self) -> dict[str, Any]:
        return {
            "Count": grpc.unary_stream_rpc_method_handler(self.count),
            "Echo": grpc.stream_stream_rpc_method_handler(self.echo),
            "SlowSum": grpc.stream_unary_rpc_method_handler(self.slow_sum),
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
        }


@contextlib.asynccontextmanager
async def serving(m: mesh.Mesh, handlers: Any, **options: Any) -> AsyncIterator[mesh.Server]:
    server = mesh.Server(m, **options)
    methods = handlers if isinstance(handlers, dict) else handlers.methods()
    server.add_registered_method_handlers(SERVICE, methods)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(None)


def echo(m: mesh.Mesh, **options: Any) -> Any:
    return m.channel.stream_stream(f"/{SERVICE}/Echo")(**options)


def count(m: mesh.Mesh, number: int, size: int = 100) -> Any:
    return m.channel.unary_stream(f"/{SERVICE}/Count")(b"%d %d" % (number, size))


async def until(condition: Any, seconds: float = 2.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


async def failure(call: Any) -> mesh.RpcError:
    with pytest.raises(mesh.RpcError) as caught:
        await call
    return caught.value


# --- slow readers ------------------------------------------------------------------------------------


async def test_a_slow_reader_holds_the_writer_back_and_loses_nothing(m: mesh.Mesh, caller: mesh.Mesh) -> None:
    """U13: server to client; the writer is a window ahead, other calls are not affected, all arrive in order."""
    handlers = Handlers()
    async with serving(m, handlers):
        call = count(caller, 5000, 1024)
        for n in range(50):
            assert int.from_bytes((await call.read())[:4], "big") == n
            await asyncio.sleep(0.002)
            assert handlers.written - n <= streams.WINDOW_MESSAGES + 1
        assert handlers.written <= 50 + streams.WINDOW_MESSAGES
        assert await caller.channel.unary_unary(f"/{SERVICE}/Unary")(b"x") == b"x"
        for n in range(50, 5000):
            assert int.from_bytes((await call.read())[:4], "big") == n
            assert len(call._stream.session.received) <= streams.WINDOW_MESSAGES
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is Code.OK


async def test_a_slow_handler_holds_the_caller_back(m: mesh.Mesh, caller: mesh.Mesh) -> None:
    """U13, the reverse: bytes count as well."""
    async with serving(m, Handlers()) as server:
        call = caller.channel.stream_unary(f"/{SERVICE}/SlowSum")()
        most = 0
        for _ in range(100):
            await call.write(bytes(100_000))
            for pipe in server._host.sessions.values():
                most = max(most, sum(map(len, pipe.session.received)))
        await call.done_writing()
        assert await call == b"10000000"
        assert 0 < most <= streams.WINDOW_BYTES


# --- who dies, stops or breaks -------------------------------------------------------------------------

CHILD = """
import asyncio, sys
import mesh
from tests.mesh.test_streams import Handlers, SERVICE, serving

async def serve(url):
    async with mesh.connect(url) as m, serving(m, Handlers(), keepalive=1.0):
        print("ready", flush=True)
        await asyncio.sleep(60)

async def call(url):
    async with mesh.connect(url, keepalive=1.0) as m:
        call = m.channel.stream_stream(f"/{SERVICE}/Echo")()
        await call.write(b"x")
        await call.read()
        print("ready", flush=True)
        await asyncio.sleep(60)

asyncio.run({"serve": serve, "call": call}[sys.argv[1]](sys.argv[2]))
"""


@contextlib.asynccontextmanager
async def child(role: str, url: str) -> AsyncIterator[int]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, role, url, stdout=asyncio.subprocess.PIPE, env=os.environ | {"PYTHONPATH": "."}
    )
    try:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 20) == b"ready\n"
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_killed_or_stopped_server_is_noticed_within_the_keepalive(
    url: str, caller: mesh.Mesh, number: signal.Signals
) -> None:
    """U14."""
    async with child("serve", url) as pid:
        calls = [echo(caller) for _ in range(20)]
        for call in calls:
            await call.write(b"x")
            assert await call.read() == b"x"
        os.kill(pid, number)
        began = time.monotonic()
        errors = await asyncio.gather(*(failure(call.read()) for call in calls))
        assert time.monotonic() - began <= 1.05
        assert {error.code() for error in errors} == {Code.UNAVAILABLE}
    assert not caller._caller.streams
    assert not caller.connection._streams


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_killed_or_stopped_caller_is_noticed_within_the_keepalive(
    url: str, m: mesh.Mesh, number: signal.Signals
) -> None:
    """U14: the smaller keepalive of both sides counts."""
    handlers = Handlers()
    async with serving(m, handlers, keepalive=30.0) as server:
        async with child("call", url) as pid:
            os.kill(pid, number)
            await asyncio.wait_for(handlers.cancelled.wait(), 1.1)
            await until(lambda: handlers.running == 0)
        assert not server._host.sessions
        assert not server._host.calls


async def test_a_quiet_stream_lives_as_long_as_both_are_there(m: mesh.Mesh, url: str) -> None:
    async with mesh.connect(url, keepalive=0.2) as caller, serving(m, Handlers()):
        call = echo(caller)
        await asyncio.sleep(0.8)
        await call.write(b"x")
        assert await call.read() == b"x"
        call.cancel()


async def test_a_session_that_nobody_feeds_ends_within_the_keepalive(m: mesh.Mesh, foreigner: Any) -> None:
    """M-C4: an open by somebody who then says nothing."""
    handlers = Handlers()
    async with serving(m, handlers, keepalive=0.4) as server:
        await foreigner.publish(f"svc.{SERVICE}.Echo", b"", reply="nobody", headers={"Mesh-Stream": "30000"})
        await flushed(foreigner)
        await asyncio.wait_for(handlers.started.wait(), 1)
        await asyncio.wait_for(handlers.cancelled.wait(), 0.5)
        await until(lambda: not server._host.sessions)


async def test_garbage_on_a_session_ends_it_and_nothing_else(m: mesh.Mesh, caller: mesh.Mesh, foreigner: Any) -> None:
    handlers = Handlers()
    async with serving(m, handlers) as server:
        victim, other = echo(caller), echo(caller)
        for call in (victim, other):
            await call.write(b"x")
            await call.read()
        session = victim._stream.session
        subject = f"svc.{SERVICE}.Echo._s.{session.token}"
        for garbage in (b"", b"garbage", bytes(500), HEAD.pack(1, 12345, 0)):  # of no session: nobody's
            await foreigner.publish(subject, garbage)
        await foreigner.publish(subject, HEAD.pack(99, session.ident, 1) + b"garbage")
        assert (await failure(victim.read())).code() is Code.INTERNAL
        await asyncio.wait_for(handlers.cancelled.wait(), 1)
        await other.write(b"y")
        assert await other.read() == b"y"
        await foreigner.publish(caller.connection.reply_subject(other._stream._token), b"garbage")
        assert (await failure(other.read())).code() is Code.INTERNAL
        await until(lambda: not server._host.sessions)


async def test_an_open_that_is_none_is_refused(m: mesh.Mesh, foreigner: Any) -> None:
    async with serving(m, Handlers()) as server:
        subject = f"svc.{SERVICE}.Echo"
        for value in ("0", "-1", "x", "9" * 30):
            reply = await foreigner.request(subject, b"", headers={"Mesh-Stream": value})
            assert reply.headers["Grpc-Status"] == "3"
        headers = {"Mesh-Stream": "1000", "Content-Type": "application/json"}
        assert (await foreigner.request(subject, b"", headers=headers)).headers["Grpc-Status"] == "3"
        inbox = await foreigner.subscribe("answers")
        await foreigner.publish(subject, b"not a frame", reply="answers", headers={"Mesh-Stream": "1000"})
        accepted = await inbox.next_msg(1)
        assert accepted.data[0] == streams.ACCEPT
        assert (await inbox.next_msg(1)).headers["Grpc-Status"] == "13"
        assert not server._host.sessions


async def test_a_foreign_answer_to_an_open_is_an_error(foreigner: Any, caller: mesh.Mesh) -> None:
    async def answer(message: Any) -> None:
        headers = {"X": "1"} if message.subject.endswith("M") else None
        await foreigner.publish(message.reply, b"one message", headers=headers)

    for method in ("M", "Bare"):
        await foreigner.subscribe(f"svc.tests.Foreign.{method}", cb=answer)
        await flushed(foreigner)
        call = caller.channel.unary_stream(f"/tests.Foreign/{method}")(b"")
        assert (await failure(call.read())).code() is Code.INTERNAL


async def test_a_lost_connection_ends_sessions_on_both_sides(m: mesh.Mesh, url: str) -> None:
    handlers = Handlers()
    async with mesh.connect(url) as caller, serving(m, handlers):
        call = echo(caller)
        await call.write(b"x")
        await call.read()
        await caller.connection._client.force_reconnect()
        assert (await failure(call.read())).code() is Code.UNAVAILABLE
        again = echo(caller)
        await again.write(b"x")
        assert await again.read() == b"x"
        await m.connection._client.force_reconnect()
        await asyncio.wait_for(handlers.cancelled.wait(), 1)
        again.cancel()


# --- who serves ----------------------------------------------------------------------------------------


async def test_each_stream_stays_on_one_of_several_instances(url: str, caller: mesh.Mesh) -> None:
    """U11: 200 ping-pongs in parallel over three instances, and 500 frames both ways."""

    def handler_of(name: bytes) -> Any:
        async def tag(requests: Any, _context: Any) -> AsyncIterator[bytes]:
            async for request in requests:
                yield name + request

        return {"Echo": grpc.stream_stream_rpc_method_handler(tag)}

    async def talk(n: int) -> bytes:
        call = echo(caller)
        names = set()
        for step in range(n):
            await call.write(b"%d" % step)
            answer = await call.read()
            assert answer[1:] == b"%d" % step
            names.add(answer[:1])
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert len(names) == 1
        return bytes(names.pop())

    async with contextlib.AsyncExitStack() as stack:
        for name in (b"a", b"b", b"c"):
            m = await stack.enter_async_context(mesh.connect(url))
            await stack.enter_async_context(serving(m, handler_of(name)))
        assert set(await asyncio.gather(*(talk(4) for _ in range(200)))) == {b"a", b"b", b"c"}
        call = echo(caller, request_iterator=iter([b"%d" % n for n in range(500)]))
        got = [answer async for answer in call]
        assert [answer[1:] for answer in got] == [b"%d" % n for n in range(500)]
        assert len({answer[:1] for answer in got}) == 1


async def test_open_streams_count_as_concurrent_calls(m: mesh.Mesh, caller: mesh.Mesh) -> None:
    """M-A6."""
    async with serving(m, Handlers(), maximum_concurrent_rpcs=2) as server:
        calls = [echo(caller) for _ in range(2)]
        for call in calls:
            await call.write(b"x")
            await call.read()
        assert (await failure(echo(caller).read())).code() is Code.RESOURCE_EXHAUSTED
        unary = caller.channel.unary_unary(f"/{SERVICE}/Unary")
        assert (await failure(unary(b""))).code() is Code.RESOURCE_EXHAUSTED
        calls[0].cancel()
        await until(lambda: server._host.in_flight == 1)
        assert await unary(b"y") == b"y"
        calls[1].cancel()


async def test_a_drained_server_finishes_its_streams_and_cuts_them_off_after_the_grace(
    m: mesh.Mesh, caller: mesh.Mesh
) -> None:
    """W1."""
    handlers = Handlers()
    async with serving(m, handlers) as server:
        finishing, staying = echo(caller), echo(caller)
        for call in (finishing, staying):
            await call.write(b"x")
            await call.read()
        stopping = asyncio.create_task(server.stop(0.3))
        await asyncio.sleep(0.1)
        assert (await failure(echo(caller).read())).code() is Code.UNAVAILABLE
        await finishing.write(b"y")
        assert await finishing.read() == b"y"
        await finishing.done_writing()
        assert await finishing.read() is grpc.aio.EOF
        error = await failure(staying.read())
        assert (error.code(), "stopped" in (error.details() or "")) == (Code.UNAVAILABLE, True)
        await stopping
        assert handlers.cancelled.is_set()


async def test_plain_functions_stream_in_threads(m: mesh.Mesh, caller: mesh.Mesh) -> None:
    """M-B9."""
    cut = threading.Event()
    main = threading.get_ident()

    def many(request: bytes, context: Any) -> Iterator[bytes]:
        assert threading.get_ident() != main
        context.set_trailing_metadata([("t", "1")])
        for n in range(int(request)):
            yield b"%d" % n

    def total(requests: Iterator[bytes], context: Any) -> bytes:
        return b"%d" % sum(map(len, requests))

    def talk(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        try:
            yield from requests
        except grpc.RpcError:
            cut.set()
            raise

    handlers: dict[str, Any] = {
        "Many": grpc.unary_stream_rpc_method_handler(many),
        "Total": grpc.stream_unary_rpc_method_handler(total),
        "Echo": grpc.stream_stream_rpc_method_handler(talk),
    }
    async with serving(m, handlers):
        call = caller.channel.unary_stream(f"/{SERVICE}/Many")(b"3000")
        assert [int(answer) async for answer in call] == list(range(3000))
        assert ("t", "1") in list(await call.trailing_metadata())
        assert await caller.channel.stream_unary(f"/{SERVICE}/Total")(iter([b"abc"] * 100)) == b"300"
        talking = echo(caller)
        await talking.write(b"x")
        assert await talking.read() == b"x"
        talking.cancel()
        assert await asyncio.to_thread(cut.wait, 2)


async def test_handlers_that_fail_are_told_as_grpc_tells_it(m: mesh.Mesh, caller: mesh.Mesh) -> None:
    """M-C7, K2."""

    async def raises(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
        yield b"1"
        raise RuntimeError("mine")

    async def cancels(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
        yield b"1"
        raise asyncio.CancelledError

    async def wrong(_request: bytes, _context: Any) -> AsyncIterator[Any]:
        yield 7

    async def code(_request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"1"
        context.set_code(Code.DATA_LOSS)
        context.set_details("told")

    async def swallows(requests: Any, _context: Any) -> AsyncIterator[bytes]:
        yield b"1"
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(30)

    handlers: dict[str, Any] = {
        function.__name__: grpc.unary_stream_rpc_method_handler(function)
        for function in (raises, cancels, wrong, code, swallows)
    }
    expected = {
        "raises": (Code.UNKNOWN, "Unexpected <class 'RuntimeError'>: mine"),
        "cancels": (Code.CANCELLED, "the handler was cancelled"),
        "wrong": (Code.INTERNAL, "the response does not serialize: the serializer returned int, not bytes"),
        "code": (Code.DATA_LOSS, "told"),
    }
    async with serving(m, handlers) as server:
        for name, outcome in expected.items():
            call = caller.channel.unary_stream(f"/{SERVICE}/{name}")(b"")
            if name != "wrong":
                assert await call.read() == b"1"
            error = await failure(call.read())
            assert (error.code(), error.details()) == outcome
        call = caller.channel.unary_stream(f"/{SERVICE}/swallows")(b"", timeout=0.2)
        assert await call.read() == b"1"
        assert (await failure(call.read())).code() is Code.DEADLINE_EXCEEDED
        await until(lambda: not server._host.calls)


async def test_messages_that_do_not_decode_name_their_type(m: mesh.Mesh, caller: mesh.Mesh) -> None:
    async with over_mesh(TestService(), m):
        raw = caller.channel.stream_stream("/grpc.testing.TestService/FullDuplexCall")(iter([b"\xff\xff"]))
        error = await failure(raw.read())
        assert (error.code(), "StreamingOutputCallRequest" in (error.details() or "")) == (Code.INVALID_ARGUMENT, True)
    async with serving(m, Handlers()):
        method = caller.channel.unary_stream(f"/{SERVICE}/Count", response_deserializer=_undecodable)
        call = method(b"1 4")
        assert (await failure(call.read())).code() is Code.INTERNAL


def _undecodable(_data: bytes) -> Any:
    raise ValueError("never")


# --- what is left ----------------------------------------------------------------------------------------


async def test_nothing_is_left_after_a_thousand_streams_and_cancellations(m: mesh.Mesh, caller: mesh.Mesh) -> None:
    """U14: tasks, tokens, sessions, calls and objects are back at the start."""
    handlers = Handlers()
    async with serving(m, handlers) as server:

        async def one(n: int) -> None:
            call = echo(caller, timeout=None if n % 2 else 5)
            await call.write(b"x")
            assert await call.read() == b"x"
            match n % 4:
                case 0:
                    await call.done_writing()
                    assert await call.read() is grpc.aio.EOF
                case 1:
                    call.cancel()
                case 2:
                    with pytest.raises(TimeoutError):
                        await asyncio.wait_for(call.read(), 0.001)
                case 3:
                    del call  # dropped: nobody can end it any more

        await one(0)
        await asyncio.sleep(0.05)
        before = len(asyncio.all_tasks()), len(caller.connection._streams), len(m.connection._client._subs)
        for _ in range(10):
            await asyncio.gather(*(one(n) for n in range(100)))
        gc.collect()
        await until(lambda: not server._host.calls)
        await asyncio.sleep(0.05)
        after = len(asyncio.all_tasks()), len(caller.connection._streams), len(m.connection._client._subs)
        assert after == before
        assert not caller._caller.streams
        assert not server._host.sessions
        assert (handlers.running, server._host.in_flight, server._host.bytes_in_flight) == (0, 0, 0)
        assert caller._caller.pulse._timer is None
        gc.collect()
        assert [item for item in gc.get_objects() if isinstance(item, StreamCall)] == []


async def test_a_call_is_kept_by_whoever_iterates_over_it(m: mesh.Mesh, caller: mesh.Mesh) -> None:
    async with serving(m, Handlers()):
        got = 0
        async for _ in count(caller, 3000):
            got += 1
            if not got % 1000:
                gc.collect()
        assert got == 3000


async def test_deadline_of_a_handler_is_inherited_by_its_streams(m: mesh.Mesh, caller: mesh.Mesh) -> None:
    """D2."""
    left: list[float | None] = []

    async def inner(_requests: Any, context: Any) -> AsyncIterator[bytes]:
        left.append(context.time_remaining())
        yield b""

    async def outer(_request: bytes, _context: Any) -> bytes:
        assert await echo(mesh.current()).read() == b""
        return b""

    handlers: dict[str, Any] = {
        "Echo": grpc.stream_stream_rpc_method_handler(inner),
        "Outer": grpc.unary_unary_rpc_method_handler(outer),
    }
    async with serving(m, handlers):
        outer_call = caller.channel.unary_unary(f"/{SERVICE}/Outer")
        await outer_call(b"", timeout=2)
        await outer_call(b"")
    assert left[0] is not None
    assert 1 < left[0] <= 2
    assert left[1] is None


async def test_wait_for_ready_waits_for_an_instance(m: mesh.Mesh, caller: mesh.Mesh) -> None:
    call = count(caller, 1)
    assert (await failure(call.read())).code() is Code.UNAVAILABLE
    waiting = caller.channel.unary_stream(f"/{SERVICE}/Count")(b"2 4", wait_for_ready=True, timeout=5)
    await asyncio.sleep(0.1)
    async with serving(m, Handlers()):
        assert len([answer async for answer in waiting]) == 2


async def test_interleaved_outputs_of_many_streams_stay_apart(m: mesh.Mesh, caller: mesh.Mesh) -> None:
    async with over_mesh(TestService(), m):
        stub: Any = stubs.TestServiceStub(caller.channel)

        async def read(n: int) -> list[int]:
            call = stub.StreamingOutputCall(outputs(*range(n, n + 20), interval_us=100))
            return [len(response.payload.body) async for response in call]

        found = await asyncio.gather(*(read(n) for n in range(50)))
        assert found == [list(range(n, n + 20)) for n in range(50)]


async def test_one_response_is_neither_none_nor_two(m: mesh.Mesh, caller: mesh.Mesh) -> None:
    """U15, for a method whose service has a stream where the caller's stub has one response."""

    async def many(requests: Any, _context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            for _ in range(int(request)):
                yield b"x"

    async with serving(m, {"Many": grpc.stream_stream_rpc_method_handler(many)}):
        method = caller.channel.stream_unary(f"/{SERVICE}/Many")
        assert await method(iter([b"1"])) == b"x"
        for number, said in ((b"0", "no response"), (b"2", "more than one response")):
            call = method(iter([number]))
            error = await failure(call)
            assert (error.code(), said in (error.details() or "")) == (Code.INTERNAL, True)
            assert await call.code() is Code.INTERNAL
        assert not caller._caller.streams


async def test_rolling_restarts_fail_no_stream_and_no_large_call(url: str, caller: mesh.Mesh) -> None:
    """W1: one of two instances at a time is replaced, five times, under callers that never pause."""
    ended = asyncio.Event()
    done = 0

    async def talk() -> None:
        nonlocal done
        unary: Any = caller.channel.unary_unary(f"/{SERVICE}/Unary")
        while not ended.is_set():
            call = echo(caller)
            for n in range(5):
                await call.write(b"%d" % n)
                assert await call.read() == b"%d" % n
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            assert len(await unary(bytes(1_200_000))) == 1_200_000
            done += 1

    async with contextlib.AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(mesh.connect(url)) for _ in range(2)]

        async def start(m: mesh.Mesh) -> mesh.Server:
            server = mesh.Server(m)
            server.add_registered_method_handlers(SERVICE, Handlers().methods())
            await server.start()
            return server

        servers = [await start(m) for m in connections]
        talking = [asyncio.create_task(talk()) for _ in range(10)]
        for n in range(5):
            await asyncio.sleep(0.1)
            await servers[n % 2].stop(5)
            servers[n % 2] = await start(connections[n % 2])
        ended.set()
        await asyncio.gather(*talking)
        for server in servers:
            await server.stop(1)
    assert done >= 10
