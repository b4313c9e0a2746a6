"""`mesh processor`: run the workflows of Python modules."""

import asyncio
from typing import Any

import click

from engine.cli.common import namespace_option
from engine.cli.workflows import workflows_of
from engine.processor import Processor
from mesh.cli import output
from mesh.cli.flags import connection_options, json_option, logging_options
from mesh.cli.modules import load
from mesh.cli.opening import open_mesh
from mesh.cli.reloading import child_command, supervise
from mesh.cli.running import Signals, connect_and_stay, run
from mesh.cli.types import Duration
from mesh.options import ConnectOptions


@click.command("processor")
@click.argument("modules", nargs=-1, required=True, metavar="MODULE…")
@click.option(
    "--max-concurrent",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Runs in memory at once; suspended ones are not.",
)
@click.option(
    "--ack-wait",
    type=Duration(),
    help="How long a lost processor goes unnoticed; holds for all processors of the workflows.  "
    "[default: as it is, 30s for a new workflow]",
)
@click.option(
    "--suspend-after",
    type=Duration(zero=True),
    default="1s",
    show_default=True,
    help="How long a run that only waits stays in memory; 0: not at all, and each wait replays it.",
)
@click.option(
    "--max-attempts",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="How often in a row a run is taken up without progress before it is failed.",
)
@click.option(
    "--grace",
    type=Duration(zero=True),
    default="30s",
    show_default=True,
    help="Time to finish executing steps at the end.",
)
@click.option("--reload", is_flag=True, help="Start again when a Python file in the working directory changes.")
@namespace_option
@json_option
@logging_options
@connection_options(long_lived=True)
def command(options: ConnectOptions, /, modules: tuple[str, ...], as_json: bool, reload: bool, **settings: Any) -> int:
    """Run the workflows of MODULE, or one of them as MODULE:ATTRIBUTE.

    MODULE gives every @workflow that is an attribute of it, also imported ones. Any number of processors may serve the
    same workflows: start one more to scale out. The first SIGTERM or SIGINT hands runs over to the others, the second
    one stops at once.
    """
    if reload:
        return run(supervise([child_command(without="--reload")]))
    return run(_process(options, modules, settings, as_json=as_json))


async def _process(
    options: ConnectOptions, modules: tuple[str, ...], settings: dict[str, Any], *, as_json: bool
) -> int:
    workflows = workflows_of(load(modules))
    async with Signals() as signals:
        m = await signals.until_first(connect_and_stay(options, open_mesh))
        if m is None:
            return output.ExitCode.DONE
        try:
            processor = Processor(m, workflows, **settings)
            return await _serve(processor, signals, as_json=as_json)
        finally:
            await m.close()


async def _serve(processor: Processor, signals: Signals, *, as_json: bool) -> int:
    """Run until the first signal, hand over; the second signal cuts that off."""
    running = asyncio.ensure_future(processor.run())
    try:
        if await signals.until_first(_ready_or_ended(processor, running)):
            names = sorted(processor.workflows)
            output.print_ready(" ".join(names), as_json=as_json, workflows=names)
            await signals.until_first(_ended(running))
        processor.stop()
        if await signals.until_second(_ended(running)):
            return output.ExitCode.DONE
        return output.ExitCode.FAILED
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def _ready_or_ended(processor: Processor, running: "asyncio.Future[None]") -> bool:
    """True when commands are taken. Raises what `Processor.run` raises before that."""
    ready = asyncio.create_task(processor.ready.wait())
    waiting: list[asyncio.Future[Any]] = [ready, running]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        return True
    finally:
        ready.cancel()


async def _ended(running: "asyncio.Future[None]") -> bool:
    await asyncio.shield(running)
    return True
