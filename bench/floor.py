"""The floor of workflows: the messages of a three-step run, sent by bare nats-py without an engine.

    python -m bench.floor service|processor|client|lean-processor|lean-client URL

For each workflow: the command, published with an acknowledgement; its delivery by a pull; the gate
(the record from its leader, one direct read of the journal); a subscription for the run's slots;
three requests whose reply subject is a write-once captured slot, each waited for until its stored
copy comes; the final record by expected sequence, acknowledged; its notice at the waiting client;
the command's +ACK. Subjects, headers, sizes and stream settings are the engine's, but nothing is
decoded, replayed, retried or protected.

The *lean* processor and client leave out what an engine needs and a happy run does not: the gate, and
subscriptions of each run's own (one for all of the process instead).
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import zlib
from collections.abc import Awaitable, Callable
from functools import partial

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from bench.child import run, serve_until_told, take_rounds
from bench.rpc import GREETING, NAME, REQUEST
from engine.assets import settings
from engine.names import Names
from protos import hello_pb2

NS = "floor"
SHARDS = 4
STEPS = 3
SERVICE = "svc.floor.HelloService.SayHello"
PULL = 128
"""Commands asked for at once; half of them are asked for again when half have come."""
RECORD_BYTES = 900
"""About what a final record of three such steps has, journal included."""
INPUT = json.dumps(NAME).encode()


def _shard(invocation: str) -> int:
    return (zlib.crc32(invocation.encode()) >> 8) % SHARDS


async def create_assets(url: str) -> None:
    """The engine's streams under a namespace of their own, with the engine's settings."""
    client = await nats.connect(url)
    names = Names(NS, "local", SHARDS)
    for config in settings.all_configs(names, 1):
        await _api(client, f"STREAM.CREATE.{config['name']}", config)
    for lean in (False, True):
        workflow = _workflow(lean=lean)
        config = settings.consumer_config(names, workflow, 30.0)
        body = {"stream_name": names.commands, "config": config}
        await _api(client, f"CONSUMER.DURABLE.CREATE.{names.commands}.{workflow}", body)
    for shard in range(SHARDS):
        await client.request(names.anchor(shard), b"")
    await client.close()


def _workflow(*, lean: bool) -> str:
    return "three_steps_lean" if lean else "three_steps"


async def _api(client: Client, subject: str, body: object) -> None:
    answer = await client.request(f"$JS.API.{subject}", json.dumps(body).encode(), timeout=10)
    document = json.loads(answer.data)
    if "error" in document:
        raise RuntimeError(f"{subject}: {document['error']}")


async def service(url: str) -> None:
    """One subscription, fixed bytes back: to the reply subject, which is a slot."""
    client = await nats.connect(url)
    response = hello_pb2.HelloResponse(message=GREETING).SerializeToString()

    async def answer(message: Msg) -> None:
        await client.publish(message.reply, response)

    await client.subscribe(SERVICE, queue="q", cb=answer)
    await client.flush()
    await serve_until_told()
    await client.close()


async def processor(url: str, lean: bool = False) -> None:
    """Pull commands and send each run's messages."""
    client = await nats.connect(url)
    next_message = f"$JS.API.CONSUMER.MSG.NEXT.COMMANDS-{NS}.{_workflow(lean=lean)}"
    inbox = client.new_inbox()
    running: set[asyncio.Task[None]] = set()
    owed = 0
    waiting = Waiting()
    if lean:
        await client.subscribe(f"wf.{NS}.j.*.>", cb=waiting.on_copy)

    async def pull(batch: int) -> None:
        body = json.dumps({"batch": batch, "expires": 30_000_000_000}).encode()
        await client.publish(next_message, body, reply=inbox)

    async def on_message(message: Msg) -> None:
        nonlocal owed
        if not message.reply:  # a status: the pull expired
            await pull(PULL)
            return
        task = asyncio.create_task(_run(client, message, waiting, lean))
        running.add(task)
        task.add_done_callback(running.discard)
        owed += 1
        if owed >= PULL // 2:
            batch, owed = owed, 0
            await pull(batch)

    await client.subscribe(inbox, cb=on_message)
    await pull(PULL)
    await client.flush()
    await serve_until_told()
    await client.close()


class Waiting:
    """Who waits for which key; a subscription's callback resolves them by its stored copies."""

    def __init__(self) -> None:
        self._futures: dict[str, asyncio.Future[bytes]] = {}

    def for_key(self, key: str) -> asyncio.Future[bytes]:
        """A future for the next message of that key."""
        future = self._futures[key] = asyncio.get_running_loop().create_future()
        return future

    async def on_copy(self, message: Msg) -> None:
        """A slot, as sent or as stored; only the stored one counts."""
        tokens = message.subject.split(".")
        if tokens[3] == "s":
            self._resolve(f"{tokens[6]}.{tokens[8]}", message.data)

    async def on_notice(self, message: Msg) -> None:
        """A record that was stored."""
        self._resolve(message.subject.rpartition(".")[2], message.data)

    def _resolve(self, key: str, data: bytes) -> None:
        future = self._futures.pop(key, None)
        if future is not None:
            future.set_result(data)


