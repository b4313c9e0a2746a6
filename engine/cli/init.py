"""`mesh init`: create or update what the engine keeps in JetStream, with an operator's rights."""

import click

from engine.assets import Assets
from engine.assets.settings import all_configs
from engine.cli.common import namespace_option
from engine.cli.workflows import workflows_of
from mesh.cli import output
from mesh.cli.flags import connection_options, json_option
from mesh.cli.modules import load
from mesh.cli.opening import opened
from mesh.cli.running import run
from mesh.cli.types import Duration
from mesh.options import ConnectOptions


@click.command("init")
@click.argument("modules", nargs=-1, metavar="[MODULE…]")
@click.option(
    "--replicas",
    type=click.IntRange(1, 5),
    help="Copies of every stream.  [default: as they are, min(3, servers) for new ones]",
)
@click.option("--ack-wait", type=Duration(), help="Of the consumers.  [default: as it is, 30s for a new one]")
@namespace_option
@json_option
@connection_options()
def command(
    options: ConnectOptions,
    /,
    modules: tuple[str, ...],
    replicas: int | None,
    ack_wait: float | None,
    namespace: str,
    as_json: bool,
) -> int:
    """Create or update every stream and bucket, and the consumers of the workflows of MODULE.

    May be run again at any time; sizes that an operator has chosen stay. A stream of the same name that was not made
    by us is refused.
    """
    workflows = workflows_of(load(modules)) if modules else []

    async def main() -> int:
        async with opened(options) as m:
            assets = await Assets.open(m.connection, namespace, update=True, replicas=replicas)
            consumers = [workflow.name for workflow in workflows]
            for name in consumers:
                await assets.ensure_consumer(name, ack_wait)
            await assets.ensure_timers_consumer(ack_wait)
            await assets.ensure_controls_consumers(ack_wait)
        streams = [config["name"] for config in all_configs(assets.names, assets.replicas)]
        if as_json:
            output.print_json(
                {
                    "namespace": namespace,
                    "replicas": assets.replicas,
                    "shards": assets.names.shards,
                    "streams": streams,
                    "consumers": consumers,
                }
            )
        else:
            click.echo(f"namespace {namespace}, replicas {assets.replicas}: {', '.join(streams)}")
            for name in consumers:
                click.echo(f"consumer {name} of {assets.names.commands}")
        return output.ExitCode.DONE

    return run(main())
