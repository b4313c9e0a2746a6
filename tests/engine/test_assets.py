"""Streams, buckets and consumers are made once, as they have to be, whoever comes first."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from engine import records
from engine.assets import Api, Assets, check_server
from engine.errors import InvalidNameError, StoreError
from mesh.connection import Connection
from mesh.options import ConnectOptions
from tests.kit.raw import ApiError
from tests.kit.server import NatsServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.kit.raw import Raw

ALL = ["COMMANDS", "JOURNAL-0", "JOURNAL-1", "JOURNAL-2", "JOURNAL-3"]
ALL += ["KV_EXECUTION_STATE", "KV_WORKFLOW_STATE", "TIMERS"]


@asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[Connection]:
    connection = await Connection.open(ConnectOptions(url=url, **options))
    try:
        yield connection
    finally:
        await connection.close()


async def test_the_first_to_come_creates_everything_and_others_find_it(nats_server: NatsServer, raw: Raw) -> None:
    async with connected(nats_server.url) as connection:
        first = await Assets.open(connection)
        assert await raw.streams() == ALL
        assert (await Assets.open(connection)).names == first.names
        assert (await Assets.open(connection, complete=False)).names == first.names
    assert (first.names.shards, first.names.cluster) == (4, "local")


async def test_many_who_come_at_once_agree(nats_server: NatsServer, raw: Raw) -> None:
    async def open_one() -> Assets:
        async with connected(nats_server.url) as connection:
            assets = await Assets.open(connection)
            await assets.ensure_consumer("hello")
            return assets

    opened = await asyncio.gather(*(open_one() for _ in range(8)))
    assert len({assets.names for assets in opened}) == 1
    assert await raw.streams() == ALL
    assert [await raw.messages(f"JOURNAL-{shard}") for shard in range(4)] == [1, 1, 1, 1]


async def test_a_slot_is_written_once_and_told_after_it_is_stored(nats_server: NatsServer, raw: Raw) -> None:
    async with connected(nats_server.url) as connection:
        names = (await Assets.open(connection)).names
    slot = f"{names.slots('run-1', 'incarnation')}.0.1.call-abc.Say"
    async with raw.watch(f"{names.prefix}.j.s.>") as stored:
        await raw.publish(slot, b"first")
        with pytest.raises(ApiError) as refused:
            await raw.publish(slot, b"second", {"Nats-Rollup": "sub"})
        assert refused.value.code in {10077, 10111}
        copy = await stored.wait_for()
    assert copy.data == b"first"
    assert copy.subject == slot.replace(".j.w.", ".j.s.")
    assert (await raw.last(names.journal(names.shard("run-1")), slot)).data == b"first"  # type: ignore[union-attr]


async def test_a_header_of_a_reply_cannot_wipe_or_expire_the_journal(nats_server: NatsServer, raw: Raw) -> None:
    async with connected(nats_server.url) as connection:
        names = (await Assets.open(connection)).names
    slots = names.slots("run-1", "incarnation")
    stream = names.journal(names.shard("run-1"))
    await raw.publish(f"{slots}.0.1.call-abc.Say", b"kept")
    for header in ({"Nats-Rollup": "all"}, {"Nats-TTL": "1s"}, {"Nats-Schedule": "@every 1s"}):
        with pytest.raises(ApiError):
            await raw.publish(f"{slots}.1.1.call-abc.Say", b"evil", header)
    assert await raw.messages(stream) == 2  # with the anchor


async def test_an_id_is_queued_once_whatever_workflow_and_partition(nats_server: NatsServer, raw: Raw) -> None:
    async with connected(nats_server.url) as connection:
        names = (await Assets.open(connection)).names
    expected = {
        "Nats-Expected-Last-Subject-Sequence": "0",
        "Nats-Expected-Last-Subject-Sequence-Subject": names.commands_of("x"),
    }
    await raw.publish(names.command("hello", "x", 1), b"", expected)
    for workflow, partition in (("hello", 1), ("other", 1), ("hello", 2)):
        with pytest.raises(ApiError) as refused:
            await raw.publish(names.command(workflow, "x", partition), b"", expected)
        assert refused.value.code in {10071, 10164}


async def test_a_schedule_fires_into_the_timers_consumer(nats_server: NatsServer, raw: Raw) -> None:
    async with connected(nats_server.url) as connection:
        assets = await Assets.open(connection)
        assert await assets.ensure_timers_consumer(5) == 5
        names = assets.names
    headers = {"Nats-Schedule": "@at 2020-01-01T00:00:00Z", "Nats-Schedule-Target": names.fired("run-1", "inc", 3)}
    await raw.publish(names.schedule("run-1", "inc", 3), b"wake", headers)
    async with raw.watch("fired.here") as fired:
        await raw.client.publish("$JS.API.CONSUMER.MSG.NEXT.TIMERS.timers", b'{"batch":1}', reply="fired.here")
        message = await fired.wait_for()
    assert message.data == b"wake"
    assert await raw.subjects("TIMERS") == {names.fired("run-1", "inc", 3): 1}


async def test_records_are_read_by_the_nats_command_and_seen_by_waiters(nats_server: NatsServer, raw: Raw) -> None:
    nats_command = shutil.which("nats")
    assert nats_command, "the nats command is needed: https://github.com/nats-io/natscli"
    async with connected(nats_server.url) as connection:
        names = (await Assets.open(connection)).names
    record = records.Record("run-1", "hello", "completed", result=b'"hi"', result_type="application/json")
    async with raw.watch(names.done("run-1")) as notices:
        await raw.publish(names.record("run-1"), record.to_bytes(), {"Nats-Expected-Last-Subject-Sequence": "0"})
        notice = await notices.wait_for()
    assert records.Record.from_bytes(notice.data) == record
    command = [nats_command, "--server", nats_server.url, "kv", "get", "EXECUTION_STATE", "run-1", "--raw"]
    shown = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True)
    assert records.Record.from_bytes(shown.stdout.removesuffix(b"\n")) == record
    with pytest.raises(ApiError) as refused:
        await raw.publish(names.record("run-1"), b"", {"Nats-Expected-Last-Subject-Sequence": "0"})
    assert refused.value.code in {10071, 10164}


async def test_the_consumer_of_a_workflow_keeps_its_ack_wait_unless_told(nats_server: NatsServer, raw: Raw) -> None:
    async with connected(nats_server.url) as connection:
        assets = await Assets.open(connection)
        assert await assets.ensure_consumer("hello") == 30
        assert await assets.ensure_consumer("hello", 7.5) == 7.5
        assert await assets.ensure_consumer("hello") == 7.5
        with pytest.raises(InvalidNameError):
            await assets.ensure_consumer("hello.>")
    config = (await raw.consumer("hello"))["config"]
    assert config["filter_subject"] == "wf.default.cmd.*.hello.>"
    assert (config["max_deliver"], config["max_ack_pending"], config["ack_policy"]) == (-1, -1, "explicit")


async def test_a_foreign_stream_of_our_name_is_refused_and_not_touched(nats_server: NatsServer, raw: Raw) -> None:
    await raw.api("STREAM.CREATE.COMMANDS", {"name": "COMMANDS", "subjects": ["theirs.>"]})
    async with connected(nats_server.url) as connection:
        for update in (False, True):
            with pytest.raises(StoreError, match="COMMANDS.*not made by us") as refused:
                await Assets.open(connection, update=update)
            assert refused.value.asset == "COMMANDS"
    assert (await raw.stream_info("COMMANDS"))["config"]["subjects"] == ["theirs.>"]


async def test_a_stream_that_captures_our_subjects_is_named(nats_server: NatsServer, raw: Raw) -> None:
    await raw.api("STREAM.CREATE.EVERYTHING", {"name": "EVERYTHING", "subjects": ["wf.>"]})
    async with connected(nats_server.url) as connection:
        with pytest.raises(StoreError, match=r"another stream captures wf\.default"):
            await Assets.open(connection)


async def test_a_setting_that_must_not_differ_is_refused_until_it_is_repaired(
    nats_server: NatsServer, raw: Raw
) -> None:
    async with connected(nats_server.url) as connection:
        await Assets.open(connection)
        config = (await raw.stream_info("COMMANDS"))["config"]
        await raw.api("STREAM.UPDATE.COMMANDS", config | {"discard": "old", "max_bytes": 64 << 20})
        with pytest.raises(StoreError, match='discard is "old", has to be "new".*mesh init'):
            await Assets.open(connection)
        await Assets.open(connection, update=True)
        await Assets.open(connection)
    config = (await raw.stream_info("COMMANDS"))["config"]
    assert (config["discard"], config["max_bytes"]) == ("new", 64 << 20)  # the size is the operator's choice


async def test_namespaces_do_not_see_each_other(nats_server: NatsServer, raw: Raw) -> None:
    async with connected(nats_server.url) as connection:
        default = (await Assets.open(connection)).names
        blue = (await Assets.open(connection, "blue")).names
        assert blue.commands == "COMMANDS-blue"
        with pytest.raises(InvalidNameError):
            await Assets.open(connection, "a.b")
    await raw.publish(blue.command("hello", "x", 1))
    assert await raw.messages(default.commands) == 0


async def test_who_may_not_create_is_told_to_run_init(nats_server: NatsServer, raw: Raw) -> None:
    async with connected(nats_server.url) as connection:
        with pytest.raises(StoreError, match=r"KV_EXECUTION_STATE is missing.*mesh init"):
            await Assets.open(connection, create=False)
        await Assets.open(connection)
        assets = await Assets.open(connection, create=False)
        with pytest.raises(StoreError, match=r"consumer hello of COMMANDS is missing.*mesh init"):
            await assets.ensure_consumer("hello")


ROLES = """
authorization {
  users = [
    {user: operator, password: secret}
    {user: client, password: secret, permissions: {
      publish: ["$JS.API.STREAM.INFO.KV_EXECUTION_STATE", "wf.default.cmd.>"], subscribe: ["_INBOX.>"]}}
    {user: processor, password: secret, permissions: {
      publish: ["$JS.API.STREAM.INFO.KV_EXECUTION_STATE", "$JS.API.CONSUMER.INFO.>"], subscribe: ["_INBOX.>"]}}
  ]
}
"""


async def test_least_privilege_checks_what_it_may_and_creates_nothing(tmp_path: Path) -> None:
    async with NatsServer(tmp_path / "nats", extra=ROLES) as server:

        def as_user(user: str) -> Any:
            return connected(server.url, user=user, password="secret")

        for user in ("client", "processor"):
            async with as_user(user) as connection:
                with pytest.raises(StoreError, match="KV_EXECUTION_STATE is missing.*mesh init"):
                    await Assets.open(connection)
        async with as_user("operator") as connection:
            operated = await Assets.open(connection, update=True)
            await operated.ensure_consumer("hello", 11)
        async with as_user("client") as connection:
            assert (await Assets.open(connection, complete=False)).names == operated.names
        async with as_user("processor") as connection:
            assets = await Assets.open(connection)
            assert await assets.ensure_consumer("hello", 30) == 11  # may not change it
            with pytest.raises(StoreError, match="consumer other of COMMANDS is missing.*mesh init"):
                await assets.ensure_consumer("other", 30)


async def test_a_server_without_jetstream_is_named(tmp_path: Path) -> None:
    async with NatsServer(tmp_path / "nats") as server:
        server.jetstream = False
        await server.arestart()
        async with connected(server.url) as connection:
            with pytest.raises(StoreError, match="no JetStream"):
                await Assets.open(connection)


@pytest.mark.parametrize("limit", ["400M", "4G", "6G", "25G"])
async def test_little_room_gives_smaller_streams_in_the_same_proportion(tmp_path: Path, limit: str) -> None:
    small = f"accounts {{ A {{ jetstream {{ max_file: {limit}, max_mem: 1M }}, users: [{{user: a, password: a}}] }} }}"
    async with NatsServer(tmp_path / "nats", extra=small) as server:

        async def open_one() -> Assets:
            async with connected(server.url, user="a", password="a") as connection:
                return await Assets.open(connection)

        opened = await asyncio.gather(*(open_one() for _ in range(4)))
        assert len({assets.room for assets in opened}) == 1
        async with connected(server.url, user="a", password="a") as connection:
            info = await Api(connection).call("INFO")
            sizes = [await Api(connection).call(f"STREAM.INFO.{name}") for name in ALL]
    room = opened[0].room
    assert room >= 64 << 20
    assert info["reserved_storage"] == pytest.approx(room, rel=0.01)
    assert {size["config"]["name"]: size["config"]["max_bytes"] / room for size in sizes} == pytest.approx(
        {
            "KV_EXECUTION_STATE": 0.4,
            "KV_WORKFLOW_STATE": 0.1,
            "COMMANDS": 0.1,
            "TIMERS": 0,
            **{f"JOURNAL-{shard}": 0.1 for shard in range(4)},
        },
        abs=0.01,
    )


async def test_no_room_at_all_says_what_to_do(tmp_path: Path) -> None:
    small = "accounts { A { jetstream { max_file: 10M, max_mem: 1M }, users: [{user: a, password: a}] } }"
    async with NatsServer(tmp_path / "nats", extra=small) as server:
        async with connected(server.url, user="a", password="a") as connection:
            with pytest.raises(StoreError, match="max_file"):
                await Assets.open(connection)


@pytest.mark.parametrize("version", ["2.15.0", "2.11.9", "1.9", ""])
def test_an_old_server_is_refused(version: str) -> None:
    with pytest.raises(StoreError, match=r"2\.15\.1 or later"):
        check_server({"version": version})


@pytest.mark.parametrize("version", ["2.15.1", "2.15.1-RC.2", "2.16.0", "3.0.0"])
def test_a_newer_server_is_taken(version: str) -> None:
    check_server({"version": version})


def test_the_settings_are_json() -> None:
    from engine.assets.settings import all_configs
    from engine.names import Names

    configs = list(all_configs(Names(), 1))
    assert sorted(config["name"] for config in configs) == ALL
    assert json.loads(json.dumps(configs)) == configs
