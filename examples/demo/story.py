"""The acts of the demo, from the point of view of a client."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import engine
from examples.demo import proof, show
from examples.demo.children import Child
from examples.hello.workflows import hello_workflow
from examples.orders.workflows import Item, Order, Outcome, order_processing
from services import ledger
from services.ledger import Execution
from services.shipping import UNREACHABLE

TURN = 0.05
"""Seconds between two looks at a run or at the ledger."""
PATIENCE = 60.0
"""Seconds that anything may take before the demo gives up."""
CARD = "4242-4242-4242-4242"


@dataclass
class Stage:
    """What the acts play with."""

    client: engine.Client
    ledger: Path
    processor: Child
    start_processor: Callable[[], Child]
    faults: list[str] = field(default_factory=list)

    def executions(self, *, after: int) -> list[Execution]:
        """Return what the services executed, but for the first `after` lines of their ledger."""
        return list(ledger.read(self.ledger))[after:]


async def greet(stage: Stage) -> None:
    """Act 1: one durable call."""
    show.title("1  hello_workflow: one durable call")
    handle = await stage.client.start(hello_workflow, "World", id=f"hello-{secrets.token_hex(3)}")
    await follow(handle)
    result = await handle.result(timeout=PATIENCE)
    show.line(f"{handle.id} completed: {result}")
    if result != "Hello, World!":
        stage.faults.append(f"hello_workflow returned {result!r}")


async def order(stage: Stage) -> None:
    """Act 2: an order over three services."""
    show.title("2  order_processing: one order, three services")
    await play(stage, new_order(), expected="shipped")


async def reject(stage: Stage) -> None:
    """Act 3: the last service refuses, what was done before is taken back."""
    show.title(f"3  order_processing: nobody delivers to {UNREACHABLE}, so everything is taken back")
    await play(stage, new_order(address=f"1 Harbour Road, {UNREACHABLE}"), expected="rejected")


async def lose_processor(stage: Stage) -> None:
    """Act 4: the processor is killed while a card is being charged."""
    show.title("4  order_processing: the processor is killed in the middle of an order")
    before = len(list(ledger.read(stage.ledger)))
    asked = new_order()
    handle = await stage.client.start(order_processing, asked, id=asked.order_id)
    shown: set[int] = set()
    await follow(handle, shown, until=lambda: charging(stage.executions(after=before)))
    stage.processor.kill()
    show.line(f"kill -9 {stage.processor.pid}: no processor is left while PaymentService charges the card")

    await follow(handle, shown, until=lambda: 1 in shown)
    show.detail("the answer of step 1 was recorded all the same: the reply is the journal entry")
    stage.processor = stage.start_processor()
    await stage.processor.ready()
    show.line(f"another processor is ready, pid {stage.processor.pid}; it takes the order up when the")
    show.detail("protection of the dead one has run out (--ack-wait)")
    await follow(handle, shown)
    outcome = await handle.result(timeout=PATIENCE)
    attempts = (await handle.describe()).attempts
    show.line(f"{handle.id} completed, taken up {attempts} times: {outcome.status}, {outcome.tracking_number}")
    judge(stage, asked, outcome, stage.executions(after=before), attempts)


async def play(stage: Stage, asked: Order, *, expected: str) -> None:
    """Start an order, show its steps, and note it if it does not end as expected."""
    show.line(f"{asked.order_id}: {', '.join(f'{item.quantity} x {item.sku}' for item in asked.items)}")
    handle = await stage.client.start(order_processing, asked, id=asked.order_id)
    await follow(handle)
    outcome = await handle.result(timeout=PATIENCE)
    show.line(f"{handle.id} completed: {outcome.status}, {outcome.reason or outcome.tracking_number}")
    if outcome.status != expected:
        stage.faults.append(f"{asked.order_id} was {outcome.status}, not {expected}")


def judge(stage: Stage, asked: Order, outcome: Outcome, executions: list[Execution], attempts: int) -> None:
    """Compare the services' own counts with those of an undisturbed order."""
    show.title("proof: what the services themselves counted for this order")
    for method, count in proof.counts(executions).items():
        show.detail(f"{method:<24} executed {count} x")
    stage.faults += proof.faults(executions)
    if outcome.status != "shipped" or outcome.tracking_number != f"parcel-{asked.order_id}":
        stage.faults.append(f"the order's outcome is {outcome}")
    if attempts != 2:
        stage.faults.append(f"the order was taken up {attempts} times, not 2: it did not change hands")


def charging(executions: list[Execution]) -> bool:
    """Say whether the card is being charged, or was."""
    return any(execution.method == "PaymentService.Charge" for execution in executions)


def new_order(address: str = "1 Harbour Road, Lisbon") -> Order:
    """Return an order with an id of its own."""
    return Order(f"order-{secrets.token_hex(3)}", [Item("tea", 2), Item("kettle")], CARD, address)


async def follow(
    handle: engine.Handle[Any], shown: set[int] | None = None, *, until: Callable[[], bool] | None = None
) -> None:
    """Print each step of a run once, when it is recorded, until the run is final or `until` says so."""
    shown = set() if shown is None else shown
    deadline = time.monotonic() + PATIENCE
    while True:
        stop = until is not None and until()
        seen = await handle.describe()
        for entry in seen.journal:
            if entry.completed_at is not None and entry.step not in shown:
                shown.add(entry.step)
                show.step(entry)
        if stop or seen.status in {"completed", "failed", "cancelled"}:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{handle.id} is {seen.status} after {PATIENCE:.0f} s")
        await asyncio.sleep(TURN)
