"""`mesh serve`: host services of Python modules."""

import asyncio
from dataclasses import dataclass
from typing import Any

import click

import mesh
from mesh.cli import output
from mesh.cli.flags import connection_options, json_option, logging_options
from mesh.cli.modules import Target, load
from mesh.cli.opening import open_mesh
from mesh.cli.reloading import child_command, supervise
from mesh.cli.running import Signals, connect_and_stay, run
from mesh.cli.servicers import register, servicers_of
from mesh.cli.types import Duration, Size
from mesh.errors import ConnectError
from mesh.options import ConnectOptions
from mesh.server import DEFAULT_MAX_CONCURRENT, DEFAULT_MAX_MESSAGE_BYTES
from mesh.subjects import DEFAULT_PREFIX, DEFAULT_QUEUE_GROUP


@dataclass(frozen=True, slots=True)
class Serving:
    """How services are hosted: the flags of `mesh serve`."""

    max_concurrent: int = DEFAULT_MAX_CONCURRENT
    grace: float = 30.0
    keepalive: float = 10.0
    cluster: str | None = None
    prefix: str = DEFAULT_PREFIX
    queue_group: str = DEFAULT_QUEUE_GROUP
    max_message_size: int = DEFAULT_MAX_MESSAGE_BYTES
    service_version: str = ""

    def server(self, m: mesh.Mesh) -> mesh.Server:
        """A server with these settings."""
        limits = (
            ("grpc.max_receive_message_length", self.max_message_size),
            ("grpc.max_send_message_length", self.max_message_size),
        )
        return mesh.Server(
            m,
            maximum_concurrent_rpcs=self.max_concurrent,
            options=limits,
            keepalive=self.keepalive,
            cluster=self.cluster,
            prefix=self.prefix,
            queue_group=self.queue_group,
            service_version=self.service_version,
        )


@click.command("serve")
@click.argument("modules", nargs=-1, required=True, metavar="MODULE…")
@click.option(
    "--max-concurrent",
    type=click.IntRange(min=1),
    default=DEFAULT_MAX_CONCURRENT,
    show_default=True,
    help="Calls at once; more are refused RESOURCE_EXHAUSTED.",
)
@click.option(
    "--grace", type=Duration(zero=True), default="30s", show_default=True, help="Time to finish calls at the end."
)
@click.option(
    "--keepalive", type=Duration(), default="10s", show_default=True, help="How long a dead peer is unnoticed."
)
@click.option("--at", "cluster", metavar="CLUSTER", help="Serve as a part of this cluster, too.")
@click.option("--prefix", default=DEFAULT_PREFIX, show_default=True, help="First token of the subjects.")
@click.option("--queue-group", default=DEFAULT_QUEUE_GROUP, show_default=True, help="Instances that share the calls.")
@click.option("--no-queue-group", is_flag=True, help="Every instance gets every call.")
@click.option("--max-message-size", type=Size(), default="4MiB", show_default=True, help="Of one request or response.")
@click.option("--service-version", default="", metavar="SEMVER", help="Of services that do not say their own.")
@click.option("--reload", is_flag=True, help="Start again when a Python file in the working directory changes.")
@json_option
@logging_options
@connection_options(long_lived=True)
def command(
    options: ConnectOptions,
    /,
    modules: tuple[str, ...],
    as_json: bool,
    reload: bool,
    no_queue_group: bool,
    **flags: Any,
) -> int:
    """Host the services of MODULE, or one of them as MODULE:ATTRIBUTE.

    MODULE gives every public servicer class or instance that it defines. An attribute may be a class or a function
    without arguments, which is called, or an instance.
    """
    if reload:
        return run(supervise([child_command(without="--reload")]))
    if no_queue_group:
        flags["queue_group"] = ""
    return run(_serve(options, modules, Serving(**flags), as_json=as_json))


async def _serve(options: ConnectOptions, modules: tuple[str, ...], serving: Serving, *, as_json: bool) -> int:
    targets = load(modules)
    async with Signals() as signals:
        connecting = connect_and_stay(options, lambda tried: open_mesh(tried, keepalive=serving.keepalive))
        m = await signals.until_first(connecting)
        if m is None:
            return output.ExitCode.DONE
        try:
            server = await _filled(serving.server(m), targets)
            await server.start()
            print_ready(server, as_json=as_json)
            return await finish(server, m, signals, serving.grace)
        finally:
            await m.close()


async def _filled(server: mesh.Server, targets: list[Target]) -> mesh.Server:
    for target in targets:
        for servicer in await servicers_of(target):
            try:
                register(server, servicer)
            except ValueError as error:  # two of one name, among others
                raise output.CommandError(
                    f"{target.text}: {error}", output.ExitCode.USAGE, code="INVALID_ARGUMENT"
                ) from error
    return server


def print_ready(server: mesh.Server, *, as_json: bool) -> None:
    """Say which services take calls."""
    services = [{"name": one.name, "id": one.id, "service": one.service} for one in server.services]
    text = " ".join(f"{one['name']} {one['id']}" for one in services)
    output.print_ready(text, as_json=as_json, services=services)


async def finish(server: mesh.Server, m: mesh.Mesh, signals: Signals, grace: float) -> int:
    """Serve until the first signal, then finish calls for `grace` seconds; the second signal cuts them off.

    Raises ConnectError when the connection is lost for good.
    """
    if await signals.until_first(_closed(m)):
        raise ConnectError(m.connection.options.describe(), "the connection is lost for good")
    stopping = asyncio.ensure_future(server.stop(grace))
    if await signals.until_second(_done(stopping)):
        return output.ExitCode.DONE
    await server.stop(0)
    await stopping
    return output.ExitCode.FAILED


async def _closed(m: mesh.Mesh) -> bool:
    await m.connection.wait_closed()
    return True


async def _done(stopping: "asyncio.Future[Any]") -> bool:
    await asyncio.shield(stopping)
    return True
