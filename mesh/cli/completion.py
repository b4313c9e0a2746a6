"""`mesh completion`: the script that completes commands, flags and values in a shell."""

import click
from click.shell_completion import get_completion_class

from mesh.cli.flags import debug_option


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@debug_option
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the completion script for SHELL.

    For example in ~/.bashrc: eval "$(mesh completion bash)"
    """
    root = context.find_root()
    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"{shell} is not supported")
    click.echo(found(root.command, {}, "mesh", "_MESH_COMPLETE").source())
