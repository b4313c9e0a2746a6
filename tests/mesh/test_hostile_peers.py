"""Whatever anybody publishes, service and connection go on (P12, Z9)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest
from nats.aio.client import Client

import mesh
from tests.mesh.hello import SERVICE, SUBJECT, flushed, request, serving, stub

BLOCKS = [
    b"NATS/1.0",
    b"N",
    b"NATS/1.0\r\n",
    b"NATS/1.0\r\nno colon\r\n\r\n",
    b"NATS/1.0\r\nK: \xff\xfe\r\n\r\n",
    b"\xff\xfe\xfd\r\n\r\n",
    b"NATS/1.0 503\r\n\r\n",
    b"NATS/1.0\r\nGrpc-Timeout: \xd9\xa1S\r\n\r\n",
    b"NATS/1.0\r\nMesh-Deadline: 99999999999999999999\r\nGrpc-Timeout: 1S\r\n\r\n",
    b"NATS/1.0\r\nIdempotency-Key: \x00\r\nGrpc-Metadata-mesh-run: 99999999999999999999\r\n\r\n",
    b"NATS/1.0\r\nGrpc-Metadata-: v\r\nGrpc-Metadata-grpc-status: 0\r\nGrpc-Metadata-x-bin: !!!\r\n\r\n",
    b"NATS/1.0\r\nContent-Type: application/json\r\n\r\n",
    b"NATS/1.0\r\n" + b"".join(b"X-%d: v\r\n" % n for n in range(5000)) + b"\r\n",
    b"NATS/1.0\r\nX: " + b"v" * 60_000 + b"\r\n\r\n",
]
BODIES = [b"", b"\xff" * 100, b"[" * 100_000, b'{"alive": [[]], "cancel": 5}', b'{"inbox": {}}', b"\x0a\x00" * 1000]
SUBJECTS = [
    SUBJECT,
    f"{SUBJECT}._call",
    f"svc.{SERVICE}._mesh.methods",
    f"svc.{SERVICE}._mesh.descriptor",
    f"svc.{SERVICE}._mesh.\u00e9",
    "$SRV.PING",
    "$SRV.INFO.HelloService",
    "$SRV.STATS.HelloService",
]


class RawPeer:
    """A socket that says to the nats-server what it likes."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._socket = socket.create_connection((address.hostname or "", address.port or 0), timeout=5)
        self.send(b'CONNECT {"verbose":false,"headers":true,"no_responders":true,"protocol":1}\r\n')

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def publish(self, subject: bytes, reply: bytes, block: bytes, body: bytes) -> None:
        if block:
            sizes = (len(block), len(block) + len(body))
            self.send(b"HPUB %b %b %d %d\r\n%b%b\r\n" % (subject, reply, *sizes, block, body))
        else:
            self.send(b"PUB %b %b %d\r\n%b\r\n" % (subject, reply, len(body), body))

    def flush(self) -> None:
        """Raises ConnectionError where the server dropped us."""
        self.send(b"PING\r\n")
        seen = b""
        while b"PONG" not in seen:
            more = self._socket.recv(65_536)
            if not more:
                raise ConnectionError(seen)
            seen = seen[-1000:] + more

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
async def peer(url: str) -> AsyncIterator[RawPeer]:
    raw = RawPeer(url)
    yield raw
    raw.close()


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


async def test_every_odd_message_on_every_subject_leaves_the_service_alive(
    m: mesh.Mesh, caller: mesh.Mesh, peer: RawPeer
) -> None:
    async with serving(m) as server:
        tasks = len(asyncio.all_tasks())
        for subject in SUBJECTS:
            for block in [b"", *BLOCKS]:
                for body in BODIES:
                    for reply in (b"", b"answers", SUBJECT.encode()):
                        peer.publish(subject.encode(), reply, block, body)
            await asyncio.to_thread(peer.flush)
            assert (await stub(caller).SayHello(request(), timeout=5)).message == "Hello, World!"
        await m.connection.round_trip()
        await asyncio.sleep(0.05)
        assert len(asyncio.all_tasks()) <= tasks
        assert server.services[0].info.endpoints[0].stats.malformed > 0


