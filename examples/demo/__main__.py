"""Run the demo: `make run`, or `python -m examples.demo` in the checkout.

Starts an embedded nats-server on a free port with its data beneath .mesh/demo (or uses NATS_URL),
the four reference services, and a processor; runs a greeting, an order, an order that is taken
back, and an order whose processor is killed with -9 while a card is being charged. Exits with 0
only if the services' own ledger proves that each step of that order was executed once.

    --data DIR   where the server's data, the logs and the ledger go; what was there is removed
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import sys
from pathlib import Path

import engine
import mesh
from examples.demo import show, story
from examples.demo.children import ROOT, Child, ChildError
from mesh.localserver import LocalServer
from services.ledger import FILE_VARIABLE, PACE_VARIABLE

SERVICES = ["services.hello", "services.orders", "services.payments", "services.shipping"]
WORKFLOWS = ["examples.hello.workflows", "examples.orders.workflows"]
PACE = "0.4"
"""Seconds that each execution of a service takes, so that there is something to watch."""
ACK_WAIT = "2s"
"""How long a run stays with a processor that died; the default of 30 s would be dull to watch."""


async def demo(data: Path) -> list[str]:
    """Play all acts and return what contradicts the promise: nothing, if all is well."""
    shutil.rmtree(data, ignore_errors=True)
    logs = data / "logs"
    logs.mkdir(parents=True)
    ledger = data / "ledger.jsonl"
    async with contextlib.AsyncExitStack() as stack:
        url = await server(stack, data / "nats")
        environment = os.environ | {"NATS_URL": url, FILE_VARIABLE: str(ledger), PACE_VARIABLE: PACE}
        processors = iter(range(1, 100))

        def start(arguments: list[str], name: str) -> Child:
            child = Child(arguments, environment, logs / name)
            stack.push_async_callback(child.stop)
            show.line(f"$ {child.command}")
            return child

        def start_processor() -> Child:
            return start(["processor", *WORKFLOWS, "--ack-wait", ACK_WAIT], f"processor-{next(processors)}")

        services = start(["serve", *SERVICES], "serve")
        processor = start_processor()
        await services.ready()
        await processor.ready()
        show.line(f"ready: services pid {services.pid}, processor pid {processor.pid}")
        client = await stack.enter_async_context(engine.Client.connect(url))
        stage = story.Stage(client, ledger, processor, start_processor)
        await story.greet(stage)
        await story.order(stage)
        await story.reject(stage)
        await story.lose_processor(stage)
        return stage.faults


async def server(stack: contextlib.AsyncExitStack, store: Path) -> str:
    """Return the URL of the server to use: NATS_URL, else one of the demo's own."""
    if url := os.environ.get("NATS_URL"):
        show.line(f"nats-server: NATS_URL, {url}")
        return url
    local = await stack.enter_async_context(LocalServer(data=store))
    show.line(f"nats-server: {local.url}, data in {short(store)}, pid {local.pid}")
    return local.url


def short(path: Path) -> str:
    """Return a path as seen from the checkout."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def main() -> int:
    """Run the demo and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo")
    parser.add_argument("--data", type=Path, default=ROOT / ".mesh" / "demo", metavar="DIR")
    data = parser.parse_args().data.resolve()
    try:
        faults = asyncio.run(demo(data))
    except KeyboardInterrupt:
        show.title("interrupted; all processes of the demo are stopped")
        return 130
    except BrokenPipeError:  # whoever read our output has gone; the interpreter would complain when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ChildError, TimeoutError, mesh.MeshError, engine.EngineError) as error:
        show.title(f"the demo failed: {error}\nlogs: {short(data)}/logs")
        return 1
    for fault in faults:
        show.detail(f"NOT proven: {fault}")
    if faults:
        return 1
    show.title("Proven: the order finished from its journal, and no step of it was executed twice.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
