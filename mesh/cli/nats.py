"""`mesh nats`: a nats-server of our own with JetStream, for development."""

import asyncio
from pathlib import Path

import click

from mesh.cli import output
from mesh.cli.flags import debug_option, json_option, logging_options
from mesh.cli.running import Signals, run
from mesh.localserver import (
    DEFAULT_MONITOR_PORT,
    DEFAULT_PORT,
    RELAXED_SYNC_COSTS,
    LocalCluster,
    LocalServer,
    free_port,
)

DATA = Path(".mesh")


@click.command("nats")
@click.option("--port", type=int, help=f"For clients.  [default: {DEFAULT_PORT}, else a free one]")
@click.option(
    "--monitor-port", type=int, help=f"For HTTP monitoring.  [default: {DEFAULT_MONITOR_PORT}, else a free one]"
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen. There is no access control.")
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), help="Folder of the store.  [default: .mesh/nats]"
)
@click.option(
    "--cluster", "size", type=click.IntRange(1, 7), metavar="N", help="Run a cluster of N nodes, for example 3."
)
@click.option("--relaxed-sync", is_flag=True, help=f"Faster, but: {RELAXED_SYNC_COSTS}.")
@json_option
@debug_option
@logging_options
def command(
    port: int | None,
    monitor_port: int | None,
    host: str,
    data: Path | None,
    size: int | None,
    relaxed_sync: bool,  # click passes by name
    as_json: bool,
) -> int:
    """Run a nats-server with JetStream until Ctrl-C.

    Accepted writes are on disk before they are acknowledged, unless --relaxed-sync is given.
    """
    folder = data or prepare_data(DATA) / ("nats" if size is None else f"cluster-{size}")
    first_port = choose_port(port, DEFAULT_PORT, host, "clients")
    first_monitor_port = choose_port(monitor_port, DEFAULT_MONITOR_PORT, host, "monitoring")
    if relaxed_sync:
        click.echo(f"Warning: --relaxed-sync: {RELAXED_SYNC_COSTS}", err=True)
    server: LocalServer | LocalCluster
    if size is None:
        server = LocalServer(
            data=folder, port=first_port, monitor_port=first_monitor_port, host=host, relaxed_sync=relaxed_sync
        )
    else:
        server = LocalCluster(
            size, data=folder, port=first_port, monitor_port=first_monitor_port, host=host, relaxed_sync=relaxed_sync
        )
    return run(_serve(server, folder, as_json=as_json))


def prepare_data(folder: Path) -> Path:
    """Make the folder for local data, and keep git from looking into it."""
    folder.mkdir(parents=True, exist_ok=True)
    ignore = folder / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n", encoding="utf-8")
    return folder


def choose_port(asked: int | None, default: int, host: str, purpose: str) -> int:
    """The port that was asked for, else the default, else a free one, which is said on stderr."""
    if asked is not None:
        return asked
    port = free_port(default, host=host)
    if port != default:
        click.echo(f"Port {default} is taken, {purpose} get {port}.", err=True)
    return port


async def _serve(server: LocalServer | LocalCluster, folder: Path, *, as_json: bool) -> int:
    nodes = server.servers if isinstance(server, LocalCluster) else [server]
    async with Signals() as signals:
        try:
            await server.astart()
            _print_ready(server, nodes, folder, as_json=as_json)
            ended = await signals.until_first(_first_to_end(nodes))
            if ended is not None:
                raise output.CommandError(
                    f"{ended.name} ended by itself ({ended.returncode}):\n{ended.log_tail()}", output.ExitCode.FAILED
                )
        finally:
            await server.aclose()
    return output.ExitCode.DONE


def _print_ready(server: LocalServer | LocalCluster, nodes: list[LocalServer], folder: Path, *, as_json: bool) -> None:
    output.print_ready(
        f"{server.url} monitoring {nodes[0].monitor_url} data {folder}",
        as_json=as_json,
        url=server.url,
        monitor=nodes[0].monitor_url,
        data=str(folder),
    )


async def _first_to_end(nodes: list[LocalServer]) -> LocalServer:
    """The node whose process ends first. Asked four times a second: threads that wait would keep us from ending."""
    while True:
        for node in nodes:
            if not node.is_running:
                return node
        await asyncio.sleep(0.25)
