"""The documents are true: links resolve, what they tell people to type exists, their code imports."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENTS = sorted(p for p in ROOT.rglob("*.md") if not any(part.startswith(".") for part in p.relative_to(ROOT).parts))
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def each(documents: list[Path]) -> pytest.MarkDecorator:
    """One test a document, named as it lies in the tree."""
    return pytest.mark.parametrize("document", documents, ids=lambda p: str(p.relative_to(ROOT)))


def blocks(document: Path, *languages: str) -> Iterator[str]:
    """The fenced blocks of a document in these languages."""
    for language, text in _FENCE.findall(document.read_text()):
        if language in languages:
            yield text


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as code forges make them."""
    headings = re.findall(r"^#+ +(.+)$", _FENCE.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower().replace("`", "")).strip().replace(" ", "-") for h in headings}


def commands(document: Path) -> Iterator[list[str]]:
    """The command lines that a document tells people to type, as words."""
    for text in blocks(document, "sh", "console"):
        for line in text.splitlines():
            words = line.removeprefix("$ ").split("#")[0].split()
            if words:
                yield words


@each(DOCUMENTS)
def test_links_of_documents_lead_somewhere(document: Path) -> None:
    broken = []
    for target in _LINK.findall(_FENCE.sub("", document.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


@each(DOCUMENTS)
def test_make_targets_in_documents_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = {words[1] for words in commands(document) if words[0] == "make" and len(words) > 1 and "=" not in words[1]}
    assert asked - targets == set()


@each(DOCUMENTS)
def test_mesh_commands_in_documents_exist(document: Path) -> None:
    from mesh.cli import cli

    for words in commands(document):
        if words[0] != "mesh" or len(words) < 2:
            continue
        options = {word.split("=")[0] for word in words if word.startswith("--")}
        command = command_of(cli, words[1:])
        assert command is not None, f"no such command: {' '.join(words)}"
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert options - known - {"--help"} == set(), f"{' '.join(words)}: unknown options"


def command_of(group: object, words: list[str]):  # type: ignore[no-untyped-def]  # click's own types
    """The click command that these words call, or None."""
    import click

    assert isinstance(group, click.Command)
    if not isinstance(group, click.Group):
        return group
    context = click.Context(group)
    command = group.get_command(context, words[0]) if words else None
    return None if command is None else command_of(command, words[1:])


@each(DOCUMENTS)
def test_python_in_documents_compiles_and_its_imports_exist(document: Path) -> None:
    for text in blocks(document, "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                missing = [a.name for a in node.names if not hasattr(module, a.name)]
                for name in missing:
                    importlib.import_module(f"{node.module}.{name}")


def test_readme_is_short_and_runs_in_its_first_screen() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) < 150
    assert any("make run" in line for line in lines[:30])


def test_readme_says_what_is_not_promised() -> None:
    text = (ROOT / "README.md").read_text().lower()
    section = text.split("## not promised", 1)[1].split("\n## ", 1)[0]
    for word in ("disk", "power", "corruption", "membership", "idempotency key"):
        assert word in section, word


def test_every_make_target_is_explained() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY:(.*)$", makefile, re.MULTILINE)[0].split()) - {"lint", "types", "imports"}
    explained = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert phony == explained
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(f"make {target} " in listed for target in explained)


def test_changelog_has_an_unreleased_section_on_top() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "[Unreleased]"


def test_decisions_are_numbered_without_gaps() -> None:
    numbers = [int(p.name[:4]) for p in sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))]
    assert numbers == list(range(1, len(numbers) + 1))


def test_rules_that_code_and_tests_cite_are_written_down() -> None:
    cited: set[str] = set()
    for folder in ("mesh", "engine", "services", "examples", "bench"):
        for path in (ROOT / folder).rglob("*.py"):
            cited |= set(re.findall(r"\b(?:[EM]-[A-H]\d+|H\d{1,2})\b", path.read_text()))
    protocol, reference = ((ROOT / "docs" / name).read_text() for name in ("protocol.md", "reference.md"))
    known = set(re.findall(r"\*\*([\w-]+)\*\*", protocol + reference))
    assert cited - known == set()
