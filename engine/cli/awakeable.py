"""`mesh awakeable`: bring a run what it waits for, or say that it will not come."""

import click

from engine import values
from engine.cli.common import client_of, namespace_option
from mesh.cli import output
from mesh.cli.flags import connection_options, json_option
from mesh.cli.running import run
from mesh.cli.types import read_input
from mesh.options import ConnectOptions


@click.group("awakeable")
def command() -> None:
    """Resolve or reject what workflows wait for under the ids that they hand out.

    VALUE is JSON, @FILE or - for stdin; without it the value is null.
    """


@command.command("resolve")
@click.argument("awakeable_id", metavar="ID")
@click.argument("text", metavar="[VALUE]", required=False)
@namespace_option
@json_option
@connection_options()
def resolve(options: ConnectOptions, /, awakeable_id: str, text: str | None, namespace: str, as_json: bool) -> int:
    """Bring the value of the awakeable ID; the first one counts."""
    value = None if text is None else values.decode(*values.from_text(read_input(text)))

    async def main() -> int:
        async with client_of(options, namespace) as client:
            await client.resolve_awakeable(awakeable_id, value)
        return _tell(awakeable_id, "resolved", as_json=as_json)

    return run(main())


@command.command("reject")
@click.argument("awakeable_id", metavar="ID")
@click.argument("reason", metavar="[REASON]", default="rejected")
@namespace_option
@json_option
@connection_options()
def reject(options: ConnectOptions, /, awakeable_id: str, reason: str, namespace: str, as_json: bool) -> int:
    """Have the wait for the awakeable ID raise, with REASON as its text."""

    async def main() -> int:
        async with client_of(options, namespace) as client:
            await client.reject_awakeable(awakeable_id, reason)
        return _tell(awakeable_id, "rejected", as_json=as_json)

    return run(main())


def _tell(awakeable_id: str, status: str, *, as_json: bool) -> int:
    if as_json:
        output.print_json({"awakeable_id": awakeable_id, "status": status})
    else:
        click.echo(status)
    return output.ExitCode.DONE
