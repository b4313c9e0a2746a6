"""V1: code that does something else in its second pass is stopped before the new effect."""

from __future__ import annotations

import pytest

from engine import WorkflowFailedError
from tests.kit.agreement import agreement
from tests.kit.foreign import echo
from tests.kit.stage import Stage


@pytest.mark.parametrize(
    ("change", "recorded", "attempted"),
    [
        ("sleep-or-call", "sleep 0.4", "call Steps.Effect"),
        ("call-or-sleep", "call Steps.Recorded", "sleep 0.4"),
        ("method", "call Steps.Recorded", "call Steps.Effect"),
        ("arguments", "call Steps.Recorded", "call Steps.Recorded"),
    ],
)
async def test_another_operation_in_the_second_pass_stops_the_run_with_both_named(
    stage: Stage, change: str, recorded: str, attempted: str
) -> None:
    async with (
        stage.client() as client,
        stage.foreign("Recorded", echo(b"r")) as known,
        stage.foreign("Effect", echo(b"e")) as effect,
    ):
        first = await stage.processor()
        handle = await client.start("mind_changer", change)
        await stage.ledger.wait_for(event="begin", step=f"hold-{change}")
        requests = len(known.requests)
        first.kill()
        stage.gate(f"changed-{change}").open()
        stage.gate(f"hold-{change}").open()
        await stage.processor()
        with pytest.raises(WorkflowFailedError) as failed:
            await handle.result(timeout=15)
        assert failed.value.type == "NonDeterminismError"
        for words in ("step 0", recorded, attempted):
            assert words in failed.value.message
        assert effect.requests == [], "the new effect took place"
        assert len(known.requests) == requests, "a recorded step ran again"
        seen = await agreement(client, stage.raw, handle.id)
        assert (seen.status, seen.error_type) == ("failed", "NonDeterminismError")
        told = (await handle.describe()).journal[0]
        assert f"{told.kind} {told.name}".startswith(recorded), "the journal tells what is recorded"
        assert await stage.raw.subjects("TIMERS") == {}, "a timer of the new branch was set"
