"""`mesh ping`: which instances answer, and how fast."""

import click

from mesh.cli import output
from mesh.cli.asking import as_documents, ask, asking_options, nobody, warn_of_faults
from mesh.cli.running import run
from mesh.micro import PING
from mesh.options import ConnectOptions


@click.command("ping")
@click.argument("name", required=False)
@asking_options
def command(options: ConnectOptions, /, name: str | None, cluster: str | None, timeout: float, as_json: bool) -> None:
    """Ask every instance, or those of service NAME, for a sign of life."""
    answers = sorted(run(ask(options, PING, name, None, cluster, timeout)), key=lambda answer: answer.rtt)
    warn_of_faults(answers)
    if not answers:
        raise nobody(name, None, cluster)
    if as_json:
        documents = as_documents(answers)
        output.print_json(
            [
                document | {"rtt_ms": round(answer.rtt * 1000, 3)}
                for document, answer in zip(documents, answers, strict=True)
            ]
        )
        return
    output.print_table(
        ["NAME", "INSTANCE", "VERSION", "RTT"],
        ((answer.name, answer.id, answer.version, f"{answer.rtt * 1000:.2f} ms") for answer in answers),
    )
