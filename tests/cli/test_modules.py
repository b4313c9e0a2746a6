"""MODULE and MODULE:attribute: the working directory comes first, nothing shadows our packages."""

import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from mesh.cli.modules import load
from mesh.cli.output import CommandError, ExitCode
from mesh.cli.servicers import register, servicers_of

SERVICES = """
from protos import hello_pb2_grpc

class Imported: pass
class Hello(hello_pb2_grpc.HelloServiceServicer): pass
class _Private(hello_pb2_grpc.HelloServiceServicer): pass
class Mapped:
    def __mapping__(self): return {}
class Picky(Mapped):
    def __init__(self, need): pass

def make(): return Mapped()
async def make_async(): return Mapped()
def make_picky(need): return Mapped()
def make_nothing(): return 5
del Picky
class holder:
    def Inner(): return Hello()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    before = set(sys.modules)
    path = list(sys.path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_the_working_directory_is_looked_in_first(here: Path) -> None:
    (here / "json").mkdir()  # a name of the standard library
    (here / "colorsys.py").write_text("ours = True\n")
    sys.modules.pop("colorsys", None)
    assert load(("colorsys",))[0].module.__file__ == str(here / "colorsys.py")


def test_a_module_that_does_not_exist_is_said_without_a_traceback(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CommandError, match=f"no module 'nowhere'.*{here}") as caught:
        load(("nowhere.at.all",))
    assert caught.value.problem.exit_code == ExitCode.USAGE
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("text", ["a/b.py", "services/hello.py:Hello", "", ":x", "a:", "a..b", "1a"])
def test_what_is_no_module_is_a_usage_error(here: Path, text: str) -> None:
    with pytest.raises(click.UsageError, match="is not a module"):
        load((text,))


def test_a_path_is_answered_with_the_module_that_was_meant(here: Path) -> None:
    with pytest.raises(click.UsageError, match=r"did you mean services\.hello:Hello\?"):
        load(("./services/hello.py:Hello",))


@pytest.mark.parametrize("fault", ["1/0", "import not_installed", "raise SystemExit(3)", "x ="])
def test_a_module_that_fails_shows_its_own_traceback(
    here: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "faulty.py").write_text(f"def f():\n    {fault}\nf()\n")
    with pytest.raises(CommandError, match="'faulty' cannot be imported") as caught:
        load(("faulty",))
    assert caught.value.problem.exit_code == ExitCode.USAGE
    shown = capsys.readouterr().err
    assert str(here / "faulty.py") in shown
    assert "importlib" not in shown
    assert "mesh/cli" not in shown


def test_a_folder_that_would_shadow_us_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "engine").mkdir()
    (here / "mesh.py").write_text("")
    (here / "mine.py").write_text("import mesh\nassert mesh.__path__\n")
    load(("mine",))
    shown = capsys.readouterr().err
    assert f"{here}/engine has the name of the package engine" in shown
    assert f"{here}/mesh.py has the name of the package mesh" in shown


def test_our_own_checkout_shadows_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    load(("services.hello",))
    assert "Warning" not in capsys.readouterr().err


async def served(here: Path, text: str) -> list[str]:
    (here / "mine.py").write_text(SERVICES)
    return [type(servicer).__name__ for servicer in await servicers_of(load((text,))[0])]


async def test_a_module_gives_its_own_public_services(here: Path) -> None:
    assert await served(here, "mine") == ["Hello", "Mapped"]


@pytest.mark.parametrize(
    ("text", "kind"),
    [("mine:Hello", "Hello"), ("mine:make", "Mapped"), ("mine:make_async", "Mapped"), ("mine:_Private", "_Private"),
     ("mine:holder.Inner", "Hello")],
)  # fmt: skip
async def test_an_attribute_gives_one_service(here: Path, text: str, kind: str) -> None:
    assert await served(here, text) == [kind]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mine:nothing", "has no attribute 'nothing'"),
        ("mine:make_picky", "needs arguments"),
        ("mine:make_nothing", "is no service"),
        ("mine:Imported", "is no service"),
    ],
)
async def test_an_attribute_that_gives_none_is_refused(here: Path, text: str, said: str) -> None:
    with pytest.raises(CommandError, match=said) as caught:
        await served(here, text)
    assert caught.value.problem.exit_code == ExitCode.USAGE


async def test_a_module_without_services_is_refused(here: Path) -> None:
    (here / "empty.py").write_text("from services.hello import HelloService\n")
    with pytest.raises(CommandError, match="no service in empty"):
        await servicers_of(load(("empty",))[0])


async def test_an_instance_takes_the_place_of_its_class(here: Path) -> None:
    (here / "made.py").write_text(
        "class Mapped:\n def __init__(self, x): pass\n def __mapping__(self): return {}\nmapped = Mapped(1)\n"
    )
    assert len(await servicers_of(load(("made",))[0])) == 1


async def test_each_kind_gets_onto_the_server_by_its_own_way(here: Path) -> None:
    class Server:
        def __init__(self) -> None:
            self.seen: list[str] = []

        def add(self, servicer: object) -> None:
            self.seen.append(type(servicer).__name__)

        def add_generic_rpc_handlers(self, _handlers: object) -> None:
            self.seen.append("generic")

        def add_registered_method_handlers(self, service: str, _handlers: object) -> None:
            self.seen.append(service)

    server = Server()
    (here / "mine.py").write_text(SERVICES.replace("Servicer): pass", "Servicer): SayHello = None"))
    for servicer in await servicers_of(load(("mine",))[0]):
        register(server, servicer)
    assert server.seen[-1] == "Mapped"
    assert "hello.HelloService" in server.seen
