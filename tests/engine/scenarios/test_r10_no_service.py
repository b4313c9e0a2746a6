"""R10: a service without instances is noticed at once, waited for durably, and said to be what the run waits for."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from engine import Client
from tests.kit.foreign import echo
from tests.kit.proxy import publishes
from tests.kit.stage import Stage


async def test_a_call_waits_for_its_service_and_says_so(stage: Stage) -> None:
    async with stage.client() as client:
        await stage.processor()
        handle = await client.start("echo", "x")
        waits = await described_wait(client, handle.id, "Steps.Echo")
        assert waits.kind == "call"
        assert "svc.kit.Steps.Echo" in waits.reason
        async with stage.foreign("Echo", echo()):
            came = time.monotonic()
            assert await handle.result(timeout=10) == "x"
            assert time.monotonic() - came < 1.5
        described = await handle.describe()
        assert described.journal[0].attempts == [], "attempts that nobody received are only counted"
        assert described.journal[0].attempt_count > 1


async def test_a_wait_for_a_service_survives_the_processor(stage: Stage) -> None:
    async with stage.client() as client:
        first = await stage.processor()
        handle = await client.start("echo", "x")
        await described_wait(client, handle.id, "Steps.Echo")
        first.kill()
        await stage.processor()
        async with stage.foreign("Echo", echo()) as service:
            assert await handle.result(timeout=15) == "x"
            assert len(service.requests) == 1


async def test_a_service_that_comes_while_the_run_is_being_claimed_is_not_missed(stage: Stage) -> None:
    """The claim of the run's first second takes long: looking for the service goes on when it is done."""
    async with stage.link() as proxy, stage.client() as client:
        await stage.processor(url=proxy.url)
        trap = proxy.trap(publishes("$KV.EXECUTION_STATE.>"))
        handle = await client.start("echo", "x")
        await trap.wait()
        await asyncio.sleep(1.0)
        trap.release()
        async with stage.foreign("Echo", echo()):
            assert await handle.result(timeout=10) == "x"


async def test_exhausted_attempts_are_an_unavailable_that_names_the_subject(stage: Stage) -> None:
    async with stage.client() as client:
        await stage.processor()
        began = time.monotonic()
        result = await client.invoke("tries", 3, timeout=10)
        assert time.monotonic() - began < 3, "noticed by time-outs instead of at once"
        assert result.startswith("UNAVAILABLE/3/")
        assert "svc.kit.Steps.Flaky" in result


async def described_wait(client: Client, invocation: str, name: str) -> Any:
    """What `describe` says that a run waits for, once it says why."""
    async with asyncio.timeout(10):
        while True:
            described = await client.handle(invocation).describe()
            found = [wait for wait in described.waiting_on if wait.name == name and wait.reason]
            if found:
                return found[0]
            await asyncio.sleep(0.02)
