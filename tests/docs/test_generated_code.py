"""Generated code fits what pyproject.toml admits, and lies once where the sources say."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
MESSAGES = sorted([*ROOT.glob("protos/*_pb2.py"), *ROOT.glob("engine/*_pb2.py")])
STUBS = sorted(ROOT.glob("protos/*_pb2_grpc.py"))


def declared() -> dict[str, str]:
    """The runtime dependencies of pyproject.toml by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = (re.match(r"([\w-]+)(.*)", line) for line in project["dependencies"])
    return {match[1]: match[2] for match in found if match}


def test_there_is_generated_code() -> None:
    assert {p.name for p in MESSAGES} >= {"hello_pb2.py", "orders_pb2.py", "durable_pb2.py"}
    assert len(STUBS) == 4


@pytest.mark.parametrize("path", MESSAGES, ids=lambda p: p.name)
def test_messages_are_of_the_lowest_protobuf_that_is_admitted(path: Path) -> None:
    version = re.search(r"^# Protobuf Python Version: (\S+)$", path.read_text(), re.MULTILINE)
    assert version is not None
    # The runtime takes generated code of its own major version and of the one before.
    below = int(version[1].split(".")[0]) + 2
    assert declared()["protobuf"] == f">={version[1]},<{below}"
    assert path.with_suffix(".pyi").exists()


@pytest.mark.parametrize("path", STUBS, ids=lambda p: p.name)
def test_stubs_are_of_the_lowest_grpcio_that_is_admitted(path: Path) -> None:
    version = re.search(r"^GRPC_GENERATED_VERSION = '(.+)'$", path.read_text(), re.MULTILINE)
    assert version is not None
    assert declared()["grpcio"] == f">={version[1]}"
    assert path.with_suffix(".pyi").exists()


def test_the_engine_installs_its_own_protocol() -> None:
    assert (ROOT / "engine/durable.proto").read_bytes() == (ROOT / "protos/durable.proto").read_bytes()


def test_only_generated_code_asks_for_one_generator() -> None:
    pins = re.findall(r"^[\w-]+==[\d.]+$", (ROOT / "protos/generator.txt").read_text(), re.MULTILINE)
    assert len(pins) == 2


def test_runtime_dependencies_are_few_and_have_floors() -> None:
    assert set(declared()) == {"nats-py", "protobuf", "grpcio", "msgspec", "click", "uvloop"}
    for name, specifier in declared().items():
        assert specifier.startswith(">="), name
        assert "<" not in specifier or name == "protobuf", name
    assert requires("nats-mesh"), "install it first: make install"
