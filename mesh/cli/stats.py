"""`mesh stats`: how much a service's instances did."""

from collections.abc import Iterator

import click

from mesh.cli import output
from mesh.cli.asking import as_documents, ask, asking_options, nobody, warn_of_faults
from mesh.cli.running import run
from mesh.discovery import Found
from mesh.micro import STATS
from mesh.options import ConnectOptions


@click.command("stats")
@click.argument("name")
@click.argument("instance", metavar="[ID]", required=False)
@asking_options
def command(
    options: ConnectOptions, /, name: str, instance: str | None, cluster: str | None, timeout: float, as_json: bool
) -> None:
    """Show requests, errors and times of the instances of service NAME, or of the one with ID."""
    answers = run(ask(options, STATS, name, instance, cluster, timeout))
    warn_of_faults(answers)
    if not answers:
        raise nobody(name, instance, cluster)
    if as_json:
        output.print_json(as_documents(answers))
        return
    output.print_table(
        ["INSTANCE", "METHOD", "REQUESTS", "ERRORS", "AVERAGE", "LAST ERROR"],
        (row for answer in answers for row in _rows(answer)),
    )


def _rows(answer: Found) -> Iterator[tuple[object, ...]]:
    for endpoint in answer.endpoints:
        yield (
            f"{answer.name} {answer.id}",
            endpoint.get("name", ""),
            endpoint.get("num_requests", ""),
            endpoint.get("num_errors", ""),
            _milliseconds(endpoint.get("average_processing_time")),
            endpoint.get("last_error", ""),
        )


def _milliseconds(nanoseconds: object) -> str:
    return f"{nanoseconds / 1e6:.3f} ms" if isinstance(nanoseconds, int | float) else ""
