"""What commands print and how they end: results on stdout, everything else on stderr, one table of exit codes."""

import json
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import click
import grpc

from mesh.errors import (
    ConfigError,
    ConnectError,
    InvalidNameError,
    NoRespondersError,
    NotConnectedError,
    PayloadTooLargeError,
    PermissionDeniedError,
    RpcError,
)


class ExitCode(IntEnum):
    """The same in every command. `mesh call` adds 64 + the gRPC code, as grpcurl does."""

    DONE = 0
    FAILED = 1
    """A workflow failed or was cancelled, or nobody answered."""
    USAGE = 2
    NOT_FOUND = 3
    CONFLICT = 4
    """Same id with other input, or a status that does not allow it."""
    TIMEOUT = 5
    UNREACHABLE = 6
    """No server, or credentials refused."""
    OTHER = 7
    INTERRUPTED = 130
    """Ctrl-C, as shells count it."""


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as commands report it: the document of `--json`, the text on stderr and the exit code."""

    code: str
    """Name of a gRPC code."""
    message: str
    exit_code: int
    source: str = "ingress"
    """`workflow` where a run's own failure is reported, else `ingress`."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """More of the document, for example `invocation_id` and `type`."""

    def document(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"code": self.code, "message": self.message, "source": self.source, **self.fields}


class CommandError(click.ClickException):
    """Raised by a command that knows how it ends."""

    def __init__(self, message: str, exit_code: int = ExitCode.FAILED, *, code: str = "UNKNOWN", **fields: Any) -> None:
        super().__init__(message)
        self.problem = Problem(code, message, int(exit_code), fields=fields)


Describe = Callable[[Any], Problem]
_known: dict[type[BaseException], Describe] = {}


def register_error(
    kind: type[BaseException],
    code: str | Callable[[Any], str],
    exit_code: ExitCode,
    *,
    source: str = "ingress",
    fields: Sequence[str] = (),
) -> None:
    """Say how errors of a class, and of its subclasses, are reported; the nearest class counts.

    `code` is the name of a gRPC code or a function of the error; `fields` are attributes of the error that go into the
    document. For packages that bring commands of their own.
    """

    def describe(error: BaseException) -> Problem:
        name = code if isinstance(code, str) else code(error)
        found = {field_name: getattr(error, field_name, None) for field_name in fields}
        return Problem(name, str(error), exit_code, source, {key: value for key, value in found.items() if value})

    _known[kind] = describe


register_error(ConfigError, "INVALID_ARGUMENT", ExitCode.USAGE)
register_error(InvalidNameError, "INVALID_ARGUMENT", ExitCode.USAGE)
register_error(PayloadTooLargeError, "RESOURCE_EXHAUSTED", ExitCode.USAGE)
register_error(ConnectError, "UNAVAILABLE", ExitCode.UNREACHABLE)
register_error(NotConnectedError, "UNAVAILABLE", ExitCode.UNREACHABLE)
register_error(NoRespondersError, "UNAVAILABLE", ExitCode.FAILED)
register_error(PermissionDeniedError, "PERMISSION_DENIED", ExitCode.FAILED)
register_error(TimeoutError, "DEADLINE_EXCEEDED", ExitCode.TIMEOUT)
register_error(RpcError, lambda error: error.code().name, ExitCode.FAILED)


def describe_error(error: BaseException) -> Problem:
    """How an error is reported."""
    if isinstance(error, CommandError):
        return error.problem
    if isinstance(error, click.UsageError):
        return Problem("INVALID_ARGUMENT", error.format_message(), ExitCode.USAGE)
    if isinstance(error, click.ClickException):
        return Problem("UNKNOWN", error.format_message(), ExitCode.OTHER)
    for kind in type(error).__mro__:
        if kind in _known:
            return _known[kind](error)
    text = str(error) or "no message"
    return Problem("UNKNOWN", f"{type(error).__name__}: {text} (--debug shows where)", ExitCode.OTHER)


def report(error: BaseException, *, as_json: bool, debug: bool) -> int:
    """Print an error where it belongs; return the exit code."""
    problem = describe_error(error)
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, click.UsageError) and error.ctx is not None:
        click.echo(error.ctx.get_usage(), err=True)
    click.echo(f"Error: {problem.message}", err=True)
    if isinstance(error, click.UsageError) and error.ctx is not None:
        click.echo(f"Try '{error.ctx.command_path} --help' for help.", err=True)
    if as_json:
        print_json(problem.document())
    return int(problem.exit_code)


def print_json(document: object) -> None:
    """One JSON document on one line, flushed."""
    click.echo(json.dumps(document, ensure_ascii=False, default=str))
    sys.stdout.flush()


def print_ready(text: str, *, as_json: bool, **document: Any) -> None:
    """The one line on stdout that says a long-lived command takes work."""
    if as_json:
        print_json({"event": "ready", **document})
    else:
        click.echo(f"ready {text}")
        sys.stdout.flush()


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns as wide as their content, for people."""
    cells = [list(header), *([_plain(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for index, row in enumerate(cells):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        click.echo(click.style(line, bold=True) if index == 0 else line)


def _plain(cell: object) -> str:
    """A cell without what would break the table or steer the terminal: names come from foreign services."""
    return "".join(character if character.isprintable() else "?" for character in str(cell))


def status_exit_code(code: grpc.StatusCode) -> int:
    """The exit code of a call that ended with a gRPC code: 64 + its number, as grpcurl."""
    return 64 + int(code.value[0])


def heading(text: str) -> str:
    """A line above what belongs to it."""
    return click.style(_plain(text), bold=True)


def print_facts(facts: Mapping[str, object], *, indent: int = 2) -> None:
    """Names and values, the values in one column."""
    width = max((len(_plain(name)) for name in facts), default=0)
    for name, value in facts.items():
        click.echo(f"{' ' * indent}{_plain(name).ljust(width)}  {_plain(value)}".rstrip())
