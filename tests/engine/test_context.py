"""What workflow code is told, the same in every replay, and what it logs, once."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from engine import Context, RetryPolicy, values, workflow
from engine.model import Body, Entry, Invocation
from engine.replay import Replay
from tests.engine.protocol.passes import START, begin, failure, result

RETRY = RetryPolicy(max_attempts=4)


@dataclass
class Item:
    name: str


def make(name: str, *, loud: bool = False) -> Item:
    return Item(name.upper() if loud else name)


async def make_later(name: str) -> Item:
    return Item(name)


class Maker:
    """Bound methods and callable objects are functions too."""

    def method(self) -> Item:
        return Item("m")

    def __call__(self) -> Item:
        return Item("c")


def value(number: int, step: Any, data: Any) -> Entry:
    payload = values.encode(data)
    return Entry(
        number, START + number, step.number, 1, step.kind, step.digest, step.name, "value", payload.type, payload.data
    )


@pytest.mark.parametrize(
    "function",
    [partial(make, "x"), make_later, Maker().method, Maker(), lambda: Item("x")],
    ids=["partial", "async", "method", "callable", "lambda"],
)
def test_value_of_a_side_effect_has_the_type_its_function_says(function: Any) -> None:
    async def code(ctx: Context) -> str:
        return type(await ctx.run("make", function)).__name__

    replay = begin(code)
    replay.feed(value(1, replay.steps[0], Item("x")))
    assert result(replay) == ("dict" if "lambda" in repr(function) else "Item")


def body_of(code: Any) -> Body:
    body = begin(code).steps[0].body
    assert body is not None
    return body


def test_arguments_go_to_the_function_and_retry_does_not() -> None:
    async def code(ctx: Context) -> None:
        await ctx.run("make", make, "x", loud=True, retry=RETRY)

    body = body_of(code)
    assert (body.function, body.args, body.kwargs, body.policy) == (make, ("x",), {"loud": True}, RETRY)


def test_one_attempt_unless_it_is_said() -> None:
    async def code(ctx: Context) -> None:
        await ctx.run("make", make, "x")

    assert body_of(code).policy.max_attempts == 1


@pytest.mark.parametrize("name", ["", None, 5, make])
def test_step_without_a_name_is_refused(name: Any) -> None:
    async def code(ctx: Context) -> None:
        await ctx.run(name, make, "x")

    assert failure(begin(code)).type == "InvalidNameError"


def invoked(code: Any, **fields: Any) -> Replay:
    invocation = Invocation("run-1", fields.pop("incarnation", "one"), "wf", b"", "", START, START, **fields)
    replay = Replay(invocation, workflow(name="wf")(code), attempt=3)
    replay.start()
    return replay


def test_identity_and_time_are_the_runs() -> None:
    async def code(ctx: Context) -> list[Any]:
        return [ctx.invocation_id, ctx.partition_key, ctx.attempt, ctx.is_replaying, ctx.now().isoformat()]

    assert result(invoked(code, partition_key="k")) == ["run-1", "k", 3, False, "2027-01-15T08:00:00+00:00"]
    assert result(invoked(code))[1] is None


def test_randomness_repeats_with_the_run_and_with_no_other() -> None:
    async def code(ctx: Context) -> list[Any]:
        return [str(ctx.uuid4()), ctx.random().random(), ctx.random().randrange(1000), str(ctx.uuid4())]

    first, again, other = (result(invoked(code, incarnation=name)) for name in ("one", "one", "two"))
    assert first == again != other
    assert first[0] != first[3]


def test_what_was_logged_is_not_logged_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "workflow.wf")

    async def code(ctx: Context) -> None:
        ctx.logger.info("before %s", "it")
        await ctx.run("make", make, "x")
        ctx.logger.info("after", extra={"more": 1})

    replay = Replay(Invocation("run-1", "one", "wf", b"", "", START, START), workflow(name="wf")(code))
    replay.is_replaying = True
    replay.start()
    assert caplog.messages == []
    replay.is_replaying = False
    replay.feed(value(1, replay.steps[0], Item("x")))
    assert caplog.messages == ["[run-1] after"]
    record: Any = caplog.records[0]
    assert (record.invocation_id, record.more, record.name) == ("run-1", 1, "workflow.wf")
