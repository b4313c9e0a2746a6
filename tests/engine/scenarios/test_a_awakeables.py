"""A1, A2, A4, A7, A8, A10: values that somebody outside brings."""

from __future__ import annotations

import asyncio
import json

import pytest

from engine import AwakeableNotFoundError, AwakeableResolvedError, InvalidNameError
from tests.kit.agreement import agreement
from tests.kit.proxy import publishes
from tests.kit.raw import ApiError
from tests.kit.stage import Stage


async def issued(stage: Stage, invocation: str, name: str = "a") -> tuple[str, str]:
    """Id and subject of an awakeable that a run has handed out."""
    entry = (await stage.ledger.wait_for(event="issued", invocation=invocation, step=name))[-1]
    awakeable, subject = entry.note.split()
    return awakeable, subject


async def test_a_value_arrives_decoded_and_a_rejection_raises_with_its_text(stage: Stage) -> None:
    stage.gate("hold").open()
    async with stage.client() as client:
        await stage.processor()
        handle = await client.start("approval", "ab")
        a, _ = await issued(stage, handle.id)
        b, _ = await issued(stage, handle.id, "b")
        await stage.raw.wait_for_status(handle.id, "suspended")
        await client.resolve_awakeable(a, {"ok": 1})
        await client.reject_awakeable(b, "no, because\nof ü")
        assert await handle.result(timeout=10) == [{"ok": 1}, "no, because\nof ü"]
        assert (await agreement(client, stage.raw, handle.id)).status == "completed"


async def test_a_bare_request_resolves_and_a_second_one_is_refused(stage: Stage) -> None:
    stage.gate("hold").open()
    async with stage.client() as client:
        await stage.processor()
        handle = await client.start("approval", "ab")
        a, subject = await issued(stage, handle.id)
        assert subject.startswith("wf.default.ctl.")
        await stage.raw.publish(subject, b'"{\\"ok\\": 1}"')  # JSON within a JSON string, as shells quote it
        with pytest.raises(ApiError) as refused:
            await stage.raw.publish(subject, b'{"ok": 2}')
        assert refused.value.code == 10077
        with pytest.raises(AwakeableResolvedError):
            await client.resolve_awakeable(a, {"ok": 3})
        _, other = await issued(stage, handle.id, "b")
        await stage.raw.publish(other, b"", {"Nats-Service-Error-Code": "400", "Nats-Service-Error": "refused"})
        assert await handle.result(timeout=10) == [{"ok": 1}, "refused"]
        with pytest.raises(AwakeableResolvedError):
            await client.resolve_awakeable(a, {"ok": 4})


async def test_what_is_resolved_before_it_is_awaited_waits(stage: Stage) -> None:
    async with stage.client() as client:
        first = await stage.processor()
        handle = await client.start("approval", "ab")
        a, _ = await issued(stage, handle.id)
        b, _ = await issued(stage, handle.id, "b")
        await stage.ledger.wait_for(event="begin", step="hold")
        await client.resolve_awakeable(b, {"b": 1})  # while a step is being executed
        first.kill()
        await client.resolve_awakeable(a, {"a": 1})  # while nobody lives
        stage.gate("hold").open()
        await stage.processor()
        assert await handle.result(timeout=15) == [{"a": 1}, {"b": 1}]


@pytest.mark.parametrize("order", ["ab", "ba"])
async def test_values_reach_their_own_awakeables(stage: Stage, order: str) -> None:
    stage.gate("hold").open()
    async with stage.client() as client:
        await stage.processor()
        handle = await client.start("approval", order)
        for name in ("b", "a"):
            awakeable, _ = await issued(stage, handle.id, name)
            await client.resolve_awakeable(awakeable, {name: 1})
        assert await handle.result(timeout=10) == [{name: 1} for name in order]


