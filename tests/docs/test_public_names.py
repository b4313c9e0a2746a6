"""`__all__` is honest, and every error that users can meet is explained."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

import engine
import engine.errors
import mesh
import mesh.errors

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize("package", [mesh, engine], ids=lambda m: m.__name__)
def test_all_lists_exactly_what_the_package_offers(package: ModuleType) -> None:
    own = {
        name
        for name, value in vars(package).items()
        if not name.startswith("_") and not (inspect.ismodule(value) and value.__name__.startswith(package.__name__))
    }
    own -= {"annotations"}
    assert set(package.__all__) - {"__version__"} == own
    assert list(package.__all__) == sorted(package.__all__), "sorted, so that a diff shows what is new"


@pytest.mark.parametrize("package", ["mesh", "engine"])
def test_package_is_typed_and_its_init_has_no_code(package: str) -> None:
    folder = ROOT / package
    assert (folder / "py.typed").exists()
    for node in ast.parse((folder / "__init__.py").read_text()).body:
        assert isinstance(node, ast.Import | ast.ImportFrom | ast.Assign | ast.Expr), ast.unparse(node)


@pytest.mark.parametrize("module", [mesh.errors, engine.errors], ids=lambda m: m.__name__)
def test_every_error_is_explained_in_the_documents(module: ModuleType) -> None:
    text = (ROOT / "docs" / "errors.md").read_text()
    errors = [
        name
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, BaseException) and value.__module__ == module.__name__
    ]
    assert errors
    assert [name for name in errors if f"`{name}`" not in text] == []


def test_errors_in_the_documents_exist() -> None:
    text = (ROOT / "docs" / "errors.md").read_text()
    known = set(vars(mesh.errors)) | set(vars(engine.errors)) | set(dir(importlib.import_module("builtins")))
    assert set(re.findall(r"`([A-Z]\w+Error)`", text)) - known == set()


def test_the_folder_nats_does_not_hide_nats_py() -> None:
    folder = ROOT / "nats"
    assert list(folder.rglob("*.py")) == []
    taken = {"aio", "js", "micro", "client", "server", "jetstream"}
    assert taken.isdisjoint(p.name for p in folder.iterdir())
    assert importlib.import_module("nats.aio.client").__file__ is not None
