"""Real I/O outside `ctx.run` fails the run with an error that names `ctx.run`; the processor goes on."""

from __future__ import annotations

import pytest

from engine import WorkflowFailedError
from tests.kit.agreement import agreement
from tests.kit.stage import Stage


@pytest.mark.parametrize("what", ["connection", "thread", "executor", "subprocess"])
async def test_real_io_in_a_body_fails_the_run_and_names_the_remedy(stage: Stage, what: str) -> None:
    async with stage.client() as client:
        await stage.processor()
        handle = await client.start("does_foreign_things", what)
        with pytest.raises(WorkflowFailedError) as failed:
            await handle.result(timeout=10)
        assert failed.value.type == "ForeignAwaitError"
        assert "ctx.run" in failed.value.message
        seen = await agreement(client, stage.raw, handle.id)
        assert (seen.status, seen.error_type) == ("failed", "ForeignAwaitError")
        assert (await client.invoke("noted", "x", timeout=10)).startswith("x ")
