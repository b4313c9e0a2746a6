"""`mesh workflow`: start invocations, wait for them, look at them."""

import base64
import json
import sys
from typing import Any

import click
from google.protobuf import json_format
from google.protobuf.message import Message

from engine import values
from engine.cli.common import client_of, namespace_option
from engine.client import Client, Description, Handle
from mesh.cli import output
from mesh.cli.flags import connection_options, json_option
from mesh.cli.running import run
from mesh.cli.types import Duration, read_input
from mesh.options import ConnectOptions


@click.group("workflow")
def command() -> None:
    """Start workflows, wait for their results, look at them.

    INPUT is JSON, @FILE or - for stdin; without it the workflow gets none.
    """


_id_option = click.option("--id", "invocation_id", metavar="ID", help="The same id is the same invocation.")
_key_option = click.option("--partition-key", metavar="KEY", help="Of a keyed workflow.")
_timeout_option = click.option("--timeout", type=Duration(zero=True), help="How long to wait; the run goes on.")


@command.command("start")
@click.argument("name")
@click.argument("text", metavar="[INPUT]", required=False)
@_id_option
@_key_option
@namespace_option
@json_option
@connection_options()
def start(options: ConnectOptions, /, namespace: str, as_json: bool, **asked: Any) -> int:
    """Start the workflow NAME and print the invocation's id."""

    async def main() -> int:
        async with client_of(options, namespace) as client:
            handle = await _started(client, **asked)
            description = await handle.describe()
            if as_json:
                output.print_json(
                    {"invocation_id": handle.id, "status": description.status, "served": description.served}
                )
            else:
                click.echo(handle.id)
            _tell_if_nobody_serves(description)
        return output.ExitCode.DONE

    return run(main())


@command.command("invoke")
@click.argument("name")
@click.argument("text", metavar="[INPUT]", required=False)
@_id_option
@_key_option
@_timeout_option
@namespace_option
@json_option
@connection_options()
def invoke(options: ConnectOptions, /, namespace: str, as_json: bool, timeout: float | None, **asked: Any) -> int:
    """Start the workflow NAME, wait, and print its result."""

    async def main() -> int:
        async with client_of(options, namespace) as client:
            handle = await _started(client, **asked)
            _print_result(handle.id, await handle.result(timeout), as_json=as_json)
        return output.ExitCode.DONE

    return run(main())


@command.command("result")
@click.argument("invocation_id", metavar="ID")
@_timeout_option
@namespace_option
@json_option
@connection_options()
def result(options: ConnectOptions, /, invocation_id: str, timeout: float | None, namespace: str, as_json: bool) -> int:
    """Wait for the end of an invocation and print its result."""

    async def main() -> int:
        async with client_of(options, namespace) as client:
            found = await client.handle(invocation_id).result(timeout)
            _print_result(invocation_id, found, as_json=as_json)
        return output.ExitCode.DONE

    return run(main())


@command.command("describe")
@click.argument("invocation_id", metavar="ID")
@namespace_option
@json_option
@connection_options()
def describe(options: ConnectOptions, /, invocation_id: str, namespace: str, as_json: bool) -> int:
    """Print status, times, input, result and the journal of an invocation."""

    async def main() -> int:
        async with client_of(options, namespace) as client:
            description = await client.handle(invocation_id).describe()
        if as_json:
            output.print_json(description.to_dict())
        else:
            _print_description(description)
            _tell_if_nobody_serves(description)
        return output.ExitCode.DONE

    return run(main())


@command.command("cancel")
@click.argument("invocation_id", metavar="ID")
@namespace_option
@json_option
@connection_options()
def cancel(options: ConnectOptions, /, invocation_id: str, namespace: str, as_json: bool) -> int:
    """Ask for the end of an invocation: its code is interrupted at its next await, and may clean up."""

    async def main() -> int:
        async with client_of(options, namespace) as client:
            await client.cancel(invocation_id)
            await _print_status(client, invocation_id, as_json=as_json)
        return output.ExitCode.DONE

    return run(main())


