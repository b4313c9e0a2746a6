"""Q4: a run's record can be read by any program that has the shipped `.proto`, and tells its whole story."""

from __future__ import annotations

import json
from importlib import resources

import pytest

from engine import WorkflowFailedError
from engine.durable_pb2 import ExecutionState
from tests.kit.foreign import Request, echo, script
from tests.kit.stage import ROOT, Stage


async def busy(request: Request) -> None:
    await request.fail(503, "busy")


async def gone(request: Request) -> None:
    await request.fail(404, "no such order")


async def test_the_key_of_a_completed_run_holds_its_input_its_result_and_every_step(stage: Stage) -> None:
    async with (
        stage.client() as client,
        stage.foreign("Call1", script(busy, echo(b"one "))),
        stage.foreign("Call2", echo(b"two ")),
    ):
        await stage.processor()
        for number in ("1", "2"):
            stage.gate(f"told-run{number}").open()
        result = await client.invoke("call_run_sleep", "x", id="told", timeout=15)
        bucket = await stage.raw.client.jetstream().key_value("EXECUTION_STATE")
        value = (await bucket.get("told")).value or b""
        state = ExecutionState.FromString(value)
        assert (state.invocation_id, state.handler, state.status) == ("told", "call_run_sleep", "completed")
        assert (json.loads(state.input), state.input_type) == ("x", "application/json")
        assert (json.loads(state.result), state.result_type) == (result, "application/json")
        assert not state.HasField("error")
        assert [(entry.step_number, entry.step_type) for entry in state.journal] == [
            (0, "Steps.Call1"),
            (1, "run:run1"),
            (2, "sleep:0.2s"),
            (3, "Steps.Call2"),
            (4, "run:run2"),
            (5, "sleep:0.2s"),
        ]
        call, run = state.journal[0], state.journal[1]
        assert (call.request, call.response, call.attempt_count) == (b"x", b"one x", 2)
        assert [attempt.error.message for attempt in call.attempts] == ["busy"]
        assert json.loads(run.response) == "told-run1"
        assert (
            state.created_at.ToNanoseconds() <= state.started_at.ToNanoseconds() <= state.completed_at.ToNanoseconds()
        )


async def test_the_key_of_a_failed_run_holds_the_error_of_the_run_and_of_the_step(stage: Stage) -> None:
    async with stage.client() as client, stage.foreign("Echo", gone):
        await stage.processor()
        with pytest.raises(WorkflowFailedError):
            await client.invoke("echo", "x", id="failed", timeout=15)
        record = await stage.raw.record("failed")
        assert record is not None
        assert (record.status, record.error.type, record.error.code) == ("failed", "CallFailedError", "NOT_FOUND")
        assert "no such order" in record.error.message
        assert "flows.py" in record.error.traceback
        entry = record.journal[0]
        assert (entry.step_type, entry.request, entry.response) == ("Steps.Echo", b"x", b"")
        assert (entry.error.code, entry.error.message) == ("NOT_FOUND", "no such order")


async def test_the_journal_of_a_completed_run_is_not_kept_twice(stage: Stage) -> None:
    async with stage.client() as client, stage.foreign("Echo", echo()):
        await stage.processor()
        for number in range(10):
            await client.invoke("echo", str(number), timeout=10)
        await stage.no_commands_left()
        async with stage.raw.watch("$JS.API.STREAM.PURGE.>"):
            for _ in range(500):
                if await stage.raw.journal_messages() == 0:
                    return
        raise AssertionError(f"{await stage.raw.journal_messages()} entries are left")


def test_the_installed_proto_is_the_one_that_the_code_is_made_from() -> None:
    source = resources.files("engine") / "durable.proto"
    assert source.read_text() == (ROOT / "protos" / "durable.proto").read_text()
