"""R1, R2: failing steps are tried again, each attempt is visible, and the last error is the one that is caught."""

from __future__ import annotations

from tests.kit.agreement import agreement
from tests.kit.foreign import Request, echo, script
from tests.kit.stage import Stage


async def test_a_call_that_fails_twice_and_then_works_is_tried_three_times(stage: Stage) -> None:
    numbers = iter((1, 2))

    async def fails(request: Request) -> None:
        await request.fail(503, f"attempt {next(numbers)} failed")

    async with stage.client() as client, stage.foreign("Echo", script(fails, fails, echo())) as service:
        await stage.processor()
        handle = await client.start("echo", "x")
        assert await handle.result(timeout=10) == "x"
        assert len(service.requests) == 3
        assert len({request.key for request in service.requests}) == 1
        seen = await agreement(client, stage.raw, handle.id)
        entry = seen.record.journal[0]
        assert entry.attempt_count == 3
        assert [a.error.message for a in entry.attempts] == ["attempt 1 failed", "attempt 2 failed"]
        described = (await handle.describe()).journal[0]
        assert [a.error.message for a in described.attempts] == ["attempt 1 failed", "attempt 2 failed"]


async def test_a_body_that_fails_twice_and_then_works_is_tried_three_times(stage: Stage) -> None:
    async with stage.client() as client:
        await stage.processor()
        handle = await client.start("flaky_run", 2)
        assert await handle.result(timeout=10) == "worked at 3"
        assert stage.ledger.count(event="run", step="flaky") == 3
        entry = (await agreement(client, stage.raw, handle.id)).record.journal[0]
        assert [a.error.message for a in entry.attempts] == ["attempt 1 failed", "attempt 2 failed"]
        assert [a.error.type for a in entry.attempts] == ["RuntimeError", "RuntimeError"]


async def test_a_retried_body_that_outlasts_the_first_second_is_started_once(stage: Stage) -> None:
    """The run gets its record while the second attempt is being executed: that is no reason to begin it again."""
    async with stage.client() as client:
        await stage.processor()
        assert await client.invoke("slow_retry", 2.0, timeout=10) == 2
        assert stage.ledger.count(event="begin", step="slow") == 2
        assert stage.ledger.count(event="end", step="slow") == 1


async def test_an_exhausted_call_raises_its_last_error_with_the_count(stage: Stage) -> None:
    count = 0

    async def fails(request: Request) -> None:
        nonlocal count
        count += 1
        await request.fail(500, f"attempt {count}", **{"Grpc-Status": "13"})

    async with stage.client() as client, stage.foreign("Flaky", fails) as service:
        await stage.processor()
        assert await client.invoke("tries", 5, timeout=10) == "INTERNAL/5/attempt 5"
        assert len(service.requests) == 5


async def test_an_exhausted_body_raises_its_last_error_with_the_count(stage: Stage) -> None:
    async with stage.client() as client:
        await stage.processor()
        assert await client.invoke("stubborn_run", 5, timeout=10) == "RuntimeError/5/attempt 5"
        assert stage.ledger.count(event="run", step="fail") == 5


async def test_a_terminal_answer_is_not_tried_again(stage: Stage) -> None:
    async def fails(request: Request) -> None:
        await request.fail(404, "no such order")

    async with stage.client() as client, stage.foreign("Flaky", fails) as service:
        await stage.processor()
        assert await client.invoke("tries", 5, timeout=10) == "NOT_FOUND/1/no such order"
        assert len(service.requests) == 1


async def test_the_number_of_attempts_survives_a_killed_processor(stage: Stage) -> None:
    count = 0

    async def fails_but_the_third_stays(request: Request) -> None:
        nonlocal count
        count += 1
        if count != 3:
            await request.fail(500, f"attempt {count}")

    async with stage.client() as client, stage.foreign("Flaky", fails_but_the_third_stays) as service:
        first = await stage.processor()
        handle = await client.start("tries", 5)
        await service.wait_for(3)
        first.kill()
        await stage.processor()
        # The third was delivered and never answered: the successor sends it again, and then two more.
        assert (await handle.result(timeout=15)).startswith("UNKNOWN/5/attempt 6")
        assert len(service.requests) == 6
