"""`mesh workflow` and `mesh init`: one answer on stdout, exit codes that scripts can rely on."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from engine import model, records
from engine.client import Client
from engine.names import Names
from mesh import headers
from tests.cli.commands import mesh as run_mesh

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

    from tests.kit.raw import Raw
    from tests.kit.server import NatsServer

WORKFLOWS = """
from engine import Context, workflow

@workflow
async def greet(ctx: Context, name: str) -> str:
    return name

@workflow
async def other(ctx: Context) -> None: ...
"""


async def mesh(server: NatsServer, *arguments: str, **extra: Any) -> Result:
    return await asyncio.to_thread(run_mesh, server.url, *arguments, **extra)


async def write(raw: Raw, invocation: str, status: str, **fields: Any) -> None:
    record = records.Record(invocation, "greet", status, **fields)
    block = headers.parse(records.record_headers(record, 0, invocation))
    await raw.publish(Names().record(invocation), record.to_bytes(), block)


@pytest.fixture
async def store(nats_server: NatsServer, raw: Raw) -> Raw:
    assert (await mesh(nats_server, "init")).exit_code == 0
    return raw


async def test_start_prints_the_id_and_says_that_nobody_serves_the_workflow(
    nats_server: NatsServer, store: Raw
) -> None:
    started = await mesh(nats_server, "workflow", "start", "greet", '{"b": 1, "a": [2]}', "--partition-key", "k 1")
    assert started.exit_code == 0
    invocation = started.stdout.strip()
    assert "nobody serves greet at present" in started.stderr
    stored = await store.command(invocation)
    assert stored is not None
    assert (stored.data, stored.headers["Mesh-Partition-Key"]) == (b'{"a":[2],"b":1}', "k%201")


async def test_start_in_json_is_what_http_answers(nats_server: NatsServer, store: Raw) -> None:
    started = await mesh(nats_server, "workflow", "start", "greet", "--id", "x", "--json")
    assert json.loads(started.stdout) == {"invocation_id": "x", "status": "pending", "served": False}
    await write(store, "done", "completed")
    queued = await store.command("x")
    assert queued is not None
    assert queued.data == b""


async def test_input_comes_from_a_file_or_from_stdin(nats_server: NatsServer, store: Raw, tmp_path: Path) -> None:
    (tmp_path / "input.json").write_text('{"from": "file"}')
    await mesh(nats_server, "workflow", "start", "greet", f"@{tmp_path}/input.json", "--id", "file")
    await mesh(nats_server, "workflow", "start", "greet", "-", "--id", "stdin", input='"typed"')
    for invocation, data in (("file", b'{"from":"file"}'), ("stdin", b'"typed"')):
        stored = await store.command(invocation)
        assert stored is not None
        assert stored.data == data


async def test_result_prints_json_or_bytes(nats_server: NatsServer, store: Raw) -> None:
    await write(store, "json", "completed", result=b'{"a":"\xc3\xa9"}', result_type="application/json")
    await write(store, "bytes", "completed", result=b"\x00\xff", result_type="application/octet-stream")
    await write(store, "none", "completed", result=b"null", result_type="application/json")
    assert (await mesh(nats_server, "workflow", "result", "json")).stdout == '{"a": "é"}\n'
    assert (await mesh(nats_server, "workflow", "result", "bytes")).stdout_bytes == b"\x00\xff"
    assert (await mesh(nats_server, "workflow", "result", "none")).stdout == "null\n"
    document = json.loads((await mesh(nats_server, "workflow", "result", "bytes", "--json")).stdout)
    assert document == {"invocation_id": "bytes", "status": "completed", "result": "AP8=", "encoding": "base64"}


async def test_describe_in_json_is_the_clients_description(nats_server: NatsServer, store: Raw) -> None:
    await write(store, "x", "failed", error=model.Failure("ValueError", "bad", "INTERNAL", "Traceback"), attempts=2)
    shown = json.loads((await mesh(nats_server, "workflow", "describe", "x", "--json")).stdout)
    async with Client.connect(nats_server.url) as client:
        assert shown == (await client.handle("x").describe()).to_dict()
    assert shown["error"] == {"type": "ValueError", "message": "bad", "code": "INTERNAL", "traceback": "Traceback"}


async def test_describe_for_people_has_status_error_and_steps(nats_server: NatsServer, store: Raw) -> None:
    step = records.JournalEntry(0, "HelloService.SayHello", response=b'"hi"', response_type="application/json")
    await write(store, "x", "failed", error=model.Failure("ValueError", "bad luck"), journal=(step,))
    shown = (await mesh(nats_server, "workflow", "describe", "x")).stdout
    assert "failed" in shown
    assert "ValueError: bad luck" in shown
    assert "HelloService.SayHello" in shown


CODES: list[tuple[list[str], int, dict[str, Any]]] = [
    (["result", "unknown"], 3, {"code": "NOT_FOUND", "source": "ingress", "invocation_id": "unknown"}),
    (["describe", "unknown"], 3, {"code": "NOT_FOUND", "source": "ingress", "invocation_id": "unknown"}),
    (["result", "failed"], 1, {"code": "INTERNAL", "source": "workflow", "type": "E", "invocation_id": "failed"}),
    (["result", "cancelled"], 1, {"code": "CANCELLED", "source": "workflow", "invocation_id": "cancelled"}),
    (["result", "running", "--timeout", "100ms"], 5, {"code": "DEADLINE_EXCEEDED", "invocation_id": "running"}),
    (["invoke", "greet", "--id", "mine", "--timeout", "0"], 5, {"code": "DEADLINE_EXCEEDED", "invocation_id": "mine"}),
    (["start", "other", "--id", "failed"], 4, {"code": "ALREADY_EXISTS", "invocation_id": "failed"}),
    (["start", "a.b"], 2, {"code": "INVALID_ARGUMENT"}),
    (["start", "greet", "--id", "a b"], 2, {"code": "INVALID_ARGUMENT"}),
    (["start", "greet", "{no json"], 2, {"code": "INVALID_ARGUMENT"}),
    (["start", "greet", "@missing.json"], 2, {"code": "INVALID_ARGUMENT"}),
    (["start", "greet", "--namespace", "a.b"], 2, {"code": "INVALID_ARGUMENT"}),
]


@pytest.mark.parametrize(("arguments", "exit_code", "document"), CODES, ids=lambda part: str(part)[:40])
async def test_errors_have_their_exit_code_and_document(
    nats_server: NatsServer, store: Raw, arguments: list[str], exit_code: int, document: dict[str, Any]
) -> None:
    await write(store, "failed", "failed", error=model.Failure("E", "bad", "INTERNAL"))
    await write(store, "cancelled", "cancelled")
    await write(store, "running", "running")
    ended = await mesh(nats_server, "workflow", *arguments, "--json")
    assert ended.exit_code == exit_code, ended.output
    shown = json.loads(ended.stdout)
    assert shown["message"]
    assert document.items() <= shown.items()
    assert "Traceback" not in ended.stderr


async def test_cancel_prints_the_status_and_refuses_what_has_ended(nats_server: NatsServer, store: Raw) -> None:
    started = (await mesh(nats_server, "workflow", "start", "greet", '"x"')).stdout.strip()
    cancelled = await mesh(nats_server, "workflow", "cancel", started, "--json")
    assert (cancelled.exit_code, json.loads(cancelled.stdout)) == (0, {"invocation_id": started, "status": "pending"})
    assert [stored.subject.split(".")[-2] for stored in await store.controls(started)] == ["cancel"]
    await write(store, "done", "completed", incarnation="incarnation")
    assert (await mesh(nats_server, "workflow", "cancel", "done")).exit_code == 4
    assert (await mesh(nats_server, "workflow", "cancel", "nobody")).exit_code == 3


async def test_pause_and_resume_print_the_status(nats_server: NatsServer, store: Raw) -> None:
    started = (await mesh(nats_server, "workflow", "start", "greet", '"x"')).stdout.strip()
    for name in ("pause", "resume"):
        done = await mesh(nats_server, "workflow", name, started, "--json")
        assert (done.exit_code, json.loads(done.stdout)) == (0, {"invocation_id": started, "status": "pending"})
        assert (await mesh(nats_server, "workflow", name, "nobody")).exit_code == 3
    assert [stored.subject.split(".")[-2] for stored in await store.controls(started)] == ["pause", "resume"]


async def test_signal_stores_a_named_value(nats_server: NatsServer, store: Raw) -> None:
    started = (await mesh(nats_server, "workflow", "start", "greet", '"x"')).stdout.strip()
    sent = await mesh(nats_server, "workflow", "signal", started, "more", '{"n": 1}', "--json")
    assert (sent.exit_code, json.loads(sent.stdout)) == (0, {"invocation_id": started, "status": "pending"})
    (stored,) = await store.controls(started)
    assert (stored.headers["Mesh-Name"], json.loads(stored.data)) == ("more", {"n": 1})
    assert (await mesh(nats_server, "workflow", "signal", started, "a.b")).exit_code == 2
    assert (await mesh(nats_server, "workflow", "signal", "nobody", "more")).exit_code == 3


async def test_without_a_server_it_is_unreachable() -> None:
    ended = await asyncio.to_thread(
        run_mesh, "nats://127.0.0.1:1", "workflow", "start", "greet", "--connect-timeout", "200ms"
    )
    assert ended.exit_code == 6


async def test_init_makes_streams_and_the_consumers_of_modules(
    nats_server: NatsServer, raw: Raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flows_for_init.py").write_text(WORKFLOWS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for _ in range(2):  # again changes nothing
        made = await mesh(nats_server, "init", "flows_for_init", "--ack-wait", "7s", "--json")
        assert made.exit_code == 0, made.output
        document = json.loads(made.stdout)
        assert document["consumers"] == ["greet", "other"]
        assert sorted(document["streams"]) == await raw.streams()
    assert (await raw.consumer("greet"))["config"]["ack_wait"] == 7_000_000_000
    kept = await mesh(nats_server, "init", "flows_for_init:greet")
    assert kept.exit_code == 0
    assert (await raw.consumer("greet"))["config"]["ack_wait"] == 7_000_000_000


async def test_init_refuses_a_foreign_stream(nats_server: NatsServer, raw: Raw) -> None:
    await raw.api("STREAM.CREATE.COMMANDS", {"name": "COMMANDS", "subjects": ["theirs"]})
    refused = await mesh(nats_server, "init")
    assert refused.exit_code == 1
    assert "COMMANDS that was not made by us" in refused.stderr
