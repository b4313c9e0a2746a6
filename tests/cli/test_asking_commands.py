"""`mesh ls`, `info`, `stats`, `ping` and `call` against real services, ours and foreign ones."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh.localserver import LocalServer
from tests.cli.commands import mesh, start

METADATA = """
import grpc
from protos import hello_pb2, hello_pb2_grpc

class HelloService(hello_pb2_grpc.HelloServiceServicer):
    async def SayHello(self, request, context):
        seen = {key: value for key, value in context.invocation_metadata() if key.startswith("x-")}
        if request.name == "fail":
            context.set_trailing_metadata((("why", "asked"), ("raw-bin", bytes([0, 255]))))
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such name: caf\\u00e9")
        if request.name == "wait":
            await __import__("asyncio").sleep(30)
        return hello_pb2.HelloResponse(message=f"{request.name} {sorted(seen.items())}")
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with two instances of HelloService and one of OrderService."""
    folder = tmp_path_factory.mktemp("asking")
    (folder / "greeter.py").write_text(METADATA)
    with LocalServer(data=folder / "nats") as server:
        processes = [
            start(folder, server.url, "serve", "greeter", name="one"),
            start(folder, server.url, "serve", "greeter", "services.orders", name="two"),
        ]
        try:
            asyncio.run(ready(processes))
            yield server.url
        finally:
            asyncio.run(close(processes))


async def ready(processes: list[Any]) -> None:
    for process in processes:
        await process.ready()


async def close(processes: list[Any]) -> None:
    for process in processes:
        await process.close()


def answer(url: str, *arguments: str, **extra: Any) -> Any:
    """The document of a command that must succeed."""
    result = mesh(url, *arguments, "--json", **extra)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_ls_has_one_entry_a_service(url: str) -> None:
    hello, orders = answer(url, "ls")
    assert (hello["name"], hello["service"], hello["version"]) == ("HelloService", "hello.HelloService", "0.0.0")
    assert len(set(hello["instances"])) == 2
    assert hello["methods"] == ["SayHello"]
    assert orders["service"] == "orders.OrderService"
    assert orders["methods"] == ["Reserve", "Confirm", "Cancel"]
    assert orders["description"]


@pytest.mark.parametrize("name", ["OrderService", "orders.OrderService"])
def test_ls_takes_a_short_or_a_full_name(url: str, name: str) -> None:
    assert [service["service"] for service in answer(url, "ls", name)] == ["orders.OrderService"]


def test_ls_of_nothing_is_empty_and_no_failure(url: str) -> None:
    assert answer(url, "ls", "Nobody") == []
    assert answer(url, "ls", "other.OrderService") == []
    assert mesh(url, "ls", "Nobody").exit_code == 0


def test_info_and_stats_are_the_answers_as_they_came(url: str) -> None:
    for verb in ("info", "stats"):
        documents = answer(url, verb, "hello.HelloService")
        assert [document["type"] for document in documents] == [f"io.nats.micro.v1.{verb}_response"] * 2
        only = answer(url, verb, "HelloService", documents[1]["id"])
        assert [document["id"] for document in only] == [documents[1]["id"]]


def test_ping_has_the_round_trip(url: str) -> None:
    documents = answer(url, "ping")
    assert len(documents) == 3
    assert all(0 < document["rtt_ms"] < 5000 for document in documents)
    assert len(answer(url, "ping", "HelloService")) == 2


@pytest.mark.parametrize("command", ["info", "stats", "ping"])
def test_nobody_there_is_exit_1(url: str, command: str) -> None:
    result = mesh(url, command, "Nobody", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["code"] == "UNAVAILABLE"
    assert "no service Nobody answers" in result.stderr


@pytest.mark.parametrize("command", ["ls", "info", "stats", "ping"])
def test_people_get_text(url: str, command: str) -> None:
    result = mesh(url, command, "HelloService")
    assert result.exit_code == 0
    assert "HelloService" in result.stdout
    assert "{" not in result.stdout


@pytest.mark.parametrize("command", ["ls", "ping"])
def test_no_server_is_exit_6(command: str) -> None:
    result = mesh("nats://127.0.0.1:1", command, "--connect-timeout", "200ms")
    assert result.exit_code == 6
    assert "cannot connect to nats://127.0.0.1:1" in result.stderr


@pytest.mark.parametrize(
    "method", ["HelloService/SayHello", "hello.HelloService/SayHello", "hello.HelloService.SayHello"]
)
def test_call_takes_every_spelling_of_a_method(url: str, method: str) -> None:
    assert json.loads(mesh(url, "call", method, '{"name": "World"}').stdout) == {"message": "World []"}


def test_call_takes_the_request_from_anywhere(url: str, tmp_path: Path) -> None:
    (tmp_path / "request.json").write_text('{"name": "file"}')
    method = "hello.HelloService/SayHello"
    assert answer(url, "call", method, "-d", '{"name": "option"}')["message"] == "option []"
    assert answer(url, "call", method, "-d", f"@{tmp_path}/request.json")["message"] == "file []"
    assert answer(url, "call", method, "-d", "@-", input='{"name": "stdin"}')["message"] == "stdin []"
    assert answer(url, "call", method)["message"] == " []"


def test_call_sends_metadata(url: str) -> None:
    headers = ["-H", "X-Tenant: a b", "-H", "x-raw-bin: AP8="]
    assert answer(url, "call", "hello.HelloService/SayHello", *headers)["message"] == (
        " [('x-raw-bin', b'\\x00\\xff'), ('x-tenant', 'a b')]"
    )


def test_a_failed_call_has_its_code(url: str) -> None:
    arguments = ("call", "hello.HelloService/SayHello", '{"name": "fail"}')
    plain = mesh(url, *arguments)
    assert (plain.exit_code, plain.stdout) == (64 + 5, "")
    assert plain.stderr == "NOT_FOUND: no such name: café\n"
    result = mesh(url, *arguments, "--json")
    assert result.exit_code == 64 + 5
    assert json.loads(result.stdout) == {
        "code": "NOT_FOUND",
        "details": "no such name: café",
        "trailing_metadata": {"why": "asked", "raw-bin": "AP8="},
    }


def test_a_call_has_a_deadline(url: str) -> None:
    result = mesh(url, "call", "hello.HelloService/SayHello", '{"name": "wait"}', "--timeout", "200ms")
    assert result.exit_code == 64 + 4


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (["HelloService/Nope"], 64 + 12, "has no method Nope; it has SayHello"),
        (["Nobody/SayHello"], 64 + 14, "no instance of Nobody answers"),
        (["no.Body/SayHello"], 64 + 14, "no instance of no.Body answers"),
        (["hello.HelloService/SayHello", "--at", "eu"], 64 + 14, "in cluster eu"),
        (["HelloService"], 2, "is not a method"),
        (["hello.HelloService/SayHello", '{"nme": 1}'], 2, "is not a hello.HelloRequest"),
        (["hello.HelloService/SayHello", "{"], 2, "is not a hello.HelloRequest"),
        (["hello.HelloService/SayHello", "{}", "-d", "{}"], 2, "given twice"),
        (["hello.HelloService/SayHello", "-d", "@/nonexistent"], 2, "cannot be read"),
        (["hello.HelloService/SayHello", "-H", "x"], 2, "is not 'KEY: VALUE'"),
        (["hello.HelloService/SayHello", "-H", "grpc-x: 1"], 2, "grpc-x"),
        (["hello.HelloService/SayHello", "-H", "x-bin: ?"], 2, "is not base64"),
    ],
)
def test_what_cannot_be_called_is_said(url: str, arguments: list[str], exit_code: int, said: str) -> None:
    result = mesh(url, "call", *arguments)
    assert result.exit_code == exit_code, result.output
    assert said in result.stderr
    assert result.stdout == ""


def test_a_call_without_a_server_is_exit_6() -> None:
    assert mesh("nats://127.0.0.1:1", "call", "a.B/C", "--connect-timeout", "200ms").exit_code == 6


class Foreign:
    """Bare responders in a thread with an event loop of its own: services that know nothing of us."""

    def __init__(self, url: str, answers: dict[str, bytes]) -> None:
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._main(url, answers),))

    async def _main(self, url: str, answers: dict[str, bytes]) -> None:
        import nats

        self._end = asyncio.Event()
        client = await nats.connect(url)
        for subject, data in answers.items():

            async def respond(message: Any, data: bytes = data) -> None:
                await message.respond(data or message.data)

            await client.subscribe(subject, cb=respond)
        await client.flush()
        self._ready.set()
        await self._end.wait()
        await client.close()

    def __enter__(self) -> None:
        self._thread.start()
        assert self._ready.wait(10)

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        self._loop.close()


def info(name: str, **more: Any) -> bytes:
    endpoint = {"name": "say", "subject": "echo.say", "queue_group": "q", "metadata": {}}
    document: dict[str, Any] = {
        "type": "io.nats.micro.v1.info_response",
        "name": name,
        "id": "x1",
        "version": "1.2.3",
        "description": "foreign",
        "metadata": {},
        "endpoints": [endpoint],
    }
    return json.dumps({**document, **more}).encode()


def test_a_foreign_service_is_listed_and_called_with_json(url: str) -> None:
    answers = {"$SRV.INFO": info("echo"), "$SRV.INFO.echo": info("echo"), "echo.say": b""}
    with Foreign(url, answers):
        listed = next(service for service in answer(url, "ls") if service["name"] == "echo")
        assert (listed["service"], listed["methods"], listed["version"]) == ("echo", ["say"], "1.2.3")
        assert answer(url, "call", "echo/say", '{"a": [1]}') == {"a": [1]}
        assert mesh(url, "call", "echo/nope").exit_code == 64 + 12


@pytest.mark.parametrize(
    "odd", [b"not json", b"[]", info("odd", endpoints="x"), info("odd", version=5), b'{"name": 5}']
)
def test_an_odd_answer_stops_nothing(url: str, odd: bytes) -> None:
    with Foreign(url, {"$SRV.INFO": odd, "$SRV.INFO.odd": odd}):
        result = mesh(url, "ls", "--json")
        assert result.exit_code == 0
        assert "hello.HelloService" in [service["service"] for service in json.loads(result.stdout)]
        assert "gives an invalid answer" in result.stderr
        shown = mesh(url, "info", "odd", "--json")
        assert shown.exit_code == 0
        assert json.loads(shown.stdout)[0]["invalid"]
        assert mesh(url, "info", "odd").exit_code == 0


def test_a_short_name_of_two_packages_is_refused_with_both(url: str) -> None:
    other = info("HelloService", metadata={"proto.service": "other.HelloService"})
    with Foreign(url, {"$SRV.INFO.HelloService": other}):
        result = mesh(url, "call", "HelloService/SayHello", '{"name": "x"}')
        assert result.exit_code == 2
        assert "hello.HelloService, other.HelloService" in result.stderr
        assert mesh(url, "call", "hello.HelloService/SayHello", '{"name": "x"}').exit_code == 0


def test_names_cannot_steer_the_terminal(url: str) -> None:
    evil = info("evil", description="\x1b[2J\r\nfake row")
    with Foreign(url, {"$SRV.INFO": evil}):
        shown = mesh(url, "ls").stdout
        assert "\x1b[2J" not in shown
        assert "?[2J??fake row" in shown
