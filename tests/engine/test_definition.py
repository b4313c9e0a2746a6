"""`@workflow`: what becomes one, and what it says about itself."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from engine import Context, RetryPolicy, workflow
from engine.errors import InvalidNameError
from protos.hello_pb2 import HelloRequest


async def without(ctx: Context) -> int:
    return 1


async def with_input(ctx: Context, request: HelloRequest) -> list[str]:
    return []


async def optional(ctx: Context, name: str = "World") -> str:
    return name


async def bare(ctx, anything):  # type: ignore[no-untyped-def]
    return anything


def test_name_and_types_are_the_functions_own() -> None:
    found = workflow(with_input)
    assert (found.name, found.takes_input, found.input_required) == ("with_input", True, True)
    assert (found.input_type, found.result_type) == (HelloRequest, list[str])
    assert (found.retention, found.retry) == (None, None)


def test_input_may_be_absent_or_optional() -> None:
    assert (workflow(without).takes_input, workflow(without).input_type) == (False, Any)
    assert (workflow(optional).takes_input, workflow(optional).input_required) == (True, False)
    assert (workflow(bare).input_type, workflow(bare).result_type) == (Any, Any)


def test_options() -> None:
    policy = RetryPolicy(max_attempts=2)
    found = workflow(name="other-name", retention=timedelta(days=1), retry=policy)(without)
    assert (found.name, found.retention, found.retry) == ("other-name", 86_400.0, policy)
    assert workflow(retention=5)(without).name == "without"


@pytest.mark.parametrize("name", ["a.b", "*", "a b", "x" * 129, "é"])
def test_name_that_no_subject_may_bear_is_refused(name: str) -> None:
    with pytest.raises(InvalidNameError):
        workflow(name=name)(without)


def plain(ctx: Context) -> None:
    """No coroutine function."""


async def nothing() -> None:
    """Takes no context."""


async def three(ctx: Context, a: int, b: int) -> None:
    """Takes too much."""


async def keyword(ctx: Context, *, a: int) -> None:
    """Cannot be given its input."""


async def generator(ctx: Context) -> Any:
    """Returns nothing that could be a result."""
    yield 1


@pytest.mark.parametrize("wrong", [plain, nothing, three, keyword, generator, partial(plain), 5, "text", len])
def test_what_is_no_such_function_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="workflow"):
        workflow(wrong)


def test_calling_it_says_what_to_do_instead() -> None:
    with pytest.raises(TypeError, match="client.start"):
        workflow(without)(None)
