"""RAW: the wire and the stores, seen through bare nats-py without any code of the product but its `.proto`.

Subjects and asset names are written out here by hand: they are a contract with other programs, and a
product that renames one has to notice it here.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import nats
from nats.errors import NoRespondersError

from engine import durable_pb2
from tests.kit.ledger import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import TracebackType

    from nats.aio.client import Client
    from nats.aio.msg import Msg

NAMESPACE = "default"


class ApiError(Exception):
    """JetStream's answer to a request was an error; `code` is its `err_code`."""

    def __init__(self, subject: str, error: dict[str, Any]) -> None:
        super().__init__(f"{subject}: {error}")
        self.code = int(error.get("err_code", 0))


@dataclass(frozen=True, slots=True)
class Stored:
    """One message as a stream holds it."""

    subject: str
    sequence: int
    time: str
    headers: dict[str, str]
    data: bytes


@dataclass(frozen=True, slots=True)
class Slot:
    """One journal entry, its subject taken apart."""

    stored: Stored
    invocation: str
    incarnation: str
    step: int
    attempt: int
    kind: str
    digest: str
    name: str

    @property
    def sequence(self) -> int:
        """Its place in the one order of the run."""
        return self.stored.sequence


@dataclass(slots=True)
class Watch:
    """Everything that was seen on some subjects since it began."""

    messages: list[Msg] = field(default_factory=list)

    @property
    def subjects(self) -> list[str]:
        """The subjects in order of arrival."""
        return [message.subject for message in self.messages]

    async def wait_for(self, condition: Callable[[Msg], bool] = lambda _: True, timeout: float = 20.0) -> Msg:
        """The first message that fits, waiting for it if need be."""
        await until(lambda: any(map(condition, self.messages)), timeout=timeout, what=self._seen)
        return next(filter(condition, self.messages))

    def _seen(self) -> str:
        return f"a message; seen were {self.subjects}"


