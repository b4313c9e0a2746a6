"""`mesh dev`: a nats-server, services and a processor for development, started again when files change."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from engine.assets import Assets
from engine.cli.common import namespace_option
from engine.cli.workflows import check_names, defined_workflows
from engine.definition import Workflow
from engine.errors import EngineError
from engine.processor import Processor
from mesh.cli import output
from mesh.cli.flags import connection_options, logging_options
from mesh.cli.modules import Target, load
from mesh.cli.nats import DATA, prepare_data
from mesh.cli.opening import open_mesh
from mesh.cli.reloading import supervise
from mesh.cli.running import Signals, connect_and_stay, run
from mesh.cli.serve import Serving
from mesh.cli.servicers import defined_servicers, register, servicers_of
from mesh.cli.types import Duration
from mesh.connection import Connection
from mesh.errors import ConnectError, MeshError
from mesh.facade import Mesh
from mesh.localserver import DEFAULT_MONITOR_PORT, DEFAULT_PORT, LocalServer, free_port
from mesh.options import ConnectOptions

LOOK = 1.0
"""Seconds to look at a server that listens where ours would."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the server of `mesh dev` is looked for, or started."""

    port: int
    monitor_port: int | None
    data: Path | None
    use_existing: bool
    namespace: str


@click.command("dev")
@click.argument("modules", nargs=-1, required=True, metavar="MODULE…")
@click.option("--nats-port", "port", type=int, default=DEFAULT_PORT, show_default=True, help="Look for a server there.")
@click.option(
    "--monitor-port", type=int, help=f"Of a server we start.  [default: {DEFAULT_MONITOR_PORT}, else a free one]"
)
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), help="Its store.  [default: .mesh/nats]")
@click.option(
    "--use-existing", is_flag=True, help="Use a server that listens there even if it has none of our streams."
)
@click.option("--no-reload", is_flag=True, help="Do not start again when a Python file changes.")
@click.option("--grace", type=Duration(zero=True), default="5s", show_default=True, help="Time to finish at an end.")
@click.option("--worker", is_flag=True, hidden=True)
@namespace_option
@logging_options
@connection_options(long_lived=True)
def command(
    options: ConnectOptions,
    /,
    modules: tuple[str, ...],
    no_reload: bool,
    grace: float,
    worker: bool,
    **place: Any,
) -> int:
    """Run the services and workflows of MODULE… with everything they need.

    The server is the one of -s or NATS_URL; else one that listens on --nats-port and has our streams; else one of our
    own, on that port or a free one, with its data under .mesh/.
    """
    if worker:
        return run(_work(options, modules, grace, place["namespace"]))
    return run(_develop(options, Place(**place), reload=not no_reload))


async def _develop(options: ConnectOptions, place: Place, *, reload: bool) -> int:
    async with _server(options, place) as (url, local):

        def check() -> None:
            if local is not None and not local.is_running:
                raise output.CommandError(f"the nats-server ended by itself:\n{local.log_tail()}")

        command = [sys.executable, "-P", "-m", "mesh", *sys.argv[1:], "--worker"]
        return await supervise([command], environment=_environment(url), reload=reload, check=check)


def _environment(url: str) -> dict[str, str]:
    return {**os.environ, **({"NATS_URL": url} if url else {})}


@contextlib.asynccontextmanager
async def _server(options: ConnectOptions, place: Place) -> AsyncIterator[tuple[str, LocalServer | None]]:
    """The URL to use, "" to leave it to flags and environment; and the server, if it is ours."""
    if _is_said():
        click.echo(f"Using {options.describe()}.", err=True)
        yield "", None
        return
    url = f"nats://127.0.0.1:{place.port}"
    reason = await _look(url, place)
    if not reason:
        click.echo(f"Using the nats-server that listens on {url}.", err=True)
        yield url, None
        return
    local = LocalServer(
        data=place.data or prepare_data(DATA) / "nats",
        port=free_port(place.port),
        monitor_port=place.monitor_port or free_port(DEFAULT_MONITOR_PORT),
    )
    async with local:
        click.echo(f"{reason} Started one: {local.url}, monitoring {local.monitor_url}, data {local.data}.", err=True)
        yield local.url, local


def _is_said() -> bool:
    context = click.get_current_context()
    said = any(context.params.get(name) for name in ("server", "context"))
    return said or bool(os.environ.get("NATS_URL") or os.environ.get("NATS_CONTEXT"))


async def _look(url: str, place: Place) -> str:
    """Why the server at `url` is not used, "" if it is."""
    try:
        connection = await Connection.open(ConnectOptions(url=url, name="mesh dev", connect_timeout=LOOK))
    except ConnectError as error:
        if "authorization" in error.reason.lower():
            return f"The nats-server on {url} wants credentials."
        return f"No nats-server listens on {url}."
    try:
        if place.use_existing:
            return ""
        await Assets.open(connection, place.namespace, create=False, complete=False)
    except (EngineError, MeshError):
        return f"The nats-server on {url} has none of our streams (--use-existing uses it)."
    finally:
        await connection.close()
    return ""


async def _work(options: ConnectOptions, modules: tuple[str, ...], grace: float, namespace: str) -> int:
    """What runs in the child process: services and a processor, on one connection."""
    targets = load(modules)
    async with Signals() as signals:
        m = await signals.until_first(connect_and_stay(options, open_mesh))
        if m is None:
            return output.ExitCode.DONE
        try:
            servicers, workflows = await _found(targets)
            return await _serve(m, servicers, workflows, signals, grace, namespace)
        finally:
            await m.close()


async def _found(targets: list[Target]) -> tuple[list[object], list[Workflow[Any, Any]]]:
    servicers: list[object] = []
    workflows: list[Workflow[Any, Any]] = []
    for target in targets:
        mine = defined_workflows(target)
        workflows += (workflow for workflow in mine if workflow not in workflows)
        if target.attribute and not mine:
            servicers += await servicers_of(target)
        elif not target.attribute:
            services = await defined_servicers(target)
            servicers += services
            if not services and not mine:
                raise output.CommandError(
                    f"neither a service nor a workflow in {target.text}", output.ExitCode.USAGE, code="NOT_FOUND"
                )
    return servicers, check_names(workflows)


async def _serve(
    m: Mesh,
    servicers: list[object],
    workflows: list[Workflow[Any, Any]],
    signals: Signals,
    grace: float,
    namespace: str,
) -> int:
    server = Serving(grace=grace).server(m)
    for servicer in servicers:
        register(server, servicer)
    await server.start()
    processor = Processor(m, workflows, grace=grace, namespace=namespace)  # also of none: it makes the streams
    running = asyncio.create_task(processor.run())
    ready = asyncio.create_task(processor.ready.wait())
    await asyncio.wait([running, ready], return_when=asyncio.FIRST_COMPLETED)
    ready.cancel()
    if not running.done():
        names = [one.name for one in server.services] + [workflow.name for workflow in workflows]
        output.print_ready(" ".join(names), as_json=False)
        await signals.until_first(asyncio.wait([running]))

    async def stop() -> bool:
        """The processor first: steps that it lets finish call the services."""
        processor.stop()
        await running
        await server.stop(grace)
        return True

    return output.ExitCode.DONE if await signals.until_second(stop()) else output.ExitCode.FAILED
