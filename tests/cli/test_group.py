"""The frame of all commands: how they are found, what they print when something goes wrong, how they end."""

import importlib.metadata
import json
from collections.abc import Iterator
from typing import Any

import click
import grpc
import pytest
from click.testing import CliRunner, Result

from mesh import errors
from mesh.cli import cli
from mesh.cli.flags import connection_options, debug_option, json_option
from mesh.cli.output import CommandError, ExitCode, describe_error, register_error
from mesh.options import ConnectOptions


@click.command("probe")
@click.argument("what", default="")
@json_option
@debug_option
def probe(what: str, as_json: bool) -> None:
    """Fail as it is told."""
    failures: dict[str, BaseException] = {
        "config": errors.ConfigError("no such context", key="context"),
        "connect": errors.ConnectError("nats://h:1", "refused"),
        "timeout": TimeoutError("nobody answered in 1 s"),
        "own": CommandError("no such thing", ExitCode.NOT_FOUND, code="NOT_FOUND", invocation_id="x"),
        "bug": KeyError("oops"),
        "interrupt": KeyboardInterrupt(),
    }
    if what:
        raise failures[what]


@click.command("where")
@connection_options()
def where(options: ConnectOptions) -> None:
    """Say where it would connect."""
    click.echo(f"{options.url} {options.connect_timeout} {options.name}")


@click.command("stay")
@connection_options(long_lived=True)
def stay(options: ConnectOptions) -> None:
    """The same for a long-lived command."""
    click.echo(str(options.connect_timeout))


@pytest.fixture(autouse=True)
def commands() -> Iterator[None]:
    for command in (probe, where, stay):
        cli.add_command(command)
    yield
    for command in (probe, where, stay):
        cli.commands.pop(str(command.name))


EMPTY: dict[str, str | None] = {"XDG_CONFIG_HOME": "/nonexistent", "NATS_URL": None}


def invoke(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(cli, arguments, prog_name="mesh", env={**EMPTY, **environment})


@pytest.mark.parametrize(
    ("what", "exit_code", "code"),
    [
        ("config", 2, "INVALID_ARGUMENT"),
        ("connect", 6, "UNAVAILABLE"),
        ("timeout", 5, "DEADLINE_EXCEEDED"),
        ("own", 3, "NOT_FOUND"),
        ("bug", 7, "UNKNOWN"),
    ],
)
def test_each_kind_of_error_has_its_exit_code_and_document(what: str, exit_code: int, code: str) -> None:
    plain = invoke("probe", what)
    assert plain.exit_code == exit_code
    assert plain.stdout == ""
    assert plain.stderr.startswith("Error: ")
    as_json = invoke("probe", what, "--json")
    assert as_json.exit_code == exit_code
    document = json.loads(as_json.stdout)
    assert document["code"] == code
    assert document["source"] == "ingress"
    assert document["message"] in as_json.stderr


def test_fields_of_an_error_are_part_of_the_document() -> None:
    assert json.loads(invoke("probe", "own", "--json").stdout)["invocation_id"] == "x"


def test_a_traceback_is_shown_only_on_request() -> None:
    assert "Traceback" not in invoke("probe", "bug").stderr
    assert "Traceback" in invoke("probe", "bug", "--debug").stderr
    assert "Traceback" in invoke("--debug", "probe", "bug").stderr


def test_success_is_0_and_usage_errors_are_2() -> None:
    assert invoke("probe").exit_code == 0
    assert invoke("probe", "--bogus").exit_code == 2
    assert invoke("bogus").exit_code == 2
    assert json.loads(invoke("probe", "--bogus", "--json").stdout)["code"] == "INVALID_ARGUMENT"


def test_an_interrupted_command_ends_like_one() -> None:
    assert invoke("probe", "interrupt").exit_code == 130


def test_help_is_not_an_error() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    for name in ("call", "info", "ls", "nats", "ping", "serve", "stats"):
        assert f"  {name} " in result.stdout
    assert invoke("nats", "-h").exit_code == 0


def test_a_registered_error_counts_for_its_subclasses_and_the_nearest_wins() -> None:
    class Broad(Exception):
        invocation_id = "i"

    class Narrow(Broad):
        pass

    register_error(Broad, "ABORTED", ExitCode.CONFLICT, source="workflow", fields=["invocation_id", "absent"])
    assert describe_error(Narrow("x")).document() == {
        "code": "ABORTED", "message": "x", "source": "workflow", "invocation_id": "i",
    }  # fmt: skip
    register_error(Narrow, "NOT_FOUND", ExitCode.NOT_FOUND)
    assert describe_error(Narrow("x")).exit_code == 3
    assert describe_error(Broad("x")).exit_code == 4


def test_an_error_of_a_call_keeps_its_code() -> None:
    problem = describe_error(errors.RpcError(grpc.StatusCode.NOT_FOUND, "gone"))
    assert (problem.code, problem.exit_code) == ("NOT_FOUND", 1)


def entry(name: str, value: str) -> importlib.metadata.EntryPoint:
    return importlib.metadata.EntryPoint(name, value, "mesh.commands")


@pytest.fixture
def other_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that brings commands: a good one, one that cannot be imported, one that is none."""
    entries = (
        entry("good", "tests.cli.test_group:probe"),
        entry("broken", "no_such_package.cli:command"),
        entry("odd", "json:dumps"),
    )
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: entries)


@pytest.mark.usefixtures("other_package")
def test_commands_of_other_packages_are_found() -> None:
    assert invoke("good", "own").exit_code == 3


@pytest.mark.usefixtures("other_package")
def test_a_command_that_cannot_be_loaded_stops_only_itself() -> None:
    listing = invoke("--help")
    assert listing.exit_code == 0
    assert "not usable" in listing.stdout
    broken = invoke("broken")
    assert broken.exit_code == 7
    assert "no_such_package" in broken.stderr
    assert invoke("odd").exit_code == 7
    assert invoke("good").exit_code == 0


def test_connection_flags_reach_the_options() -> None:
    assert invoke("where", "-s", "nats://h:1").stdout == "nats://h:1 5.0 mesh where\n"
    assert invoke("where", NATS_URL="nats://env:1").stdout.startswith("nats://env:1 ")
    assert invoke("where", "--connect-timeout", "1m").stdout == "nats://127.0.0.1:4222 60.0 mesh where\n"
    missing = invoke("where", "--context", "none")
    assert missing.exit_code == 2
    assert "no NATS context 'none'" in missing.stderr


def test_a_long_lived_command_tries_for_ever_unless_told() -> None:
    assert invoke("stay").stdout == "None\n"
    assert invoke("stay", "--connect-timeout", "2s").stdout == "2.0\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(shell: str) -> None:
    assert "_MESH_COMPLETE" in invoke("completion", shell).stdout


def test_completion_completes_commands_without_a_server() -> None:
    answer: Any = invoke(_MESH_COMPLETE="bash_complete", COMP_WORDS="mesh na", COMP_CWORD="1")
    assert "nats" in answer.stdout
