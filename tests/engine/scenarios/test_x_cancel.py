"""X1, X3, X4, X6, X7, T5: cancelling runs in every state."""

from __future__ import annotations

import time

import pytest

from engine import InvocationNotFoundError, InvocationStateError, WorkflowCancelledError
from tests.kit.agreement import agreement
from tests.kit.foreign import Request, echo
from tests.kit.stage import Stage


async def refuse(request: Request) -> None:
    """Answer with an error that is tried again."""
    await request.fail(503, "not now")


@pytest.mark.parametrize("where", ["sleep", "call", "run", "backoff", "gather"])
async def test_a_blocked_run_is_interrupted_at_its_await_and_cleans_up(stage: Stage, where: str) -> None:
    async with stage.client() as client, stage.foreign("Blocked"), stage.foreign("Failing", refuse) as failing:
        async with stage.foreign("Undo", echo()) as undo:
            await stage.processor()
            handle = await client.start("cancellable", where)
            if where == "run":
                await stage.ledger.wait_for(event="begin", step="hold")
            elif where == "backoff":
                await failing.wait_for(1)
            else:
                await stage.raw.wait_for_status(handle.id, "running", "suspended")
            began = time.monotonic()
            await handle.cancel()
            with pytest.raises(WorkflowCancelledError):
                await handle.result(timeout=10)
            assert time.monotonic() - began < 3  # a second on a machine that has nothing else to do
            seen = await agreement(client, stage.raw, handle.id)
            assert seen.status == "cancelled"
            assert stage.ledger.count(event="run", step="undo") == 1
            assert len(undo.requests) == 1


async def test_a_run_that_was_cancelled_before_it_began_never_does(stage: Stage) -> None:
    async with stage.client() as client:
        handle = await client.start("noted", "x")
        await handle.cancel()
        await stage.processor()
        with pytest.raises(WorkflowCancelledError):
            await handle.result(timeout=10)
        await stage.raw.wait_for_no_command(handle.id)
        assert stage.ledger.text() == ""
        assert (await agreement(client, stage.raw, handle.id)).status == "cancelled"


async def test_a_cancellation_that_the_code_swallows_is_no_end_and_a_shielded_call_ends(stage: Stage) -> None:
    async with stage.client() as client, stage.foreign("Shielded") as shielded:
        await stage.processor()
        handle = await client.start("swallows_cancel", "x")
        await shielded.wait_for(1)
        await handle.cancel()
        async with stage.raw.watch("wf.default.j.s.>") as stored:
            if not await stage.raw.deliveries(handle.id):
                await stored.wait_for(lambda m: ".in." in m.subject)
        await shielded.requests[0].respond(b"answered")
        assert await handle.result(timeout=10) == "caught, answered"
        assert (await agreement(client, stage.raw, handle.id)).status == "completed"


async def test_a_second_cancellation_does_not_interrupt_the_clean_up(stage: Stage) -> None:
    async with stage.client() as client:
        await stage.processor()
        handle = await client.start("slow_cleanup", "x")
        await stage.raw.wait_for_status(handle.id, "running", "suspended")
        await handle.cancel()
        await stage.ledger.wait_for(event="begin", step="hold")
        await handle.cancel()
        stage.gate("hold").open()
        with pytest.raises(WorkflowCancelledError):
            await handle.result(timeout=10)
        assert stage.ledger.count(event="begin", step="hold") == 1
        assert stage.ledger.count(event="run", step="undo") == 1


async def test_a_cancellation_during_the_last_step_gives_one_end(stage: Stage) -> None:
    async with stage.client() as client:
        await stage.processor()
        handle = await client.start("held", "x")
        await stage.ledger.wait_for(event="begin", step="hold")
        await handle.cancel()
        stage.gate("hold").open()
        record = await stage.raw.wait_for_status(handle.id, "completed", "cancelled")
        assert (await agreement(client, stage.raw, handle.id)).status == record.status
        assert stage.ledger.count(event="run", step="second") == (record.status == "completed")


async def test_what_has_ended_cannot_be_cancelled(stage: Stage) -> None:
    async with stage.client() as client:
        await stage.processor()
        done = await client.start("noted", "x")
        await done.result(timeout=10)
        over = await client.start("slow_cleanup", "x")
        stage.gate("hold").open()
        await over.cancel()
        with pytest.raises(WorkflowCancelledError):
            await over.result(timeout=10)
        before = [await stage.raw.stored_record(run.id) for run in (done, over)]
        with pytest.raises(InvocationStateError) as refused:
            await done.cancel()
        assert refused.value.status == "completed"
        await over.cancel()
        with pytest.raises(InvocationNotFoundError):
            await client.cancel("nobody")
        assert [await stage.raw.stored_record(run.id) for run in (done, over)] == before


async def test_a_cancelled_sleeper_leaves_nothing_behind(stage: Stage) -> None:
    async with stage.client() as client:
        await stage.processor("--suspend-after", "0")
        handle = await client.start("sleeper", 86_400.0)
        await stage.raw.wait_for_status(handle.id, "suspended")
        assert await stage.raw.subjects("TIMERS")
        await handle.cancel()
        with pytest.raises(WorkflowCancelledError):
            await handle.result(timeout=10)
        async with stage.raw.watch("$JS.API.STREAM.PURGE.>"):
            for _ in range(200):
                left = await stage.raw.subjects("TIMERS")
                if not left and not await stage.raw.controls(handle.id) and not await stage.raw.journal_messages():
                    break
        assert not await stage.raw.subjects("TIMERS")
        assert not await stage.raw.controls(handle.id)
        assert await stage.raw.messages("COMMANDS") == 0


async def test_a_processor_that_does_not_know_the_workflow_wakes_its_run(stage: Stage) -> None:
    async with stage.client() as client:
        first = await stage.processor("--suspend-after", "0")
        handle = await client.start("sleeper", 60.0)
        await stage.raw.wait_for_status(handle.id, "suspended")
        first.kill()
        await stage.processor(flows="tests.kit.flows:echo")
        async with stage.raw.watch("wf.default.cmd.>") as commands:
            await handle.cancel()
            wake = await commands.wait_for(lambda m: m.subject.endswith(handle.id))
            assert (wake.headers or {})["Mesh-Kind"] == "wake"
        await stage.processor()
        with pytest.raises(WorkflowCancelledError):
            await handle.result(timeout=10)
