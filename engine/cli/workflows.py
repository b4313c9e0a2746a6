"""Which workflows a MODULE or MODULE:ATTRIBUTE of the command line gives."""

from collections.abc import Iterable
from typing import Any

from engine.definition import Workflow
from mesh.cli.modules import Target
from mesh.cli.output import CommandError, ExitCode


def defined_workflows(target: Target) -> list[Workflow[Any, Any]]:
    """Every workflow that the module has, imported ones too; for MODULE:ATTRIBUTE that one. May be none."""
    values = [target.named()] if target.attribute else list(vars(target.module).values())
    found: list[Workflow[Any, Any]] = []
    for value in values:
        if isinstance(value, Workflow) and value not in found:
            found.append(value)
    return found


def workflows_of(targets: Iterable[Target]) -> list[Workflow[Any, Any]]:
    """All workflows of the targets. Raises CommandError, exit 2, for a target without any, and for two of one name."""
    found: list[Workflow[Any, Any]] = []
    for target in targets:
        mine = defined_workflows(target)
        if not mine:
            raise CommandError(
                f"no workflow in {target.text}: expected an async function decorated with @workflow",
                ExitCode.USAGE,
                code="NOT_FOUND",
            )
        found += (workflow for workflow in mine if workflow not in found)
    return check_names(found)


def check_names(workflows: list[Workflow[Any, Any]]) -> list[Workflow[Any, Any]]:
    """The same workflows. Raises CommandError, exit 2, when two different ones have one name."""
    by_name: dict[str, Workflow[Any, Any]] = {}
    for workflow in workflows:
        other = by_name.setdefault(workflow.name, workflow)
        if other is not workflow:
            raise CommandError(
                f"two workflows are called {workflow.name!r}: {_where(other)} and {_where(workflow)}",
                ExitCode.USAGE,
                code="INVALID_ARGUMENT",
            )
    return workflows


def _where(workflow: Workflow[Any, Any]) -> str:
    return f"{workflow.function.__module__}.{workflow.function.__qualname__}"
