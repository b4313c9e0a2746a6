"""`mesh info`: what a service's instances say about themselves."""

import click

from mesh.cli import output
from mesh.cli.asking import as_documents, ask, asking_options, nobody, warn_of_faults
from mesh.cli.running import run
from mesh.discovery import Found
from mesh.micro import INFO
from mesh.options import ConnectOptions


@click.command("info")
@click.argument("name")
@click.argument("instance", metavar="[ID]", required=False)
@asking_options
def command(
    options: ConnectOptions, /, name: str, instance: str | None, cluster: str | None, timeout: float, as_json: bool
) -> None:
    """Show what the instances of service NAME, or the one with ID, say about themselves."""
    answers = run(ask(options, INFO, name, instance, cluster, timeout))
    warn_of_faults(answers)
    if not answers:
        raise nobody(name, instance, cluster)
    if as_json:
        output.print_json(as_documents(answers))
        return
    for answer in answers:
        _print(answer)


def _print(answer: Found) -> None:
    click.echo(output.heading(f"{answer.service or answer.name} {answer.id}"))
    output.print_facts({"version": answer.version, "description": answer.description, **answer.metadata})
    for endpoint in answer.endpoints:
        metadata = endpoint.get("metadata") or {}
        types = f"({metadata.get('proto.request', '')}) -> {metadata.get('proto.response', '')}" if metadata else ""
        output.print_facts({str(endpoint.get("name")): f"{endpoint.get('subject')} {types}".rstrip()}, indent=4)
    click.echo()