async def test_a_wait_that_timed_out_leaves_the_awakeable_for_the_next(stage: Stage) -> None:
    stage.gate("hold").open()
    async with stage.client() as client:
        await stage.processor()
        handle = await client.start("approval", "tba")
        await stage.raw.wait_for_status(handle.id, "suspended")
        b, _ = await issued(stage, handle.id, "b")
        a, _ = await issued(stage, handle.id)
        async with stage.raw.watch("wf.default.j.s.>") as stored:
            if not any(slot.kind == "sleep" for slot in await stage.raw.slots(handle.id)):
                await stored.wait_for(lambda m: ".sleep-" in m.subject)
        await client.resolve_awakeable(b, {"b": 1})
        await client.resolve_awakeable(a, {"a": 1})
        assert await handle.result(timeout=10) == ["too late", {"b": 1}, {"a": 1}]


async def test_unknown_and_malformed_ids_store_nothing(stage: Stage) -> None:
    stage.gate("hold").open()
    async with stage.client() as client:
        await stage.processor()
        handle = await client.start("approval", "ab")
        a, _ = await issued(stage, handle.id)
        for unknown in ("nobody", f"{a}x", f"aw08{'x' * 8}0-{handle.id}"):
            with pytest.raises(AwakeableNotFoundError):
                await client.resolve_awakeable(unknown)
        for malformed in ("a.b", "*", "", "a b", "x" * 300):
            with pytest.raises(InvalidNameError):
                await client.resolve_awakeable(malformed)
        assert not await stage.raw.controls(handle.id)


async def test_the_first_of_several_and_then_all_of_them(stage: Stage) -> None:
    async with stage.client() as client:
        await stage.processor()
        handle = await client.start("first_approval", 3)
        ids = [(await issued(stage, handle.id, str(number)))[0] for number in range(3)]
        await client.reject_awakeable(ids[1], "not this one")
        async with stage.raw.watch("wf.default.j.s.>") as stored:
            if not await stage.raw.deliveries(handle.id):
                await stored.wait_for(lambda m: ".in." in m.subject)
        await client.resolve_awakeable(ids[2], 2)
        await client.resolve_awakeable(ids[0], 0)
        assert await handle.result(timeout=10) == [[1], [0, "not this one", 2]]


async def test_a_value_of_another_type_is_an_error_of_the_run_that_names_it(stage: Stage) -> None:
    stage.gate("hold").open()
    async with stage.client() as client:
        await stage.processor()
        handle = await client.start("approval", "a")
        a, _ = await issued(stage, handle.id)
        await client.resolve_awakeable(a, {"a": "not a number"})
        await stage.raw.wait_for_status(handle.id, "failed")
        error = (await handle.describe()).error
        assert error is not None
        assert error.type == "DecodeError"
        assert "awakeable" in error.message


async def test_a_lost_acknowledgement_is_no_conflict_of_the_resolver_with_itself(stage: Stage) -> None:
    stage.gate("hold").open()
    async with stage.client() as client:
        await stage.processor()
        handle = await client.start("approval", "a")
        a, _ = await issued(stage, handle.id)
        async with stage.link() as proxy, stage.client(proxy.url) as resolver:
            await resolver.describe(handle.id)
            trap = proxy.trap(lambda frame: frame.direction == "down" and b'"stream":"JOURNAL' in frame.payload)
            resolving = asyncio.create_task(resolver.resolve_awakeable(a, {"a": 1}))
            await trap.wait()
            trap.lose()
            await resolving
        assert await handle.result(timeout=10) == [{"a": 1}]


async def test_a_waker_that_dies_before_its_wake_loses_nothing(stage: Stage) -> None:
    stage.gate("hold").open()
    async with stage.link() as proxy, stage.client() as client:
        first = await stage.processor(url=proxy.url)
        handle = await client.start("approval", "a")
        a, _ = await issued(stage, handle.id)
        await stage.raw.wait_for_status(handle.id, "suspended")
        trap = proxy.trap(publishes("wf.default.cmd.>"))
        await client.resolve_awakeable(a, {"a": 1})
        await trap.wait()
        first.kill()
        await stage.processor()
        assert await handle.result(timeout=15) == [{"a": 1}]
        assert json.loads(json.dumps(await handle.result(timeout=1))) == [{"a": 1}]
