"""Kinds of arguments that several commands take."""

import sys
from pathlib import Path

import click

from mesh.durations import parse_duration, parse_size


class Duration(click.ParamType):  # type: ignore[type-arg]  # click is generic from 8.4 on
    """`30s`, `1h30m`, `500ms`, or a number of seconds; the value is float seconds."""

    name = "duration"

    def __init__(self, *, zero: bool = False) -> None:
        """`zero`: whether 0 is allowed."""
        self.zero = zero

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds, or click's error."""
        if isinstance(value, int | float):
            return float(value)
        try:
            seconds = parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if seconds == 0 and not self.zero:
            self.fail("0 is not allowed here", param, ctx)
        return seconds


class Size(click.ParamType):  # type: ignore[type-arg]
    """`4MiB`, `512KiB`, or a number of bytes; the value is bytes."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes, or click's error."""
        if isinstance(value, int):
            return value
        try:
            return parse_size(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def read_input(text: str, *, stdin: str = "-") -> str:
    """Text given on the command line: itself, `@FILE`, or what stdin holds for `-` and `@-`.

    Raises click.BadParameter when the file cannot be read.
    """
    if text in (stdin, "@-"):
        return sys.stdin.read()
    if text.startswith("@"):
        try:
            return Path(text[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise click.BadParameter(f"{text[1:]} cannot be read: {error}") from error
    return text
