"""The group `mesh`: commands are imported when they are asked for, its own and those of other packages.

A package adds commands by entry points of the group `mesh.commands` (`name = module:click_command`); that is how the
commands of `engine` get here without being imported by `mesh`.
"""

import importlib
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from mesh.cli import output
from mesh.cli.flags import Settings, debug_option

_OWN = ("call", "completion", "info", "ls", "nats", "ping", "serve", "stats")


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command that can be found, by name."""
        return sorted({*_OWN, *_entry_points(), *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command."""
        if cmd_name in _OWN:
            return _loaded(importlib.import_module(f"mesh.cli.{cmd_name}").command, cmd_name)
        if entry := _entry_points().get(cmd_name):
            return _from_entry_point(entry)
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in `mesh --help`: a command that cannot be imported must not take the others with it."""
        rows = []
        for name in self.list_commands(ctx):
            try:
                found = self.get_command(ctx, name)
            except click.ClickException as error:
                rows.append((name, f"(not usable: {error.format_message()})"))
            else:
                if found is not None and not found.hidden:
                    rows.append((name, found.get_short_help_str(limit=78 - len(name))))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Run a command. Always ends in SystemExit, with a code of `output.ExitCode` or 64 + a gRPC code."""
        given = list(sys.argv[1:] if args is None else args)
        settings = Settings()
        extra |= {"standalone_mode": False, "obj": settings}
        try:
            result = super().main(given, *rest, **extra)
        except (KeyboardInterrupt, click.Abort):
            sys.exit(output.ExitCode.INTERRUPTED)
        except click.exceptions.Exit as end:
            sys.exit(end.exit_code)
        except BrokenPipeError:
            _silence_stdout()
            sys.exit(output.ExitCode.DONE)
        except Exception as error:  # noqa: BLE001  # the one place where errors become text and an exit code
            # An option that does not exist ends parsing before `--json` is seen.
            as_json = settings.as_json or "--json" in given
            sys.exit(output.report(error, as_json=as_json, debug=settings.debug or "--debug" in given))
        sys.exit(result if isinstance(result, int) else output.ExitCode.DONE)


def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    return {entry.name: entry for entry in importlib.metadata.entry_points(group="mesh.commands")}


def _from_entry_point(entry: importlib.metadata.EntryPoint) -> click.Command:
    try:
        return _loaded(entry.load(), entry.name)
    except (ImportError, AttributeError) as error:
        raise output.CommandError(
            f"the command {entry.name!r} of {entry.value} cannot be loaded: {error}", output.ExitCode.OTHER
        ) from error


def _loaded(found: object, name: str) -> click.Command:
    if not isinstance(found, click.Command):
        raise output.CommandError(f"what is registered as the command {name!r} is none", output.ExitCode.OTHER)
    return found


def _silence_stdout() -> None:
    """Whoever read our output is gone (`| head`): the interpreter would complain when it flushes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="nats-mesh", prog_name="mesh")
@debug_option
def cli() -> None:
    """Services on NATS subjects, and durable workflows on JetStream.

    The server is looked for in flags, NATS_URL and its like, the selected context of the nats command, and at
    nats://127.0.0.1:4222.
    """


def main() -> NoReturn:
    """The console script."""
    sys.exit(cli.main())
