"""Whatever question or write of a processor stays unanswered once, is asked or written again."""

from __future__ import annotations

import asyncio

import pytest

from tests.kit.foreign import echo
from tests.kit.stage import M1, M2, Mode, Stage


@pytest.fixture(params=[M1, M2], ids=lambda mode: mode.name, autouse=True)
def mode(request: pytest.FixtureRequest) -> Mode:
    found: Mode = request.param
    return found


@pytest.mark.parametrize(
    "asked",
    [
        "$JS.API.STREAM.MSG.GET.>",
        "$JS.API.DIRECT.GET.>",
        "wf.default.j.w.>",
        "$KV.EXECUTION_STATE.>",
        "wf.default.timer.s.>",
        "wf.default.cmd.>",
        "$JS.ACK.>",
    ],
)
async def test_a_run_survives_that_answers_are_lost_for_a_while(stage: Stage, asked: str) -> None:
    async with (
        stage.link() as proxy,
        stage.client() as client,
        stage.foreign("Call1", echo(b"1")) as first,
        stage.foreign("Call2", echo(b"2")) as second,
    ):
        await stage.processor(url=proxy.url)
        for number in ("1", "2"):
            stage.gate(f"lossy-run{number}").open()
        answer_again = proxy.lose_answers(asked)
        handle = await client.start("call_run_sleep", "x", id="lossy")
        await asyncio.sleep(1.5)
        answer_again()
        assert await handle.result(timeout=30) == ["1x", "lossy-run1", "2x", "lossy-run2"]
        assert (len(first.requests), len(second.requests)) == (1, 1)
        assert stage.ledger.count(event="begin", invocation="lossy") == 2
