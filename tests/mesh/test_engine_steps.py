"""Requests that carry an engine step's key and run number: fenced, joined, answered again."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

import mesh
from mesh import headers, wire
from protos.hello_pb2 import HelloRequest, HelloResponse
from tests.mesh.hello import SUBJECT, request, serving

Code = grpc.StatusCode


class Ledger:
    """A handler that counts, and may be made to wait or fail."""

    def __init__(self) -> None:
        self.executions: list[str] = []
        self.metadata: list[dict[str, Any]] = []
        self.release = asyncio.Event()
        self.release.set()
        self.failures = 0

    async def __call__(self, message: HelloRequest, context: Any) -> HelloResponse:
        self.executions.append(message.name)
        self.metadata.append(dict(context.invocation_metadata()))
        await self.release.wait()
        if self.failures:
            self.failures -= 1
            await context.abort(Code.UNAVAILABLE, "not now")
        return HelloResponse(message=f"{message.name} {len(self.executions)}")


async def ask(m: mesh.Mesh, key: str, run: int, timeout: float | None = None, name: str = "x") -> wire.Outcome:
    """One request of a step, as a processor sends it."""
    block = wire.encode_request(timeout=timeout, user_metadata=[("mesh-run", str(run))], key=key)
    answer = await m.connection.ask(SUBJECT, request(name).SerializeToString(), headers=block, timeout=5)
    return wire.outcome(answer.data, answer.headers)


def text(outcome: wire.Outcome) -> str:
    assert outcome.ok, outcome
    return str(HelloResponse.FromString(outcome.data).message)


async def test_service_sees_key_and_run_as_metadata(m: mesh.Mesh) -> None:
    """E-C15."""
    ledger = Ledger()
    async with serving(m, ledger):
        await ask(m, "k", 3)
    assert ledger.metadata == [{"mesh-run": "3", "idempotency-key": "k"}]


async def test_duplicate_of_a_finished_step_is_answered_without_executing(m: mesh.Mesh) -> None:
    ledger = Ledger()
    async with serving(m, ledger):
        assert [text(await ask(m, "k", run)) for run in (1, 1, 2, 7)] == ["x 1"] * 4
        assert text(await ask(m, "other", 1)) == "x 2"
    assert len(ledger.executions) == 2


async def test_lower_run_is_refused_and_not_executed(m: mesh.Mesh) -> None:
    ledger = Ledger()
    async with serving(m, ledger):
        await ask(m, "k", 2)
        outcome = await ask(m, "k", 1)
        assert (outcome.code, "run 1" in outcome.details, "run 2" in outcome.details) == (Code.ABORTED, True, True)
    assert len(ledger.executions) == 1


async def test_duplicates_of_a_running_step_join_it(m: mesh.Mesh) -> None:
    ledger = Ledger()
    ledger.release.clear()
    async with serving(m, ledger):
        calls = [asyncio.create_task(ask(m, "k", run)) for run in (2, 2, 3, 4, 1)]
        while not ledger.executions:
            await asyncio.sleep(0)
        await m.connection.round_trip()
        ledger.release.set()
        assert [text(outcome) for outcome in await asyncio.gather(*calls)] == ["x 1"] * 5
        assert (await ask(m, "k", 3)).code is Code.ABORTED
    assert len(ledger.executions) == 1


async def test_failed_attempt_is_not_remembered(m: mesh.Mesh) -> None:
    ledger = Ledger()
    ledger.failures = 1
    async with serving(m, ledger):
        assert (await ask(m, "k", 1)).code is Code.UNAVAILABLE
        assert text(await ask(m, "k", 1)) == "x 2"


async def test_joined_attempt_outlives_the_deadline_of_the_first(m: mesh.Mesh) -> None:
    ledger = Ledger()
    ledger.release.clear()
    async with serving(m, ledger):
        first = asyncio.create_task(ask(m, "k", 1, timeout=0.3))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(ask(m, "k", 2, timeout=3))
        await asyncio.sleep(0.5)
        ledger.release.set()
        assert [text(outcome) for outcome in await asyncio.gather(first, second)] == ["x 1", "x 1"]
    assert len(ledger.executions) == 1


async def test_attempt_that_joined_one_that_was_cut_off_is_executed_itself(m: mesh.Mesh) -> None:
    """The deadline of the first has passed, its handler takes its time to end: the next may not share its fate."""
    started = 0
    ended = asyncio.Event()

    async def handler(message: HelloRequest, context: Any) -> HelloResponse:
        nonlocal started
        started += 1
        if started == 1:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                await ended.wait()
                raise
        return HelloResponse(message=f"execution {started}")

    async with serving(m, handler):
        assert (await ask(m, "k", 1, timeout=0.1)).code is Code.DEADLINE_EXCEEDED
        second = asyncio.create_task(ask(m, "k", 1, timeout=3))
        await asyncio.sleep(0.1)
        assert started == 1
        ended.set()
        assert text(await second) == "execution 2"


@pytest.mark.parametrize("block", [{"Idempotency-Key": "k"}, {"Grpc-Metadata-mesh-run": "1"}])
async def test_key_or_run_alone_is_no_step(m: mesh.Mesh, block: dict[str, str]) -> None:
    """Any client may have keys of its own: its answers are not another's."""
    ledger = Ledger()
    async with serving(m, ledger):
        for _ in range(2):
            await m.connection.ask(SUBJECT, b"", headers=headers.encode(block.items()), timeout=5)
    assert len(ledger.executions) == 2


async def test_same_key_on_another_method_is_another_step(m: mesh.Mesh) -> None:
    seen: list[str] = []

    async def one(data: bytes, _context: Any) -> bytes:
        seen.append("one")
        return b"one"

    async def two(data: bytes, _context: Any) -> bytes:
        seen.append("two")
        return b"two"

    server = mesh.Server(m)
    methods: dict[str, Any] = {
        name: grpc.unary_unary_rpc_method_handler(function) for name, function in (("One", one), ("Two", two))
    }
    server.add_registered_method_handlers("tests.Keys", methods)
    await server.start()
    block = wire.encode_request(user_metadata=[("mesh-run", "1")], key="k")
    for name in ("One", "Two", "One"):
        answer = await m.connection.ask(f"svc.tests.Keys.{name}", b"", headers=block, timeout=5)
        assert answer.data == name.lower().encode()
    assert seen == ["one", "two"]
    await server.stop(None)


async def test_reply_to_a_step_carries_no_header_of_the_request(m: mesh.Mesh) -> None:
    """It may be stored: an echoed Nats-Msg-Id would make the store drop it."""
    sent = {"Nats-Msg-Id": "1", "Nats-Rollup": "all", "Idempotency-Key": "k", "Grpc-Metadata-mesh-run": "1"}
    async with serving(m, Ledger()):
        for _ in range(2):
            answer = await m.connection.ask(SUBJECT, b"", headers=headers.encode(sent.items()), timeout=5)
            assert answer.headers == b""
