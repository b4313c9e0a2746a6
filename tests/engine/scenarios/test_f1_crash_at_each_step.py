"""F1: a processor killed before a request, after it, after the answer and after its storage, at each step of a run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from tests.kit.foreign import Foreign, echo, silence
from tests.kit.proxy import FramePredicate, Proxy, delivers, publishes
from tests.kit.stage import Stage

STEPS = ("Call1", "run1", "sleep", "Call2", "run2", "sleep")
"""The steps of `call_run_sleep`."""
ACK_WAIT = 1.0


class Play:
    """One invocation on a stage, of which one step is the one at which its processor is killed."""

    def __init__(self, stage: Stage, proxy: Proxy, services: dict[str, Foreign], step: int) -> None:
        self.stage, self.proxy, self.services, self.step = stage, proxy, services, step
        self.id = f"run-{step}"
        self.name = STEPS[step]
        for method, service in services.items():
            service.handler = echo(method.encode())
            service.requests.clear()
        for run in ("run1", "run2"):
            stage.gate(f"{self.id}-{run}").open()

    def written(self, step: int) -> str:
        """Subjects by which a step's slot is filled."""
        return f"wf.default.j.w.*.*.{self.id}.*.{step}.>"

    def stored(self, step: int) -> str:
        """Subjects on which a step's slot is seen after it is stored."""
        return f"wf.default.j.s.*.*.{self.id}.*.{step}.>"

    def executions(self) -> int:
        """How often the step's effect took place, as those saw it who had it."""
        if self.name in self.services:
            return len(self.services[self.name].requests)
        return self.stage.ledger.count(event="begin", step=f"{self.id}-{self.name}")


Instant = Callable[[Play], asyncio.Task[None]]


def at_frame(play: Play, predicate: FramePredicate) -> asyncio.Task[None]:
    """The instant at which a frame is about to cross; it never does."""
    trap = play.proxy.trap(predicate)

    async def wait() -> None:
        await trap.wait()

    return asyncio.create_task(wait())


def at_storage(play: Play, step: int) -> asyncio.Task[None]:
    """The instant after an entry of that step was stored."""

    async def wait() -> None:
        async with play.stage.raw.watch(play.stored(step)) as watch:
            await watch.wait_for()

    return asyncio.create_task(wait())


def before_request(play: Play) -> asyncio.Task[None]:
    """Nothing of the step has left the processor."""
    if play.name in play.services:
        return at_frame(play, publishes(f"svc.kit.Steps.{play.name}"))
    return at_frame(play, delivers(play.stored(play.step - 1)))


def after_request(play: Play) -> asyncio.Task[None]:
    """The step's effect has begun and is not answered."""
    if play.name in play.services:
        play.services[play.name].handler = silence

    async def wait() -> None:
        if play.name in play.services:
            await play.services[play.name].wait_for(1)
        elif play.name == "sleep":
            async with play.stage.raw.watch(play.stored(play.step - 1)) as watch:
                await watch.wait_for()
            await asyncio.sleep(0.05)
        else:
            await play.stage.ledger.wait_for(event="begin", step=f"{play.id}-{play.name}")

    if play.name.startswith("run"):
        play.stage.gate(f"{play.id}-{play.name}").close()
    return asyncio.create_task(wait())


def after_answer(play: Play) -> asyncio.Task[None]:
    """The answer is there, and the processor does not know whether it is stored."""
    if play.name in play.services:
        return at_frame(play, delivers(play.stored(play.step)))
    return at_frame(play, publishes(play.written(play.step)))


def after_storage(play: Play) -> asyncio.Task[None]:
    """The answer is stored."""
    return at_storage(play, play.step)


REPEATED: dict[tuple[Instant, str], int] = {
    # Executions of the step in all, by what had happened when its processor was killed.
    (before_request, "call"): 1,
    (before_request, "run"): 1,
    (after_request, "call"): 1,
    (after_request, "run"): 2,
    (after_answer, "call"): 1,
    (after_answer, "run"): 2,
    (after_storage, "call"): 1,
    (after_storage, "run"): 1,
}


@asynccontextmanager
async def both_calls(stage: Stage) -> AsyncIterator[dict[str, Foreign]]:
    async with stage.foreign("Call1") as first, stage.foreign("Call2") as second:
        yield {"Call1": first, "Call2": second}


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("instant", [before_request, after_request, after_answer, after_storage])
async def test_a_run_completes_and_repeats_only_what_was_not_recorded(stage: Stage, instant: Instant) -> None:
    async with stage.link() as proxy, stage.client() as client, both_calls(stage) as services:
        processor = await stage.processor(url=proxy.url, ack_wait=ACK_WAIT)
        for step, name in enumerate(STEPS):
            play = Play(stage, proxy, services, step)
            killing = instant(play)
            async with asyncio.timeout(20):
                handle = await client.start("call_run_sleep", "x", id=play.id)
                await killing
            processor.kill()
            await answer_what_is_open(play)
            processor = await stage.processor(url=proxy.url, ack_wait=ACK_WAIT)
            assert await handle.result(timeout=20) == ["Call1x", f"{play.id}-run1", "Call2x", f"{play.id}-run2"]
            kind = "call" if name in services else "run"
            if name != "sleep":
                assert play.executions() == REPEATED[(instant, kind)], f"step {step} {name}"
            others = [other for other in services if other != name]
            assert [len(services[other].requests) for other in others] == [1] * len(others)


async def answer_what_is_open(play: Play) -> None:
    """What the service or the body was asked for goes on after the processor's death."""
    for request in play.services[play.name].requests if play.name in play.services else []:
        if not request.answered:
            await request.respond(play.name.encode() + request.data)
    if play.name in play.services:
        play.services[play.name].handler = echo(play.name.encode())
    play.stage.gate(f"{play.id}-{play.name}").open()
