"""Flags that many commands share, as decorators."""

import functools
import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

import click

from mesh.cli.types import Duration
from mesh.options import DEFAULT_CONNECT_TIMEOUT, ConnectOptions

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(slots=True)
class Settings:
    """What holds for a whole invocation of `mesh`; `ctx.obj` of every command."""

    debug: bool = False
    as_json: bool = False


def _note(name: str) -> Callable[[click.Context, click.Parameter, bool], bool]:
    """A callback that keeps the flag where the reporting of errors finds it, also when parsing goes on to fail."""

    def callback(context: click.Context, _parameter: click.Parameter, value: bool) -> bool:  # click's
        settings = context.ensure_object(Settings)
        setattr(settings, name, getattr(settings, name) or value)
        return value

    return callback


debug_option = click.option(
    "--debug",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_note("debug"),
    help="Show where an error came from, and log everything.",
)

json_option = click.option(
    "--json", "as_json", is_flag=True, is_eager=True, callback=_note("as_json"), help="Print JSON for programs."
)


def connection_options(
    *, long_lived: bool = False
) -> Callable[[Callable[Concatenate[ConnectOptions, P], R]], Callable[P, R]]:
    """The flags that say where the server is; the command gets them as a `ConnectOptions`, its first argument.

    Unless `--connect-timeout` is given, a long-lived command has a `connect_timeout` of None: it tries for ever.
    """

    def decorate(command: Callable[Concatenate[ConnectOptions, P], R]) -> Callable[P, R]:
        @functools.wraps(command)
        def resolved(*args: P.args, **kwargs: P.kwargs) -> R:
            said: dict[str, Any] = {name: kwargs.pop(name) for name in _CONNECTION_FLAGS}
            if said["connect_timeout"] is None and not long_lived:
                said["connect_timeout"] = DEFAULT_CONNECT_TIMEOUT
            options = ConnectOptions.resolve(said.pop("server"), name=f"mesh {_command_name()}", **said)
            return command(options, *args, **kwargs)

        return debug_option(_add(resolved, *reversed(_CONNECTION_FLAGS.values())))

    return decorate


def logging_options(command: Callable[P, R]) -> Callable[P, R]:
    """`--log-level` and `--log-format` of long-lived commands; logs go to stderr."""

    @functools.wraps(command)
    def configured(*args: P.args, **kwargs: P.kwargs) -> R:
        level, style = kwargs.pop("log_level"), kwargs.pop("log_format")
        debug = click.get_current_context().ensure_object(Settings).debug
        configure_logging("debug" if debug else str(level), as_json=style == "json")
        return command(*args, **kwargs)

    return _add(
        configured,
        click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True),
        click.option(
            "--log-level",
            type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
            default="info",
            show_default=True,
        ),
    )


def configure_logging(level: str, *, as_json: bool = False) -> None:
    """Log to stderr, one line a record, or one JSON object."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if as_json else logging.Formatter(_TEXT_FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


_TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _JsonFormatter(logging.Formatter):
    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        """One JSON object on one line."""
        entry: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


def _command_name() -> str:
    context = click.get_current_context(silent=True)
    return (context.info_name if context else None) or ""


def _add(command: Callable[..., R], *options: Callable[[Any], Any]) -> Callable[..., R]:
    for option in options:
        command = option(command)
    return command


def _flag(*names: str, **attributes: Any) -> Callable[[Any], Any]:
    return click.option(*names, **attributes)


_CONNECTION_FLAGS: dict[str, Callable[[Any], Any]] = {
    "server": _flag(
        "-s", "--server", metavar="URL[,URL]", help="The NATS server, or several of its cluster. [NATS_URL]"
    ),
    "context": _flag("--context", metavar="NAME", help="A context of the nats command. [NATS_CONTEXT]"),
    "creds": _flag("--creds", metavar="FILE", help="User credentials. [NATS_CREDS]"),
    "nkey": _flag("--nkey", metavar="FILE", help="Seed of a user's nkey. [NATS_NKEY]"),
    "user": _flag("--user", metavar="NAME", help="User, or token if there is no password. [NATS_USER]"),
    "password": _flag("--password", metavar="TEXT", help="Password. [NATS_PASSWORD]"),
    "token": _flag("--token", metavar="TEXT", help="Token. [NATS_TOKEN]"),
    "tls_cert": _flag("--tlscert", "tls_cert", metavar="FILE", help="TLS client certificate. [NATS_CERT]"),
    "tls_key": _flag("--tlskey", "tls_key", metavar="FILE", help="TLS private key. [NATS_KEY]"),
    "tls_ca": _flag("--tlsca", "tls_ca", metavar="FILE", help="TLS certificate authorities. [NATS_CA]"),
    "inbox_prefix": _flag("--inbox-prefix", metavar="PREFIX", help="Subjects of answers. [NATS_INBOX_PREFIX]"),
    "connect_timeout": _flag("--connect-timeout", type=Duration(), help="How long to try to connect at first."),
}