async def test_random_bytes(m: mesh.Mesh, caller: mesh.Mesh, peer: RawPeer) -> None:
    draw = random.Random(3)
    async with serving(m):
        for _ in range(3000):
            subject = draw.choice(SUBJECTS).encode()
            block = b"NATS/1.0" + draw.randbytes(draw.randrange(80)) if draw.random() < 0.5 else b""
            peer.publish(subject, draw.choice([b"", b"answers"]), block, draw.randbytes(draw.randrange(200)))
        await asyncio.to_thread(peer.flush)
        assert (await stub(caller).SayHello(request(), timeout=5)).message == "Hello, World!"


async def test_subject_and_reply_with_invalid_utf8_or_wildcards(m: mesh.Mesh, caller: mesh.Mesh, url: str) -> None:
    """The server delivers `PUB h.*` and subjects that are not UTF-8 as they are."""
    async with serving(m):
        for subject, reply in (
            (f"svc.{SERVICE}._mesh.".encode() + b"\xff\xfe", b"answers"),
            (SUBJECT.encode(), b"\xff\xfe"),
            (SUBJECT.encode(), b"answers.*"),
            (f"svc.{SERVICE}._mesh.*".encode(), b"answers"),
            (f"svc.{SERVICE}.*._call".encode(), b"answers"),
        ):
            raw = RawPeer(url)
            raw.publish(subject, reply, b"", b"x")
            with contextlib.suppress(OSError):  # refused by the server: as good
                await asyncio.to_thread(raw.flush)
            raw.close()
            assert (await stub(caller).SayHello(request(), timeout=5)).message == "Hello, World!"


async def test_odd_replies_end_the_call_and_nothing_else(m: mesh.Mesh, foreigner: Client, url: str) -> None:
    """A responder that answers garbage: each call ends with a code; the caller's connection lives."""
    raw = RawPeer(url)

    async def answer(message: Any) -> None:
        index = int(message.data.removeprefix(b"\x0a").lstrip(b"\x01\x02"))
        raw.publish(message.reply.encode(), b"", BLOCKS[index], BODIES[index % len(BODIES)])

    await foreigner.subscribe(SUBJECT, cb=answer)
    await flushed(foreigner)
    for index in range(len(BLOCKS)):
        call = stub(m).SayHello(request(str(index)), timeout=2)
        await call.settled()
        assert await call.code() is not grpc.StatusCode.DEADLINE_EXCEEDED, BLOCKS[index][:50]
    assert m.connection.is_connected
    raw.close()


async def test_answers_nobody_asked_for_are_ignored(m: mesh.Mesh, caller: mesh.Mesh, peer: RawPeer) -> None:
    inbox = caller.connection.reply_subject(0).rpartition(".")[0].encode()
    async with serving(m):
        for tail in (b"0", b"99999", b"x", b"-1", b"1.2", b"\xff"):
            peer.publish(inbox + b"." + tail, b"", b"", os.urandom(20))
        await asyncio.to_thread(peer.flush)
        assert (await stub(caller).SayHello(request(), timeout=5)).message == "Hello, World!"


async def test_burst_past_the_bound_is_refused_without_a_silent_drop(m: mesh.Mesh, foreigner: Client) -> None:
    """N8: 20,000 requests to a slow method."""
    refused = 0
    done = asyncio.Event()

    async def count(message: Any) -> None:
        nonlocal refused
        refused += (message.headers or {}).get("Grpc-Status") == "8"
        if refused == 20_000 - 100:
            done.set()

    release = asyncio.Event()

    async def handler(message: Any, context: Any) -> Any:
        await release.wait()
        await context.abort(grpc.StatusCode.ABORTED, "late")

    async with serving(m, handler, maximum_concurrent_rpcs=100) as server:
        await foreigner.subscribe("answers.burst", cb=count)
        for _ in range(20_000):
            await foreigner.publish(SUBJECT, b"", reply="answers.burst")
        await asyncio.wait_for(done.wait(), 20)
        assert server.services[0].info.endpoints[0].stats.data()["rejected"] == 20_000 - 100
        release.set()
