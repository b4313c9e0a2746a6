"""`mesh call` on methods with streams: one JSON a line in and out."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh.localserver import LocalServer
from tests.cli.commands import NOWHERE, REPOSITORY, mesh, start

SERVICE = "grpc.testing.TestService"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with the service of gRPC's interoperability tests."""
    folder = tmp_path_factory.mktemp("streams")
    with LocalServer(data=folder / "nats") as server:
        process = start(folder, server.url, "serve", "tests.mesh.interop:TestService")
        try:
            asyncio.run(process.ready())
            yield server.url
        finally:
            asyncio.run(process.close())


def sizes(text: str) -> list[int]:
    """Of the payloads in lines of responses (base64)."""
    return [len(json.loads(line).get("payload", {}).get("body", "")) // 4 * 3 for line in text.splitlines()]


def outputs(*found: int) -> str:
    return json.dumps({"responseParameters": [{"size": size} for size in found]})


def inputs(*found: str) -> str:
    return "\n".join(json.dumps({"payload": {"body": body}}) for body in found)


def test_responses_are_a_line_each(url: str) -> None:
    result = mesh(url, "call", "TestService/StreamingOutputCall", outputs(3, 6, 9))
    assert (result.exit_code, sizes(result.stdout)) == (0, [3, 6, 9])
    assert mesh(url, "call", f"{SERVICE}/StreamingOutputCall").stdout == ""


def test_requests_are_documents_one_after_another(url: str, tmp_path: Path) -> None:
    method = f"{SERVICE}/StreamingInputCall"
    (tmp_path / "requests.json").write_text(inputs("AAAA", "BBBB", "CCCC") + "\n\n")
    for arguments, given in (
        (("-d", "@-"), inputs("AAAA", "BBBB", "CCCC")),
        (("-d", f"@{tmp_path}/requests.json"), ""),
        ((inputs("AAAA", "BBBB").replace("\n", " ") + inputs("CCCC"),), ""),
    ):
        result = mesh(url, "call", method, *arguments, input=given)
        assert (result.exit_code, json.loads(result.stdout)) == (0, {"aggregatedPayloadSize": 9}), result.output
    assert json.loads(mesh(url, "call", method).stdout) == {}


def test_streams_both_ways(url: str) -> None:
    given = f"{outputs(3)}\n\n{outputs(6, 9)}\n"
    result = mesh(url, "call", f"{SERVICE}/FullDuplexCall", "-d", "@-", "--json", input=given)
    assert (result.exit_code, sizes(result.stdout)) == (0, [3, 6, 9])


def test_each_line_of_stdin_is_sent_as_it_comes_and_nobody_waits_for_the_next(url: str) -> None:
    command = [sys.executable, "-P", "-m", "mesh", "call", f"{SERVICE}/FullDuplexCall", "-d", "@-", "--timeout", "9s"]
    environment: dict[str, Any] = {"PYTHONPATH": str(REPOSITORY), "XDG_CONFIG_HOME": NOWHERE["XDG_CONFIG_HOME"]}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment | {"NATS_URL": url}
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for size in (3, 6):
            process.stdin.write(outputs(size) + "\n")
            process.stdin.flush()
            assert sizes(process.stdout.readline()) == [size]
        process.stdin.write('{"responseStatus": {"code": 5, "message": "enough"}}\n')
        process.stdin.flush()
        assert process.wait(5) == 64 + 5, "it ended though stdin is open"


def test_errors_after_responses(url: str) -> None:
    request = json.dumps({"responseParameters": [{"size": 3}], "responseStatus": {"code": 9, "message": "told"}})
    result = mesh(url, "call", f"{SERVICE}/StreamingOutputCall", request, "--json")
    assert result.exit_code == 64 + 9
    first, second = result.stdout.splitlines()
    assert (sizes(first), json.loads(second)["details"]) == ([3], "told")
    assert "FAILED_PRECONDITION: told" in result.stderr


@pytest.mark.parametrize("given", ['{"nope": 1}', "{", f"{outputs(3)}\n[1]"])
def test_a_request_that_is_none_is_said(url: str, given: str) -> None:
    for method in ("FullDuplexCall", "StreamingInputCall"):
        result = mesh(url, "call", f"{SERVICE}/{method}", given)
        assert (result.exit_code, "the request is not a" in result.stderr) == (2, True), result.output


def test_the_deadline_counts(url: str) -> None:
    request = json.dumps({"responseParameters": [{"size": 3}, {"size": 3, "intervalUs": 5_000_000}]})
    result = mesh(url, "call", f"{SERVICE}/StreamingOutputCall", request, "--timeout", "300ms")
    assert (result.exit_code, sizes(result.stdout)) == (64 + 4, [3])
