"""Which objects of a module are services, and how each kind gets onto a server."""

import inspect
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Protocol

from mesh.cli.modules import Target, called
from mesh.cli.output import CommandError, ExitCode


class Server(Protocol):
    """What is needed of a `mesh.Server`."""

    def add(self, servicer: Any) -> None:
        """Host an object with `__mapping__`."""


async def servicers_of(target: Target) -> list[object]:
    """The instances that a MODULE or MODULE:ATTRIBUTE gives.

    Raises CommandError, exit 2, when there is none.
    """
    if target.attribute:
        found = await called(target.named(), target.text)
        if not _is_servicer(type(found)):
            raise CommandError(
                f"{target.text} is no service: expected a generated servicer, or an object with __mapping__",
                ExitCode.USAGE,
            )
        return [found]
    instances = await defined_servicers(target)
    if not instances:
        raise CommandError(
            f"no service in {target.text}: expected a class derived from a generated …Servicer or with __mapping__",
            ExitCode.USAGE,
            code="NOT_FOUND",
        )
    return instances


async def defined_servicers(target: Target) -> list[object]:
    """Instances in the module, and instances of its classes that it has not instantiated itself; may be none."""
    public = [value for _, value in target.public()]
    instances = [value for value in public if not inspect.isclass(value) and _is_servicer(type(value))]
    made = {type(instance) for instance in instances}
    classes = [
        value
        for value in public
        if inspect.isclass(value) and value not in made and _is_own_servicer(value, target.module)
    ]
    return instances + [await called(kind, f"{target.text}:{kind.__name__}") for kind in classes]


def _is_own_servicer(kind: type, module: ModuleType) -> bool:
    return kind.__module__ == module.__name__ and _is_servicer(kind) and not inspect.isabstract(kind)


def register(server: Server, servicer: object) -> None:
    """Put a servicer onto a server, by each generated `add_…Servicer_to_server` that belongs to it, or by `add`."""
    adders = list(_adders(type(servicer)))
    for add in adders:
        add(servicer, server)
    if not adders:
        server.add(servicer)


def _is_servicer(kind: type) -> bool:
    return callable(getattr(kind, "__mapping__", None)) or any(True for _ in _adders(kind))


def _adders(kind: type) -> Iterator[Callable[[object, Any], None]]:
    """The generated functions for the bases of a class; a generated class by itself is no service."""
    for base in kind.__mro__[1:]:
        if base.__name__.endswith("Servicer"):
            add = getattr(sys.modules.get(base.__module__), f"add_{base.__name__}_to_server", None)
            if callable(add):
                yield add
