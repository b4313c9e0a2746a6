"""The command `mesh`: one file a command, found when it is asked for; see `mesh.cli.group`."""

from mesh.cli.group import cli, main

__all__ = ["cli", "main"]
