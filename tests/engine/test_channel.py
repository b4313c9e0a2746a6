"""`ctx.channel` is a `grpc.aio.Channel` whose calls are recorded: generated stubs run on it unchanged."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import grpc
import pytest

from engine import CallFailedError, Context, RetryPolicy
from engine.channel import DurableCall
from engine.replay import Replay
from protos.hello_pb2 import HelloRequest, HelloResponse
from protos.hello_pb2_grpc import HelloServiceStub
from tests.engine.protocol.passes import answer, begin, failed_answer, failure, replayed, result

REPLY = HelloResponse(message="hi").SerializeToString()


def only_step(replay: Replay) -> Any:
    (step,) = replay.take_effects()
    return step


async def say(ctx: Context) -> str:
    reply = await HelloServiceStub(ctx.channel).SayHello(HelloRequest(name="x"))
    return str(reply.message)


def test_stub_issues_a_call_with_subject_request_and_types() -> None:
    step = only_step(begin(say))
    assert (step.kind, step.name, step.title) == ("call", "HelloService.SayHello", "HelloService.SayHello")
    assert step.call.subject == "svc.hello.HelloService.SayHello"
    assert HelloRequest.FromString(step.call.request).name == "x"
    assert (step.call.request_type, step.call.response_type) == (
        "application/protobuf; type=hello.HelloRequest",
        "application/protobuf; type=hello.HelloResponse",
    )
    assert (step.call.timeout, step.call.policy.max_attempts) == (60.0, None)


def test_reply_is_the_stubs_message() -> None:
    step = only_step(begin(say))
    assert result(replayed(say, answer(step, 1, REPLY))) == "hi"


def test_reply_that_is_no_message_fails_the_step() -> None:
    found = failure(replayed(say, answer(only_step(begin(say)), 1, b"\xff\xff\xff")))
    assert (found.type, found.code) == ("CallFailedError", "INTERNAL")


def test_options_of_channel_and_call() -> None:
    async def code(ctx: Context) -> None:
        policy = RetryPolicy(max_attempts=2)
        channel = ctx.channel.with_options(timeout=timedelta(minutes=2), retry=policy).at("eu")
        stub = HelloServiceStub(channel)
        HelloServiceStub(channel.with_options(timeout=3)).SayHello(HelloRequest())
        stub.SayHello(HelloRequest(), timeout=4, metadata=(("key", "value"), ("raw-bin", b"\x00")))
        await stub.SayHello(HelloRequest())

    calls = [step.call for step in begin(code).take_effects()]
    assert [call.timeout for call in calls if call] == [3, 4, 120]
    assert {call.policy.max_attempts for call in calls if call} == {2}
    assert all(call is not None and "eu" in call.subject.split(".") for call in calls)
    assert calls[1] is not None
    assert dict(calls[1].metadata)["Grpc-Metadata-key"] == "value"
    assert "AA==" in dict(calls[1].metadata).values() or "AA" in dict(calls[1].metadata).values()


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), 1e9])
def test_timeout_that_no_request_can_carry_is_refused(timeout: float) -> None:
    async def code(ctx: Context) -> None:
        await HelloServiceStub(ctx.channel).SayHello(HelloRequest(), timeout=timeout)

    found = failure(begin(code))
    assert (found.type, "timeout" in found.message) == ("ValueError", True)


def test_bad_cluster_is_refused() -> None:
    async def code(ctx: Context) -> None:
        ctx.channel.at("a.b")

    assert "cluster" in failure(begin(code)).message


def test_call_object_is_that_of_grpc() -> None:
    async def code(ctx: Context) -> list[Any]:
        told: list[str] = []
        call = HelloServiceStub(ctx.channel).SayHello(HelloRequest())
        call.add_done_callback(lambda done: told.append(type(done).__name__))
        before = (call.done(), call.cancelled())
        first, second = await call, await call
        assert first is second
        assert isinstance(call, DurableCall)
        return [
            *before,
            call.done(),
            (await call.code()).name,
            await call.details(),
            len(list(await call.initial_metadata())),
            len(list(await call.trailing_metadata())),
            told,
        ]

    step = only_step(begin(code))
    assert result(replayed(code, answer(step, 1, REPLY))) == [False, False, True, "OK", "", 0, 0, ["DurableCall"]]


def test_failed_call_has_code_details_and_attempts() -> None:
    async def code(ctx: Context) -> list[Any]:
        call = HelloServiceStub(ctx.channel).SayHello(HelloRequest())
        said = [(await call.code()).name, await call.details()]
        try:
            await call
        except CallFailedError as error:
            is_grpc = isinstance(error, grpc.RpcError)
            return [*said, error.code().name, error.details(), error.attempts, error.step, is_grpc]
        return []

    step = only_step(begin(code))
    entry = failed_answer(step, 1, 404, "no such name")
    found = result(replayed(code, entry))
    assert found == ["NOT_FOUND", "no such name", "NOT_FOUND", "no such name", 1, 0, True]


def test_cancelled_call_is_waited_for_no_more() -> None:
    async def code(ctx: Context) -> list[bool]:
        call = HelloServiceStub(ctx.channel).SayHello(HelloRequest())
        first, second = call.cancel(), call.cancel()
        try:
            await call
        except asyncio.CancelledError:
            return [first, second, call.cancelled(), call.done()]
        return []

    replay = begin(code)
    assert result(replay) == [True, False, True, True]
    assert replay.take_effects() == []


def test_streams_say_where_they_belong() -> None:
    async def code(ctx: Context) -> list[str]:
        said: list[str] = []
        for kind in ("unary_stream", "stream_unary", "stream_stream"):
            method = getattr(ctx.channel, kind)("/a.B/C")  # as stubs ask for it when they are made
            with pytest.raises(NotImplementedError, match=r"ctx\.run"):
                method(iter(()))
            said.append(kind)
        return said

    assert len(result(begin(code))) == 3


def test_channel_is_always_ready_and_may_be_closed() -> None:
    async def code(ctx: Context) -> str:
        async with ctx.channel as channel:
            await channel.channel_ready()
            await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
            state = channel.get_state()
        return state.name

    assert result(begin(code)) == "READY"


def test_raw_methods_take_bytes_or_a_serializer() -> None:
    async def code(ctx: Context) -> list[bytes]:
        raw = ctx.channel.unary_unary("/kit.Steps/A")
        own = ctx.channel.unary_unary("/kit.Steps/B", request_serializer=str.encode, response_deserializer=bytes.upper)
        return [await raw(b"a"), await own("b")]

    first = only_step(begin(code))
    second = replayed(code, answer(first, 1, b"x")).steps[1]
    assert (first.call.request, second.call.request) == (b"a", b"b")  # type: ignore[union-attr]
    assert result(replayed(code, answer(first, 1, b"x"), answer(second, 2, b"y"))) is not None


def test_with_call_of_deterministic_bytes() -> None:
    """The order of map fields must not make a replay ask for something else."""
    assert only_step(begin(say)).digest == only_step(begin(say)).digest
