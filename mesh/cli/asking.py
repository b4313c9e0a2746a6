"""What `mesh ls`, `info`, `stats` and `ping` have in common: they ask every instance and show the answers."""

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import click

from mesh.cli import output
from mesh.cli.flags import connection_options, json_option
from mesh.cli.opening import opened
from mesh.cli.types import Duration
from mesh.discovery import FIRST_ANSWER, Found, discover
from mesh.options import ConnectOptions

P = ParamSpec("P")
R = TypeVar("R")

at_option = click.option("--at", "cluster", metavar="CLUSTER", help="Ask in this cluster.")


def asking_options(command: Callable[Concatenate[ConnectOptions, P], R]) -> Callable[P, R]:
    """The flags of all four commands."""
    timeout = click.option(
        "--timeout",
        type=Duration(),
        default=FIRST_ANSWER,
        show_default="1s",
        help="How long to wait for a first answer.",
    )
    return functools.reduce(
        lambda wrapped, option: option(wrapped), (json_option, timeout, at_option), connection_options()(command)
    )


async def ask(
    options: ConnectOptions, verb: str, name: str | None, instance: str | None, cluster: str | None, timeout: float
) -> list[Found]:
    """Connect, ask, and return all answers. One instance, asked by its id, answers once: nothing more is waited for."""
    async with opened(options) as m:
        return await discover(
            m.connection,
            name,
            instance,
            verb=verb,
            cluster=cluster,
            first=timeout,
            **({"limit": 1} if instance else {}),
        )


def nobody(name: str | None, instance: str | None, cluster: str | None) -> output.CommandError:
    """What is raised where no answer came."""
    who = f"service {name}" if name else "service"
    which = f" with id {instance}" if instance else ""
    where = f" in cluster {cluster}" if cluster else ""
    return output.CommandError(
        f"no {who}{which} answers{where}; mesh ls shows who does", output.ExitCode.FAILED, code="UNAVAILABLE"
    )


def as_documents(answers: list[Found]) -> list[dict[str, Any]]:
    """The answers as they came; one that is not what ADR-32 asks for is marked `invalid`, with the reason."""
    return [answer.document | ({"invalid": answer.fault} if answer.fault else {}) for answer in answers]


def warn_of_faults(answers: list[Found]) -> None:
    """Name the odd answers on stderr: they are shown, and stop nothing."""
    for answer in answers:
        if answer.fault:
            who = " ".join(filter(None, (answer.name, answer.id))) or "a service without a name"
            click.echo(f"Warning: {who} gives an invalid answer: {answer.fault}", err=True)