class Raw:
    """A plain connection of the test's own, with JetStream's API beside it."""

    def __init__(self, client: Client) -> None:
        self.client = client

    @classmethod
    async def connect(cls, url: str) -> Self:
        """Connect, and reconnect for ever: tests kill servers."""
        client = await nats.connect(
            url,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.05,
            ping_interval=5,
            error_cb=_ignore,  # the default prints; what is wrong shows in the test's own asserts
        )
        return cls(client)

    async def close(self) -> None:
        """Close the connection."""
        await self.client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    # --- JetStream's API

    async def api(self, subject: str, body: object = None, timeout: float = 5.0) -> dict[str, Any]:
        """One request to `$JS.API.<subject>`. Raises ApiError; NoRespondersError without JetStream."""
        payload = b"" if body is None else json.dumps(body).encode()
        answer = await self.client.request(f"$JS.API.{subject}", payload, timeout=timeout)
        document: dict[str, Any] = json.loads(answer.data)
        if "error" in document:
            raise ApiError(subject, document["error"])
        return document

    async def publish(
        self,
        subject: str,
        data: bytes = b"",
        headers: dict[str, str] | None = None,
        timeout: float = 5.0,
    ) -> int:
        """Publish with an acknowledgement; the sequence. Raises ApiError where the stream refuses."""
        answer = await self.client.request(subject, data, headers=headers, timeout=timeout)
        document = json.loads(answer.data)
        if "error" in document:
            raise ApiError(subject, document["error"])
        return int(document["seq"])

    async def last(self, stream: str, subject: str) -> Stored | None:
        """The last message of a subject as the stream's leader has it."""
        try:
            document = await self.api(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
        except ApiError as error:
            if error.code in {10037, 10059}:  # no message found, stream not found
                return None
            raise
        return _stored(document["message"])

    async def read(self, stream: str, *subjects: str) -> list[Stored]:
        """All messages of write-once subjects by one `multi_last`, in order of sequence."""
        found: list[Stored] = []
        body = json.dumps({"multi_last": list(subjects)}).encode()
        async with self._answers(f"$JS.API.DIRECT.GET.{stream}", body) as answers:
            async for message in answers:
                headers = dict(message.headers or {})
                if headers.get("Status") in {"204", "404"}:
                    break
                found.append(
                    Stored(
                        headers["Nats-Subject"],
                        int(headers["Nats-Sequence"]),
                        headers["Nats-Time-Stamp"],
                        headers,
                        message.data,
                    )
                )
        return sorted(found, key=lambda stored: stored.sequence)

    @asynccontextmanager
    async def _answers(self, subject: str, body: bytes) -> AsyncIterator[AsyncIterator[Msg]]:
        """The answers to one request, however many come; TimeoutError when the next one does not."""
        inbox = self.client.new_inbox()
        subscription = await self.client.subscribe(inbox)

        async def stream() -> AsyncIterator[Msg]:
            while True:
                message = await subscription.next_msg(timeout=5.0)
                if (message.headers or {}).get("Status") == "503":
                    raise NoRespondersError
                yield message

        await self.client.publish(subject, body, reply=inbox)
        try:
            yield stream()
        finally:
            await subscription.unsubscribe()

    async def streams(self, prefix: str = "") -> list[str]:
        """Names of the streams that begin so."""
        names: list[str] = (await self.api("STREAM.NAMES"))["streams"] or []
        return sorted(name for name in names if name.startswith(prefix))

    async def stream_info(self, stream: str) -> dict[str, Any]:
        """What the server says of a stream."""
        return await self.api(f"STREAM.INFO.{stream}", {})

    async def messages(self, stream: str) -> int:
        """How many messages a stream holds."""
        return int((await self.stream_info(stream))["state"]["messages"])

    async def subjects(self, stream: str, pattern: str = ">") -> dict[str, int]:
        """How many messages each subject of a stream has."""
        info = await self.api(f"STREAM.INFO.{stream}", {"subjects_filter": pattern})
        return dict(info["state"].get("subjects") or {})

    async def consumer(self, workflow: str) -> dict[str, Any]:
        """The consumer of a workflow's commands."""
        return await self.api(f"CONSUMER.INFO.COMMANDS.{workflow}")

    # --- the engine's stores

    async def record(self, invocation: str) -> durable_pb2.ExecutionState | None:
        """An invocation's record, decoded; None where there is none."""
        stored = await self.stored_record(invocation)
        if stored is None or not stored.data:
            return None
        return durable_pb2.ExecutionState.FromString(stored.data)

    async def stored_record(self, invocation: str) -> Stored | None:
        """An invocation's record as stored: with its sequence (the revision) and headers."""
        return await self.last("KV_EXECUTION_STATE", f"$KV.EXECUTION_STATE.{invocation}")

    async def command(self, invocation: str) -> Stored | None:
        """The queued or held command of an invocation."""
        return await self.last("COMMANDS", f"wf.{NAMESPACE}.cmd.*.*.{invocation}")

    async def wait_for_no_command(self, invocation: str, timeout: float = 10.0) -> None:
        """Wait until no command of an invocation is left: it is acknowledged a moment after the record is written."""
        async with asyncio.timeout(timeout):
            while await self.command(invocation) is not None:
                await asyncio.sleep(0.01)

    async def slots(self, invocation: str) -> list[Slot]:
        """All journal entries of an invocation in all shards, in order."""
        pattern = f"wf.{NAMESPACE}.j.w.*.*.{invocation}.>"
        found: list[Slot] = []
        for stream in await self.streams("JOURNAL"):
            found += [as_slot(stored) for stored in await self.read(stream, pattern) if ".in." not in stored.subject]
        return found

    async def deliveries(self, invocation: str) -> list[Stored]:
        """What put an invocation's controls into the order of its inputs."""
        return await self._of_all_shards(f"wf.{NAMESPACE}.j.w.*.*.{invocation}.*.in.*")

    async def controls(self, invocation: str) -> list[Stored]:
        """What was asked of an invocation."""
        return await self._of_all_shards(f"wf.{NAMESPACE}.ctl.*.*.*.{invocation}.>")

    async def _of_all_shards(self, pattern: str) -> list[Stored]:
        return [stored for stream in await self.streams("JOURNAL") for stored in await self.read(stream, pattern)]

    async def journal_messages(self) -> int:
        """How many entries all shards hold; each shard's anchor is not one."""
        return sum(
            [
                sum((await self.subjects(stream, f"wf.{NAMESPACE}.j.w.*.*.*.*.>")).values())
                for stream in await self.streams("JOURNAL")
            ]
        )

    async def wait_for_status(
        self, invocation: str, *statuses: str, timeout: float = 20.0
    ) -> durable_pb2.ExecutionState:
        """Wait until the record says one of these; a watch of the notices, so nothing is polled.

        The record is read once after subscribing and then only when a notice says that it changed.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        subject = f"wf.{NAMESPACE}.done.{invocation}"
        subscription = await self.client.subscribe(subject)
        await self.client.flush()
        try:
            while True:
                record = await self.record(invocation)
                if record is not None and record.status in statuses:
                    return record
                left = deadline - asyncio.get_running_loop().time()
                if left <= 0:
                    state = record.status if record else "no record"
                    raise AssertionError(f"{invocation} is {state}, not {statuses}")
                try:
                    await subscription.next_msg(timeout=min(left, 1.0))
                except nats.errors.TimeoutError:
                    continue
        finally:
            await subscription.unsubscribe()

    @asynccontextmanager
    async def watch(self, *subjects: str) -> AsyncIterator[Watch]:
        """See everything on these subjects while the block runs."""
        watch = Watch()

        async def keep(message: Msg) -> None:
            watch.messages.append(message)

        subscriptions = [await self.client.subscribe(subject, cb=keep) for subject in subjects]
        await self.client.flush()
        try:
            yield watch
        finally:
            for subscription in subscriptions:
                await subscription.unsubscribe()


def as_slot(stored: Stored) -> Slot:
    """Take a slot's subject apart: wf.<ns>.j.w.<c>.<shard>.<id>.<inc>.<step>.<attempt>.<kind>-<digest>.<name>."""
    tokens = stored.subject.split(".")
    if len(tokens) != 12 or tokens[2:4] != ["j", "w"]:
        raise ValueError(f"not a slot: {stored.subject}")
    kind, _, digest = tokens[10].partition("-")
    return Slot(stored, tokens[6], tokens[7], int(tokens[8]), int(tokens[9]), kind, digest, tokens[11])


def _stored(message: dict[str, Any]) -> Stored:
    block = b64decode(message.get("hdrs", ""))
    lines = block.decode(errors="replace").split("\r\n")[1:]
    headers = {name: value.strip() for name, _, value in (line.partition(":") for line in lines) if name}
    data = b64decode(message.get("data", ""))
    return Stored(message["subject"], int(message["seq"]), message["time"], headers, data)


async def _ignore(_: Exception) -> None:
    return None
