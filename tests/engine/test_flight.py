"""What is under way for one step, as far as it needs no server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from engine.flight import Flight
from engine.model import Kind, Step


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_run_can_be_woken_while_a_timer_without_delay_is_due(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    called: list[str] = []

    async def main() -> None:
        flight = Flight(Step(0, Kind.SLEEP, "0s", "", 0, None), 1)
        flight.after(0, called.append, "due")
        flight.wake()
        flight.after(60, called.append, "not yet")
        flight.wake()
        flight.cancel()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    assert called == ["due"]
