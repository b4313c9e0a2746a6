"""`mesh ls`: which services there are."""

from typing import Any

import click

from mesh.cli import output
from mesh.cli.asking import ask, asking_options, warn_of_faults
from mesh.cli.running import run
from mesh.discovery import Found
from mesh.micro import INFO
from mesh.options import ConnectOptions


@click.command("ls")
@click.argument("name", required=False)
@asking_options
def command(options: ConnectOptions, /, name: str | None, cluster: str | None, timeout: float, as_json: bool) -> None:
    """List services, their instances and methods; NAME is short or full."""
    answers = run(ask(options, INFO, name, None, cluster, timeout))
    warn_of_faults(answers)
    services = grouped(answers)
    if as_json:
        output.print_json(services)
    elif services:
        _print(services)
    else:
        click.echo(f"No service{f' {name}' if name else ''} answers.", err=True)


def grouped(answers: list[Found]) -> list[dict[str, Any]]:
    """One entry a service and version, sorted by service; an answer without a usable name is in none."""
    services: dict[tuple[str, str], dict[str, Any]] = {}
    for answer in answers:
        if not answer.name:
            continue
        entry = services.setdefault(
            (answer.service or answer.name, answer.version),
            {
                "name": answer.name,
                "service": answer.service or answer.name,
                "version": answer.version,
                "description": answer.description,
                "instances": [],
                "methods": [],
            },
        )
        entry["instances"].append(answer.id)
        entry["methods"] += [method for method in answer.methods if method not in entry["methods"]]
    return [services[key] for key in sorted(services)]


def _print(services: list[dict[str, Any]]) -> None:
    output.print_table(
        ["NAME", "SERVICE", "VERSION", "INSTANCES", "METHODS", "DESCRIPTION"],
        (
            (
                service["name"],
                service["service"],
                service["version"],
                len(service["instances"]),
                len(service["methods"]),
                service["description"],
            )
            for service in services
        ),
    )
