"""`python -m bench`: calls and workflows per second, and how they compare with what stands below.

Starts its own nats-server, services and clients, runs each contender in turn for some seconds,
several times over, prints one table and ends. Only ratios within one run mean anything: the
absolute numbers are the machine's.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from bench.child import Child
from bench.floor import create_assets
from bench.load import Sample
from bench.table import Row, render
from mesh.localserver import LocalServer

CONCURRENCY = (64, 1)
FLOOR = "nats-py"
LEAN = "nats-py, lean"
PEER = "grpc.aio"


async def main() -> None:
    """Run what was asked for and print one table."""
    options = _options()
    rows: list[Row] = []
    if options.what in {"rpc", "all"}:
        async with _server("default") as url, _children() as stack:
            rows += await _rounds("unary call", await _rpc_clients(stack, url), options)
    if options.what in {"streams", "all"}:
        async with _server("default") as url, _children() as stack:
            rows += await _rounds("stream of 1,000 messages", await _stream_clients(stack, url), options)
    if options.what in {"workflows", "all"}:
        for sync in options.sync.split(","):
            async with _server(sync) as url, _children() as stack:
                clients = await _workflow_clients(stack, url, lean=options.lean)
                rows += await _rounds(f"3-step workflow, sync {sync}", clients, options)
    bases = [FLOOR, *([LEAN] if options.lean else []), *([PEER] if options.what != "workflows" else [])]
    print(render(rows, bases))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("all", "rpc", "streams", "workflows"), default="all")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each contender")
    parser.add_argument("--seconds", type=float, default=2.0, help="measured seconds a round")
    sync = "of the nats-server, for workflows: default, always, or both with a comma"
    parser.add_argument("--sync", default="default,always", help=sync)
    lean = "also a floor without gate and without subscriptions of each run's own"
    parser.add_argument("--lean", action="store_true", help=lean)
    return parser.parse_args()


@asynccontextmanager
async def _server(sync: str) -> AsyncIterator[str]:
    async with LocalServer(relaxed_sync=sync != "always") as server:
        yield server.url


class _Children(AsyncExitStack):
    """Processes that end with the block, the last one first."""

    async def python(self, module: str, *arguments: str) -> Child:
        """Start a module of the benchmarks."""
        return self._keep(await Child.python(module, *arguments))

    async def mesh(self, *arguments: str) -> Child:
        """Start the product's command as a user does."""
        name = f"mesh {arguments[0]}"
        quiet = ("--log-level", "error")
        return self._keep(await Child.start(name, sys.executable, "-m", "mesh", *arguments, *quiet))

    def _keep(self, child: Child) -> Child:
        self.push_async_callback(child.stop)
        return child


@asynccontextmanager
async def _children() -> AsyncIterator[_Children]:
    async with _Children() as children:
        yield children


async def _rpc_clients(children: _Children, url: str) -> Mapping[str, Child]:
    await children.python("bench.rpc", "floor-service", url)
    await children.python("bench.rpc", "mesh-service", url)
    served = await children.python("bench.rpc", "grpc-service", "127.0.0.1")
    address = served.greeting.split()[1]
    return {
        FLOOR: await children.python("bench.rpc", "floor-client", url),
        PEER: await children.python("bench.rpc", "grpc-client", address),
        "m.channel": await children.python("bench.rpc", "mesh-client", url),
    }


async def _stream_clients(children: _Children, url: str) -> Mapping[str, Child]:
    await children.python("bench.streams", "mesh-service", url)
    served = await children.python("bench.streams", "grpc-service", "127.0.0.1")
    return {
        PEER: await children.python("bench.streams", "grpc-client", served.greeting.split()[1]),
        "m.channel": await children.python("bench.streams", "mesh-client", url),
    }


async def _workflow_clients(children: _Children, url: str, *, lean: bool) -> Mapping[str, Child]:
    await create_assets(url)
    await children.python("bench.floor", "service", url)
    await children.python("bench.floor", "processor", url)
    await children.mesh("serve", "bench.workflows:HelloService", "--server", url)
    await children.mesh("processor", "bench.workflows", "--server", url)
    clients = {FLOOR: await children.python("bench.floor", "client", url)}
    if lean:
        await children.python("bench.floor", "lean-processor", url)
        clients[LEAN] = await children.python("bench.floor", "lean-client", url)
    clients["engine"] = await children.python("bench.workflows", "client", url)
    return clients


async def _rounds(what: str, clients: Mapping[str, Child], options: argparse.Namespace) -> list[Row]:
    """Every contender in turn, again and again: drift of the machine meets all of them alike."""
    samples: dict[tuple[int, str], list[Sample]] = {}
    for in_flight in CONCURRENCY:
        for _ in range(options.rounds):
            for name, child in clients.items():
                sample = await child.round(in_flight, options.seconds)
                samples.setdefault((in_flight, name), []).append(sample)
    return [Row(what, name, tuple(found)) for (_, name), found in samples.items()]


asyncio.run(main())
