"""R15, J7, J8: what cannot be read, stored or sent is a clear failure of that run alone."""

from __future__ import annotations

import pytest

from engine import WorkflowFailedError
from tests.kit.agreement import agreement
from tests.kit.foreign import echo
from tests.kit.stage import Stage


@pytest.mark.parametrize(
    ("data", "headers"),
    [
        (b"\xff\xfe{not json", {"Mesh-Incarnation": "abcdefghijkl", "Mesh-Input-Type": "application/json"}),
        (b'{"wrong": "type"}', {"Mesh-Incarnation": "abcdefghijkl", "Mesh-Input-Type": "application/json"}),
        (b"\xff", {"Mesh-Incarnation": "abcdefghijkl", "Mesh-Input-Type": "application/protobuf; type=no.Such"}),
        (b"\xff\x00garbage", None),
    ],
    ids=["no-json", "wrong-type", "unknown-message", "no-headers"],
)
async def test_input_that_does_not_decode_fails_that_run_alone(
    stage: Stage, data: bytes, headers: dict[str, str] | None
) -> None:
    async with stage.client() as client, stage.foreign("Echo", echo()):
        await stage.processor()
        await stage.raw.publish("wf.default.cmd.1.echo.garbage", data, headers)
        record = await stage.raw.wait_for_status("garbage", "failed", timeout=10)
        assert record.error.type == "DecodeError"
        assert "input" in record.error.message
        await agreement(client, stage.raw, "garbage")
        assert await client.invoke("echo", "good", timeout=10) == "good"
        await stage.no_commands_left()


async def test_no_input_where_one_is_needed_fails_that_run_alone(stage: Stage) -> None:
    async with stage.client() as client, stage.foreign("Echo", echo()):
        await stage.processor()
        with pytest.raises(WorkflowFailedError):
            await client.invoke("echo", timeout=10)
        assert await client.invoke("echo", "good", timeout=10) == "good"


async def test_a_value_that_cannot_be_stored_fails_that_run_alone(stage: Stage) -> None:
    async with stage.client() as client, stage.foreign("Echo", echo()):
        await stage.processor()
        with pytest.raises(WorkflowFailedError) as failed:
            await client.invoke("oversized", "unstorable", id="unstorable", timeout=10)
        assert failed.value.type == "EncodeError"
        assert "unstorable" in failed.value.message
        assert "generator" in failed.value.message
        assert await client.invoke("echo", "good", timeout=10) == "good"


@pytest.mark.parametrize("what", ["request", "value", "result"])
async def test_what_is_larger_than_a_message_fails_that_run_alone_and_names_the_limit(stage: Stage, what: str) -> None:
    async with stage.client() as client, stage.foreign("Echo", echo()):
        await stage.processor()
        neighbour = await client.start("held", "neighbour")
        await stage.ledger.wait_for(event="begin", step="hold")
        with pytest.raises(WorkflowFailedError) as failed:
            await client.invoke("oversized", what, id=f"large-{what}", timeout=10)
        assert "max_payload" in failed.value.message
        assert "3145" in failed.value.message, "the size"
        record = (await agreement(client, stage.raw, f"large-{what}")).record
        assert record.status == "failed"
        stage.gate("hold").open()
        assert (await neighbour.result(timeout=10)).startswith("neighbour ")
        assert (await neighbour.describe()).attempts == 1
        assert stage.ledger.count(event="run", step="large") <= 1
        await stage.no_commands_left()