@command.command("signal")
@click.argument("invocation_id", metavar="ID")
@click.argument("name")
@click.argument("text", metavar="[VALUE]", required=False)
@namespace_option
@json_option
@connection_options()
def signal(
    options: ConnectOptions, /, invocation_id: str, name: str, text: str | None, namespace: str, as_json: bool
) -> int:
    """Send the signal NAME to an invocation; VALUE is JSON, @FILE or - for stdin, null without it."""
    value = None if text is None else values.decode(*values.from_text(read_input(text)))

    async def main() -> int:
        async with client_of(options, namespace) as client:
            await client.signal(invocation_id, name, value)
            await _print_status(client, invocation_id, as_json=as_json)
        return output.ExitCode.DONE

    return run(main())


@command.command("pause")
@click.argument("invocation_id", metavar="ID")
@namespace_option
@json_option
@connection_options()
def pause(options: ConnectOptions, /, invocation_id: str, namespace: str, as_json: bool) -> int:
    """Have an invocation begin no step any more, until it is resumed."""

    async def main() -> int:
        async with client_of(options, namespace) as client:
            await client.pause(invocation_id)
            await _print_status(client, invocation_id, as_json=as_json)
        return output.ExitCode.DONE

    return run(main())


@command.command("resume")
@click.argument("invocation_id", metavar="ID")
@namespace_option
@json_option
@connection_options()
def resume(options: ConnectOptions, /, invocation_id: str, namespace: str, as_json: bool) -> int:
    """Have a paused invocation go on."""

    async def main() -> int:
        async with client_of(options, namespace) as client:
            await client.resume(invocation_id)
            await _print_status(client, invocation_id, as_json=as_json)
        return output.ExitCode.DONE

    return run(main())


async def _print_status(client: Client, invocation_id: str, *, as_json: bool) -> None:
    """What became of a request: the status may lag behind by a moment."""
    description = await client.describe(invocation_id)
    if as_json:
        output.print_json({"invocation_id": invocation_id, "status": description.status})
    else:
        click.echo(description.status)


async def _started(
    client: Client, *, name: str, text: str | None, invocation_id: str | None, partition_key: str | None
) -> Handle[Any]:
    value = None if text is None else values.decode(*values.from_text(read_input(text)))
    return await client.start(name, value, id=invocation_id, partition_key=partition_key)


def _tell_if_nobody_serves(description: Description) -> None:
    if not description.served and description.completed_at is None:
        click.echo(f"nobody serves {description.workflow} at present: it waits for a processor", err=True)


def _print_result(invocation_id: str, value: Any, *, as_json: bool) -> None:
    if isinstance(value, bytes) and not as_json:
        sys.stdout.buffer.write(value)
        sys.stdout.flush()
        return
    document: dict[str, Any] = {"invocation_id": invocation_id, "status": "completed", "result": value}
    if isinstance(value, bytes):
        document |= {"result": base64.b64encode(value).decode(), "encoding": "base64"}
    elif isinstance(value, Message):
        document["result"] = json_format.MessageToDict(value)
    output.print_json(document if as_json else document["result"])


def _print_description(description: Description) -> None:
    """For people: what is there, in lines of name and value, then the steps."""
    document = description.to_dict()
    steps = document.pop("journal")
    waits = document.pop("waiting_on")
    error = document.pop("error")
    for name, value in document.items():
        if value not in (None, {}, []):
            click.echo(f"{name + ':':16} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
    if error is not None:
        click.echo(f"{'error:':16} {error['type']}: {error['message']}")
        if error["traceback"]:
            click.echo(error["traceback"].rstrip(), err=True)
    for wait in waits:
        click.echo(f"{'waiting on:':16} {_wait_text(wait)}")
    if steps:
        click.echo()
        output.print_table(("STEP", "KIND", "NAME", "ATTEMPTS", "RESPONSE"), map(_step_row, steps))


def _wait_text(wait: dict[str, Any]) -> str:
    parts = [f"{wait['kind']} {wait['name']}".rstrip()]
    parts += [f"{word} {wait[key]}" for word, key in (("since", "since"), ("until", "due_at")) if wait[key]]
    return " ".join(parts) + (f": {wait['reason']}" if wait["reason"] else "")


def _step_row(step: dict[str, Any]) -> tuple[object, ...]:
    error = step["error"]
    if error is not None:
        answer = f"{error['type']}: {error['message']}"
    elif step["completed_at"] is None:
        answer = "…"
    else:
        answer = json.dumps(step["response"], ensure_ascii=False)
    answer = answer if len(answer) <= 100 else answer[:99] + "…"
    return step["step"], step["kind"], step["name"], step["attempt_count"], answer
