"""Starting exactly once by id, waiting without polling, and what a client says when it does not know."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

import mesh
from engine import errors, model, records, workflow
from engine.client import Client
from engine.client.submission import RECORD_RESERVE
from engine.commands import read_command
from engine.names import Names
from mesh import headers
from tests.kit.proxy import Proxy, delivers
from tests.kit.server import NatsServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.kit.raw import Raw

NAMES = Names()
ROLES = """
authorization {
  users = [
    {user: operator, password: secret}
    {user: client, password: secret, permissions: {subscribe: ["_INBOX.>", "wf.default.done.>"], publish: [
      "$JS.API.STREAM.INFO.KV_EXECUTION_STATE", "$JS.API.STREAM.MSG.GET.KV_EXECUTION_STATE",
      "wf.default.cmd.*.greet.*"]}}
  ]
}
"""


@dataclass
class Person:
    name: str
    age: int


@workflow
async def greet(ctx: Any, person: Person) -> str:
    raise NotImplementedError


@workflow
async def nothing(ctx: Any) -> None:
    raise NotImplementedError


@pytest.fixture
async def client(nats_server: NatsServer) -> AsyncIterator[Client]:
    async with Client.connect(nats_server.url) as connected:
        await connected.is_served("greet")  # the first thing a client does makes the namespace
        yield connected


async def write_record(raw: Raw, invocation: str, status: str, revision: int = 0, **fields: Any) -> records.Record:
    """What a processor would write."""
    record = records.Record(invocation, fields.pop("workflow", "greet"), status, **fields)
    block = headers.parse(records.record_headers(record, revision, f"{invocation}-{status}-{revision}"))
    await raw.publish(NAMES.record(invocation), record.to_bytes(), block)
    return record


async def complete(raw: Raw, invocation: str, result: bytes = b'"hi"') -> None:
    """What a processor does with a command: the final record first, then the acknowledgement."""
    stored = await raw.command(invocation)
    assert stored is not None
    command = read_command(stored.data, headers.encode(stored.headers.items()))
    await write_record(
        raw,
        invocation,
        "completed",
        workflow=stored.subject.split(".")[4],
        input=command.input,
        input_type=command.input_type,
        incarnation=command.incarnation,
        partition_key=command.partition_key,
        result=result,
        result_type="application/json",
    )
    await raw.api("STREAM.PURGE.COMMANDS", {"filter": stored.subject})


# --- one execution an id


async def test_a_start_is_one_command_with_what_a_processor_needs(client: Client, raw: Raw) -> None:
    handle = await client.start(greet, Person("Ada", 36), partition_key="user 1/é")
    stored = await raw.command(handle.id)
    assert stored is not None
    assert stored.subject == NAMES.command("greet", handle.id, NAMES.partition("user 1/é"))
    command = read_command(stored.data, headers.encode(stored.headers.items()))
    assert (command.kind, command.input, command.input_type) == (
        "start",
        b'{"name":"Ada","age":36}',
        "application/json",
    )
    assert command.partition_key == "user 1/é"
    assert len(command.incarnation) == 24
    assert stored.headers["Nats-Msg-Id"] == command.incarnation


async def test_the_same_start_twice_is_one_invocation_queued_running_and_done(client: Client, raw: Raw) -> None:
    person = Person("Ada", 36)
    await client.start(greet, person, id="x")
    await client.start(greet, person, id="x")
    assert await raw.messages("COMMANDS") == 1
    await complete(raw, "x")
    again = await client.start(greet, person, id="x")
    assert await again.result(timeout=5) == "hi"
    assert await client.invoke(greet, person, id="x", timeout=5) == "hi"


@pytest.mark.parametrize("done", [False, True])
async def test_another_input_workflow_or_key_is_a_conflict_and_changes_nothing(
    client: Client, raw: Raw, done: bool
) -> None:
    await client.start(greet, Person("Ada", 36), id="x", partition_key="k")
    if done:
        await complete(raw, "x")
    for arguments, difference in (
        (("greet", {"name": "Bob", "age": 36}, "k"), "another input"),
        (("other", {"name": "Ada", "age": 36}, "k"), "workflow 'greet', not 'other'"),
        (("greet", {"name": "Ada", "age": 36}, "l"), "partition key 'k', not 'l'"),
    ):
        name, value, key = arguments
        with pytest.raises(errors.InvocationConflictError, match=difference) as conflict:
            await client.start(name, value, id="x", partition_key=key)
        assert conflict.value.invocation_id == "x"
    description = await client.handle("x").describe()
    assert description.input == {"name": "Ada", "age": 36}


async def test_the_order_of_a_dicts_keys_makes_no_other_input(client: Client) -> None:
    await client.start("greet", {"name": "Ada", "age": 36}, id="x")
    await client.start("greet", {"age": 36, "name": "Ada"}, id="x")


async def test_many_who_start_one_id_at_once_start_it_once(nats_server: NatsServer, raw: Raw) -> None:
    async def submit_ten() -> None:
        async with Client.connect(nats_server.url) as client:
            await asyncio.gather(*(client.start(greet, Person("Ada", 36), id="x") for _ in range(10)))

    await asyncio.gather(*(submit_ten() for _ in range(3)))
    assert await raw.messages("COMMANDS") == 1


async def test_an_id_whose_run_was_purged_is_free_again(client: Client, raw: Raw) -> None:
    await client.start(greet, Person("Ada", 36), id="x")
    await complete(raw, "x")
    await raw.api("STREAM.PURGE.KV_EXECUTION_STATE", {"filter": NAMES.record("x")})
    await client.start(greet, Person("Bob", 1), id="x")
    assert (await client.handle("x").describe()).status == "pending"


# --- when the network fails


async def test_a_lost_acknowledgement_ends_in_the_same_invocation(nats_server: NatsServer, raw: Raw) -> None:
    """I5: the publish arrives, its acknowledgement does not, the client publishes again."""
    async with Proxy(nats_server.port) as proxy, Client.connect(proxy.url) as client:
        await client.start(greet, Person("Warm", 1))
        lost = proxy.lose_answers("wf.default.cmd.>")
        starting = asyncio.create_task(client.start(greet, Person("Ada", 36), id="x"))
        await until(lambda: raw.messages("COMMANDS"), 2)
        lost()
        proxy.cut()
        await starting
    assert await raw.messages("COMMANDS") == 2


async def until(ask: Callable[[], Awaitable[object]], wanted: object) -> None:
    async with asyncio.timeout(10):
        while await ask() != wanted:
            await asyncio.sleep(0.02)


async def test_a_server_that_stays_away_is_unavailable_and_says_that_again_is_safe(tmp_path: Path) -> None:
    async with NatsServer(tmp_path / "nats") as server, Client.connect(server.url) as client:
        await client.start(greet, Person("Warm", 1))
        server.pause()
        began = time.monotonic()
        with pytest.raises(errors.UnavailableError, match="again with the same id and input") as unknown:
            await client.invoke(greet, Person("Ada", 36), timeout=1)
        assert time.monotonic() - began < 3
        server.resume()
        assert unknown.value.invocation_id
        await client.start(greet, Person("Ada", 36), id=unknown.value.invocation_id)


async def test_a_closed_connection_is_unavailable_at_once(nats_server: NatsServer) -> None:
    client = await Client.connect(nats_server.url)
    await client.start(greet, Person("Warm", 1))
    await client.close()
    for operation in (client.start(greet, Person("Ada", 36)), client.handle("x").result(timeout=5)):
        with pytest.raises(errors.UnavailableError):
            await asyncio.wait_for(operation, 1)


async def test_a_server_that_is_killed_and_restarted_takes_the_start(tmp_path: Path) -> None:
    async with NatsServer(tmp_path / "nats") as server, Client.connect(server.url) as client:
        await client.start(greet, Person("Warm", 1))
        await asyncio.to_thread(server.kill)
        starting = asyncio.create_task(client.start(greet, Person("Ada", 36), id="x"))
        waiting = asyncio.create_task(client.handle("x").result())
        await server.astart()
        await starting
        async with mesh.connect(server.url) as m:
            record = records.Record("x", "greet", "completed", result=b'"hi"', result_type="application/json")
            m.connection.publish(NAMES.record("x"), record.to_bytes())
            await m.connection.round_trip()
        assert await asyncio.wait_for(waiting, 20) == "hi"


# --- refusals


@pytest.mark.parametrize("bad", ["", "a.b", "a b", "*", ">", "ü", "x" * 129, "a\r\nb"])
async def test_bad_names_are_refused_before_anything_is_sent(nats_server: NatsServer, raw: Raw, bad: str) -> None:
    async with Client.connect(nats_server.url) as client:
        with pytest.raises(errors.InvalidNameError):
            await client.start("greet", id=bad)
        with pytest.raises(errors.InvalidNameError):
            await client.start(bad)
        with pytest.raises(errors.InvalidNameError):
            await client.start("greet", partition_key=bad and f"{bad}\x00")
        with pytest.raises(errors.InvalidNameError):
            client.handle(bad)
        with pytest.raises(errors.InvalidNameError):
            Client.connect(nats_server.url, namespace=bad or ".")
    assert await raw.streams() == []


async def test_what_is_no_workflow_is_a_type_error(client: Client) -> None:
    with pytest.raises(TypeError, match="@workflow"):
        await client.start(test_what_is_no_workflow_is_a_type_error)  # type: ignore[call-overload]


async def test_an_input_that_is_too_large_names_the_limit(client: Client, raw: Raw) -> None:
    largest = 1024 * 1024 - RECORD_RESERVE
    await client.start("greet", b"x" * largest)
    with pytest.raises(errors.PayloadTooLargeError, match="max_payload") as refused:
        await client.start("greet", b"x" * (largest + 1))
    assert (refused.value.size, refused.value.limit) == (largest + 1, largest)
    assert await raw.messages("COMMANDS") == 1


async def test_an_input_that_cannot_be_encoded_names_its_type(client: Client) -> None:
    with pytest.raises(errors.EncodeError, match="greet.*object"):
        await client.start("greet", object())


async def test_a_full_queue_refuses_new_work_and_says_what_to_do(client: Client, raw: Raw) -> None:
    await client.start(greet, Person("Ada", 36), id="first")
    config = (await raw.stream_info("COMMANDS"))["config"]
    await raw.api("STREAM.UPDATE.COMMANDS", config | {"max_bytes": 4096})

    async def start_many() -> None:
        for _ in range(20):
            await client.start(greet, Person("Bob" * 100, 1))

    with pytest.raises(errors.StoreError, match="COMMANDS is full.*max_bytes") as full:
        await start_many()
    assert full.value.asset == "COMMANDS"
    assert (await client.handle("first").describe()).status == "pending"


async def test_a_missing_queue_is_made_again(client: Client, raw: Raw) -> None:
    await client.start(greet, Person("Ada", 36))
    await raw.api("STREAM.DELETE.COMMANDS")
    await client.start(greet, Person("Ada", 36))
    assert await raw.messages("COMMANDS") == 1


async def test_a_workflow_that_a_client_may_not_start_is_refused_at_once(tmp_path: Path) -> None:
    async with NatsServer(tmp_path / "nats", extra=ROLES) as server:
        async with Client.connect(server.url, user="operator", password="secret") as operator:
            await operator.start("greet", id="known")
        async with Client.connect(server.url, user="client", password="secret") as client:
            await client.start("greet")
            began = time.monotonic()
            with pytest.raises(mesh.PermissionDeniedError, match="nothing"):
                await client.start(nothing)
            assert time.monotonic() - began < 1
            with pytest.raises(errors.ResultTimeoutError):
                await client.handle("known").result(timeout=0.3)


# --- results


async def test_a_result_comes_by_notice_with_one_subscription_for_all_who_wait(client: Client, raw: Raw) -> None:
    handle = await client.start(greet, Person("Ada", 36))
    async with raw.watch("$JS.API.STREAM.MSG.GET.>") as reads:
        waiting = [asyncio.create_task(handle.result(timeout=10)) for _ in range(50)]
        await reads.wait_for()
        assert subscriptions_of(client) == {NAMES.done(handle.id)}
        await write_record(raw, handle.id, "running")
        await write_record(raw, handle.id, "completed", 1, result=b'"hi"', result_type="application/json")
        assert await asyncio.gather(*waiting) == ["hi"] * 50
        assert len(reads.messages) <= 100  # of each waiter's first look at record and command, and no more
    assert subscriptions_of(client) == set()


def subscriptions_of(client: Client) -> set[str]:
    subs = client._connection._client._subs.values()
    return {sub._subject for sub in subs if sub._subject.startswith("wf.")}


async def test_an_invocation_of_a_new_id_reads_nothing(client: Client, raw: Raw) -> None:
    await client.start("greet")
    async with raw.watch("$JS.API.>") as reads, raw.watch("wf.default.cmd.>") as commands:
        waiting = asyncio.create_task(client.invoke(greet, Person("Ada", 36), timeout=10))
        command = await commands.wait_for()
        await write_record(
            raw, command.subject.split(".")[-1], "completed", result=b'"hi"', result_type="application/json"
        )
        assert await waiting == "hi"
        assert [subject for subject in reads.subjects if "PURGE" not in subject] == []


async def test_a_result_that_is_there_already_is_read(client: Client, raw: Raw) -> None:
    await client.start(greet, Person("Ada", 36), id="x")
    await complete(raw, "x")
    assert await client.handle("x").result(timeout=5) == "hi"
    assert await client.handle("x", str).result(timeout=5) == "hi"


async def test_a_lost_notice_is_made_good_by_a_read(nats_server: NatsServer, raw: Raw) -> None:
    async with Proxy(nats_server.port) as proxy, Client.connect(proxy.url) as client:
        proxy.lose(delivers("wf.default.done.>"))
        handle = await client.start(greet, Person("Ada", 36))
        async with raw.watch("$JS.API.STREAM.MSG.GET.COMMANDS") as looks:
            waiting = asyncio.create_task(handle.result(timeout=10))
            await looks.wait_for()
        await complete(raw, handle.id)
        assert await waiting == "hi"


async def test_a_failed_run_raises_what_the_record_says(client: Client, raw: Raw) -> None:
    failure = model.Failure("ValueError", "bad luck", "INTERNAL", "Traceback …")
    await write_record(raw, "x", "failed", error=failure)
    with pytest.raises(errors.WorkflowFailedError, match="bad luck") as failed:
        await client.handle("x").result(timeout=5)
    error = failed.value
    assert (error.invocation_id, error.type, error.message) == ("x", "ValueError", "bad luck")
    assert (error.code, error.traceback) == ("INTERNAL", "Traceback …")


async def test_a_cancelled_run_raises_that(client: Client, raw: Raw) -> None:
    await write_record(raw, "x", "cancelled")
    with pytest.raises(errors.WorkflowCancelledError):
        await client.handle("x").result(timeout=5)


async def test_a_result_of_another_type_is_a_decode_error(client: Client, raw: Raw) -> None:
    await write_record(raw, "x", "completed", result=b'"hi"', result_type="application/json")
    with pytest.raises(errors.DecodeError, match="result of 'x' is not a valid int"):
        await client.handle("x", int).result(timeout=5)


async def test_a_result_that_does_not_come_is_a_timeout_and_can_be_asked_for_again(client: Client, raw: Raw) -> None:
    handle = await client.start(greet, Person("Ada", 36))
    with pytest.raises(errors.ResultTimeoutError) as late:
        await handle.result(timeout=0.1)
    assert late.value.invocation_id == handle.id
    assert isinstance(late.value, TimeoutError)
    assert subscriptions_of(client) == set()
    await complete(raw, handle.id)
    assert await handle.result(timeout=5) == "hi"


async def test_an_unknown_id_is_not_found_at_once(client: Client) -> None:
    began = time.monotonic()
    with pytest.raises(errors.InvocationNotFoundError):
        await client.handle("unknown").result()
    with pytest.raises(errors.InvocationNotFoundError):
        await client.handle("unknown").describe()
    assert time.monotonic() - began < 2


async def test_a_cancelled_wait_leaves_the_others_and_the_run_alone(client: Client, raw: Raw) -> None:
    handle = await client.start(greet, Person("Ada", 36))
    first, second = (asyncio.create_task(handle.result(timeout=10)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await complete(raw, handle.id)
    assert await second == "hi"


async def test_closing_the_client_ends_the_waiting(nats_server: NatsServer) -> None:
    client = await Client.connect(nats_server.url)
    handle = await client.start(greet, Person("Ada", 36))
    waiting = asyncio.create_task(handle.result())
    await asyncio.sleep(0.05)
    await client.close()
    with pytest.raises(errors.UnavailableError):
        await waiting


# --- descriptions


async def test_each_status_can_be_told_from_the_others(client: Client, raw: Raw) -> None:
    """I7, as far as there are such runs."""
    await client.start(greet, Person("Ada", 36), id="queued")
    for status in ("running", "suspended", "paused", "failed", "cancelled", "completed"):
        await write_record(raw, status, status)
    asked = ("queued", "running", "suspended", "paused", "failed", "cancelled", "completed")
    seen = {each: (await client.handle(each).describe()).status for each in asked}
    assert seen == {"queued": "pending", **{status: status for status in seen if status != "queued"}}


async def test_a_description_has_the_agreed_shape(client: Client, raw: Raw) -> None:
    await client.start(greet, Person("Ada", 36), id="x", partition_key="k")
    document = (await client.handle("x").describe()).to_dict()
    created = document.pop("created_at")
    assert document.pop("updated_at") == created
    assert len(created) == len("2026-11-24T12:00:00.123456Z")
    assert document == {
        "invocation_id": "x",
        "workflow": "greet",
        "status": "pending",
        "input": {"name": "Ada", "age": 36},
        "result": None,
        "error": None,
        "attempts": 0,
        "started_at": None,
        "completed_at": None,
        "due_at": None,
        "partition_key": "k",
        "parent_id": None,
        "priority": 3,
        "search_attributes": {},
        "served": False,
        "waiting_on": [],
        "journal": [],
    }


async def test_the_journal_of_a_final_run_is_in_its_description(client: Client, raw: Raw) -> None:
    moment = 1_700_000_000_123_456_789
    failure = model.Failure("UNAVAILABLE", "away", "UNAVAILABLE")
    step = records.JournalEntry(
        step=0,
        type="HelloService.SayHello",
        request=b"\n\x03Ada",
        request_type="application/protobuf; type=unknown.Request",
        response=b'{"message":"hi"}',
        response_type="application/json",
        started_ns=moment,
        completed_ns=moment,
        attempts=(model.Attempt(1, moment, moment, failure),),
        attempt_count=2,
    )
    run = records.JournalEntry(step=1, type="run:charge", response=b"7", response_type="application/json")
    await write_record(raw, "x", "completed", journal=(run, step), input=b"\x00", input_type="application/octet-stream")
    document = (await client.handle("x").describe()).to_dict()
    assert (document["input"], document["encoding"]) == ("AA==", "base64")
    assert document["journal"] == [
        {
            "step": 0,
            "kind": "call",
            "name": "HelloService.SayHello",
            "request": "CgNBZGE=",
            "response": {"message": "hi"},
            "error": None,
            "attempts": [
                {
                    "number": 1,
                    "started_at": "2023-11-14T22:13:20.123456Z",
                    "completed_at": "2023-11-14T22:13:20.123456Z",
                    "error": {"type": "UNAVAILABLE", "message": "away", "code": "UNAVAILABLE", "traceback": ""},
                }
            ],
            "attempt_count": 2,
            "started_at": "2023-11-14T22:13:20.123456Z",
            "completed_at": "2023-11-14T22:13:20.123456Z",
            "encoding": "base64",
        },
        {
            "step": 1,
            "kind": "run",
            "name": "charge",
            "request": None,
            "response": 7,
            "error": None,
            "attempts": [],
            "attempt_count": 0,
            "started_at": None,
            "completed_at": None,
        },
    ]


async def test_the_journal_of_a_running_run_is_read_from_its_slots(client: Client, raw: Raw) -> None:
    await write_record(raw, "x", "running", incarnation="incarnation")
    slots = NAMES.slots("x", "incarnation")
    error = {"Nats-Service-Error-Code": "503", "Nats-Service-Error": "away"}
    value = {"Mesh-Entry": "value", "Mesh-Type": "application/json"}
    await raw.publish(f"{slots}.0.1.call-abc.HelloService%2ESayHello", b"", error)
    await raw.publish(f"{slots}.0.2.call-abc.HelloService%2ESayHello", b"", {"Mesh-Entry": "unavailable"})
    await raw.publish(f"{slots}.0.3.call-abc.HelloService%2ESayHello", b"\n\x02hi")
    await raw.publish(f"{slots}.1.1.run-abc.charge", b"7", value)
    journal = (await client.handle("x").describe()).journal
    assert [(item.step, item.kind, item.name, item.response) for item in journal] == [
        (0, "call", "HelloService.SayHello", "CgJoaQ=="),
        (1, "run", "charge", 7),
    ]
    assert [attempt.error.code for attempt in journal[0].attempts] == ["UNAVAILABLE"]
    assert journal[0].attempt_count == 3


async def test_what_a_final_record_had_no_room_for_is_read_from_the_slots(client: Client, raw: Raw) -> None:
    slots = NAMES.slots("x", "incarnation")
    value = {"Mesh-Entry": "value", "Mesh-Type": "application/json"}
    big = b'"' + b"b" * 20_000 + b'"'
    for step, data in enumerate((b'"slot"', big, b'"slot"')):
        await raw.publish(f"{slots}.{step}.1.run-abc.charge", data, value)
    kept = (
        records.JournalEntry(1, "run:charge", response=big, response_type="application/json"),
        records.JournalEntry(2, "run:charge", response=b'"record"', response_type="application/json"),
    )
    record = records.Record("x", "greet", "completed", journal=kept, journal_truncated=True, incarnation="incarnation")
    fitted = records.fit_record(record, 1024 * 1024)
    await write_record(raw, "x", "completed", journal=fitted.journal, journal_truncated=True, incarnation="incarnation")
    journal = (await client.handle("x").describe()).journal
    assert [(item.step, item.response) for item in journal] == [(0, "slot"), (1, "b" * 20_000), (2, "record")]


@asynccontextmanager
async def presence(client: Client, name: str) -> AsyncIterator[None]:
    def answer(_subject: str, reply: str, _data: bytes, _block: bytes) -> None:
        client._connection.publish(reply)

    sid = client._connection.subscribe(NAMES.here(name), answer, queue="q")
    yield
    client._connection.unsubscribe(sid)


async def test_whether_anybody_serves_a_workflow_is_known_at_once(client: Client) -> None:
    handle = await client.start(greet, Person("Ada", 36))
    assert not (await handle.describe()).served
    async with presence(client, "greet"):
        assert (await handle.describe()).served
    assert not await client.is_served("greet")
