"""An input that was not given is None, and must be what the workflow's hint admits."""

from __future__ import annotations

from typing import Any

from engine import Context, workflow
from engine.model import Invocation
from engine.replay import Replay


@workflow
async def wants_text(ctx: Context, name: str) -> str:
    return name


@workflow
async def takes_none(ctx: Context, name: str | None) -> str:
    return f"got {name}"


@workflow
async def has_default(ctx: Context, name: str = "World") -> str:
    return name


def run_without_input(flow: Any) -> Any:
    replay = Replay(Invocation("id", "incarnation", flow.name, b"", "", 1, 1), flow)
    replay.start()
    assert replay.outcome is not None
    return replay.outcome


def test_missing_text_is_a_decode_error() -> None:
    failure = run_without_input(wants_text).failure
    assert failure.type == "DecodeError"
    assert "str" in failure.message


def test_none_where_the_hint_admits_it() -> None:
    assert run_without_input(takes_none).result.data == b'"got None"'


def test_default_where_there_is_one() -> None:
    assert run_without_input(has_default).result.data == b'"World"'