async def _run(client: Client, command: Msg, waiting: Waiting, lean: bool) -> None:
    invocation = command.subject.rpartition(".")[2]
    incarnation = (command.headers or {})["Mesh-Incarnation"]
    shard = _shard(invocation)
    tail = f"local.{shard}.{invocation}.{incarnation}"
    if lean:
        await _steps(client, invocation, incarnation, tail, waiting)
    else:
        await _gate(client, invocation, incarnation, shard)
        slots = await client.subscribe(f"wf.{NS}.j.*.{tail}.>", cb=waiting.on_copy)
        await _steps(client, invocation, incarnation, tail, waiting)
        await slots.unsubscribe()
    await _finish(client, invocation, command)


async def _steps(client: Client, invocation: str, incarnation: str, tail: str, waiting: Waiting) -> None:
    request = REQUEST.SerializeToString()
    for step in range(STEPS):
        stored = waiting.for_key(f"{invocation}.{step}")
        headers = {
            "Idempotency-Key": f"{invocation}.{incarnation}.{step}",
            "Mesh-Invocation-Id": invocation,
            "Mesh-Run": "1",
        }
        slot = f"wf.{NS}.j.w.{tail}.{step}.1.call-0123456789abcdef.HelloService%2ESayHello"
        await client.publish(SERVICE, request, reply=slot, headers=headers)
        await stored


async def _finish(client: Client, invocation: str, command: Msg) -> None:
    headers = {
        "Mesh-Status": "completed",
        "Mesh-Workflow": "three_steps",
        "Mesh-Created-At": "2026-01-01T00:00:00.000000Z",
        "Mesh-Run": "1",
        "Nats-Expected-Last-Subject-Sequence": "0",
        "Nats-Msg-Id": secrets.token_urlsafe(12),
    }
    key = f"$KV.EXECUTION_STATE-{NS}.{invocation}"
    _accepted(await client.request(key, b"r" * RECORD_BYTES, headers=headers, timeout=10))
    await client.publish(command.reply, b"+ACK")


async def _gate(client: Client, invocation: str, incarnation: str, shard: int) -> None:
    record = json.dumps({"last_by_subj": f"$KV.EXECUTION_STATE-{NS}.{invocation}"}).encode()
    journal = json.dumps(
        {
            "multi_last": [
                f"wf.{NS}.j.w.local.{shard}.anchor",
                f"wf.{NS}.j.w.local.{shard}.{invocation}.{incarnation}.>",
                f"wf.{NS}.ctl.local.{shard}.three_steps.{invocation}.{incarnation}.>",
            ]
        }
    ).encode()
    await asyncio.gather(
        client.request(f"$JS.API.STREAM.MSG.GET.KV_EXECUTION_STATE-{NS}", record, timeout=10),
        client.request(f"$JS.API.DIRECT.GET.JOURNAL-{shard}-{NS}", journal, timeout=10),
    )


def _accepted(answer: Msg) -> None:
    if b'"error"' in answer.data:
        raise RuntimeError(answer.data.decode())


async def submitter(url: str, lean: bool = False) -> None:
    """Submit and wait for the notice of the final record."""
    client = await nats.connect(url)
    waiting = Waiting()
    if lean:
        await client.subscribe(f"wf.{NS}.done.>", cb=waiting.on_notice)

    async def call() -> None:
        invocation = secrets.token_hex(15)
        done = waiting.for_key(invocation)
        if lean:
            await _submit(client, invocation, _workflow(lean=True))
            await asyncio.wait_for(done, 10)
            return
        notices = await client.subscribe(f"wf.{NS}.done.{invocation}", cb=waiting.on_notice)
        await _submit(client, invocation, _workflow(lean=False))
        await asyncio.wait_for(done, 10)
        await notices.unsubscribe()

    await take_rounds(call)
    await client.close()


async def _submit(client: Client, invocation: str, workflow: str) -> None:
    incarnation = secrets.token_urlsafe(18)
    headers = {
        "Mesh-Incarnation": incarnation,
        "Mesh-Input-Type": "application/json",
        "Mesh-Kind": "start",
        "Nats-Msg-Id": incarnation,
        "Nats-Expected-Last-Subject-Sequence": "0",
        "Nats-Expected-Last-Subject-Sequence-Subject": f"wf.{NS}.cmd.*.*.{invocation}",
    }
    partition = zlib.crc32(invocation.encode()) % 16
    subject = f"wf.{NS}.cmd.{partition}.{workflow}.{invocation}"
    _accepted(await client.request(subject, INPUT, headers=headers, timeout=10))


ROLES: dict[str, Callable[[str], Awaitable[None]]] = {
    "service": service,
    "processor": processor,
    "client": submitter,
    "lean-processor": partial(processor, lean=True),
    "lean-client": partial(submitter, lean=True),
}

if __name__ == "__main__":
    role, address = sys.argv[1:]
    run(lambda: ROLES[role](address))
