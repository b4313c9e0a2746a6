"""H2: an id is one invocation, whatever workflow or key it is submitted under."""

from __future__ import annotations

import asyncio

import pytest

from engine import InvocationConflictError
from tests.kit.raw import ApiError
from tests.kit.stage import Stage


async def test_the_same_id_under_another_workflow_or_key_is_refused_while_queued(stage: Stage) -> None:
    async with stage.client() as client:
        await client.start("noted", "x", id="one")
        with pytest.raises(InvocationConflictError):
            await client.start("echo", "x", id="one")
        with pytest.raises(InvocationConflictError):
            await client.start("noted", "x", id="one", partition_key="elsewhere")
        assert await stage.raw.messages("COMMANDS") == 1


async def test_of_many_racing_submissions_exactly_one_is_accepted(stage: Stage) -> None:
    workflows = ["noted", "echo", "held", "sleeper"]
    async with stage.client() as client:
        for round_number in range(20):
            invocation = f"race-{round_number}"
            starts = [client.start(workflow, "x", id=invocation) for workflow in workflows]
            outcomes = await asyncio.gather(*starts, return_exceptions=True)
            conflicts = [o for o in outcomes if isinstance(o, InvocationConflictError)]
            assert len(conflicts) == len(workflows) - 1, outcomes
        assert await stage.raw.messages("COMMANDS") == 20


async def test_every_writer_uses_the_one_form_of_expectation(stage: Stage) -> None:
    """The plain form beside the wildcard form lets two through on replicated streams: nobody may use it."""
    async with stage.client() as client, stage.raw.watch("wf.default.cmd.>") as commands:
        await stage.processor("--suspend-after", "0")
        await (await client.start("sleeper", 0.3, id="dozing")).result(timeout=10)
        kinds = []
        for message in commands.messages:
            headers = dict(message.headers or {})
            kinds.append(headers["Mesh-Kind"])
            assert headers["Nats-Expected-Last-Subject-Sequence"] == "0"
            assert headers["Nats-Expected-Last-Subject-Sequence-Subject"] == "wf.default.cmd.*.*.dozing"
            assert headers["Nats-Msg-Id"]
        assert kinds[0] == "start"
        assert "wake" in kinds


async def test_a_second_command_is_refused_by_the_stream_itself(stage: Stage) -> None:
    async with stage.client() as client:
        await client.start("noted", "x", id="one")
        headers = {
            "Nats-Expected-Last-Subject-Sequence": "0",
            "Nats-Expected-Last-Subject-Sequence-Subject": "wf.default.cmd.*.*.one",
        }
        with pytest.raises(ApiError) as refused:
            await stage.raw.publish("wf.default.cmd.1.echo.one", b"", headers)
        assert refused.value.code == 10071
