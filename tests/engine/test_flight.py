"""What is under way for one step, as far as it needs no server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from engine.flight import Flight
from engine.model import Kind, Step


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_was_put_off_is_called_once_when_the_run_goes_on(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """uvloop's timers come up to half a millisecond before `time()` says so: nothing may be concluded from a clock."""
    called: list[str] = []

    async def main() -> None:
        flight = Flight(Step(0, Kind.SLEEP, "0s", "", 0, None), 1)
        held = True

        def act(what: str) -> None:
            if held:
                flight.put_off(act, what)
            else:
                called.append(what)

        flight.after(0.0004, act, "due")
        await asyncio.sleep(0.005)
        assert called == []
        held = False
        flight.wake()
        flight.wake()
        assert called == ["due"]
        flight.after(60, act, "not yet")
        flight.wake()
        flight.cancel()
        flight.wake()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    assert called == ["due"]


def test_a_timer_that_came_is_not_called_again() -> None:
    """A function that was begun by its timer runs on while the run is held and goes on."""
    called: list[str] = []

    async def main() -> None:
        flight = Flight(Step(0, Kind.RUN, "charge", "", 0, None), 1)
        flight.after(0.001, called.append, "begun")
        await asyncio.sleep(0.005)
        flight.wake()

    asyncio.run(main())
    assert called == ["begun"]
