"""Whatever a processor asks or writes while the link loses it, is asked or written again."""

from __future__ import annotations

import asyncio

import pytest

from tests.kit.foreign import echo
from tests.kit.proxy import delivers, publishes
from tests.kit.stage import M1, M2, Mode, Stage


@pytest.fixture(params=[M1, M2], ids=lambda mode: mode.name, autouse=True)
def mode(request: pytest.FixtureRequest) -> Mode:
    found: Mode = request.param
    return found


LOSSES = {
    "answers of the record's leader": lambda proxy: proxy.lose_answers("$JS.API.STREAM.MSG.GET.>"),
    "answers of the journal": lambda proxy: proxy.lose_answers("$JS.API.DIRECT.GET.>"),
    "acknowledgements of entries": lambda proxy: proxy.lose_answers("wf.default.j.w.>"),
    "acknowledgements of records": lambda proxy: proxy.lose_answers("$KV.EXECUTION_STATE.>"),
    "acknowledgements of timers": lambda proxy: proxy.lose_answers("wf.default.timer.s.>"),
    "acknowledgements of wakes": lambda proxy: proxy.lose_answers("wf.default.cmd.>"),
    "answers to in-progress acks": lambda proxy: proxy.lose_answers("$JS.ACK.>"),
    "questions": lambda proxy: proxy.lose(publishes("$JS.API.>")),
    "entries": lambda proxy: proxy.lose(publishes("wf.default.j.w.>")),
    "records": lambda proxy: proxy.lose(publishes("$KV.EXECUTION_STATE.>")),
    "timers": lambda proxy: proxy.lose(publishes("wf.default.timer.s.>")),
    "wakes": lambda proxy: proxy.lose(publishes("wf.default.cmd.>")),
    "acks": lambda proxy: proxy.lose(publishes("$JS.ACK.>")),
    "copies of entries": lambda proxy: proxy.lose(delivers("wf.default.j.s.>")),
    "fired timers": lambda proxy: proxy.lose(delivers("wf.default.timer.f.>")),
}


@pytest.mark.parametrize("lost", LOSSES)
async def test_a_run_survives_a_link_that_loses_for_a_while(stage: Stage, lost: str) -> None:
    async with (
        stage.link() as proxy,
        stage.client() as client,
        stage.foreign("Call1", echo(b"1")) as first,
        stage.foreign("Call2", echo(b"2")) as second,
    ):
        await stage.processor(url=proxy.url)
        for number in ("1", "2"):
            stage.gate(f"lossy-run{number}").open()
        no_more = LOSSES[lost](proxy)
        handle = await client.start("call_run_sleep", "x", id="lossy")
        await asyncio.sleep(1.5)
        no_more()
        assert await handle.result(timeout=40) == ["1x", "lossy-run1", "2x", "lossy-run2"]
        assert (len(first.requests), len(second.requests)) == (1, 1)
        assert stage.ledger.count(event="begin", invocation="lossy") == 2
        await stage.no_commands_left()
