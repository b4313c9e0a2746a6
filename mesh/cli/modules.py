"""MODULE and MODULE:attribute on the command line: what is imported, from where, and what is looked for in it."""

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType

import click

from mesh.cli.output import CommandError, ExitCode

PACKAGES = ("mesh", "engine")


@dataclass(frozen=True, slots=True)
class Target:
    """One MODULE or MODULE:attribute after import."""

    text: str
    module: ModuleType
    attribute: str
    """"" for the whole module."""

    def named(self) -> object:
        """The attribute (`a.b` reaches into a class). Raises CommandError, exit 2, when there is none."""
        found: object = self.module
        for part in self.attribute.split("."):
            try:
                found = getattr(found, part)
            except AttributeError:
                raise CommandError(
                    f"{self.text}: {self.module.__name__} has no attribute {self.attribute!r}",
                    ExitCode.USAGE,
                    code="INVALID_ARGUMENT",
                ) from None
        return found

    def public(self) -> Iterator[tuple[str, object]]:
        """All attributes without a leading underscore, in the order in which the module made them."""
        yield from ((name, value) for name, value in list(vars(self.module).items()) if not name.startswith("_"))


def load(texts: tuple[str, ...]) -> list[Target]:
    """Import every MODULE, looking in the working directory first.

    `mesh` and `engine` are imported before that: a folder of the same name in the working directory cannot stand in for
    them; it is named on stderr. Raises CommandError, exit 2, for a module that does not exist or fails to import, after
    printing the traceback of its own frames.
    """
    for package in PACKAGES:
        _import_if_installed(package)
    _warn_of_shadows(Path.cwd())
    _look_here_first(str(Path.cwd()))
    return [_load_one(text) for text in texts]


def _load_one(text: str) -> Target:
    name, colon, attribute = text.partition(":")
    if not name or (colon and not attribute) or not all(part.isidentifier() for part in name.split(".")):
        hint = f"; did you mean {_as_module(text)}?" if text.endswith(".py") or "/" in text else ""
        raise click.UsageError(f"{text!r} is not a module: expected MODULE or MODULE:ATTRIBUTE{hint}")
    try:
        return Target(text, importlib.import_module(name), attribute)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise _not_there(name, error.name) from error
        raise _failed(name, error) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's module: it may raise anything, SystemExit too
        raise _failed(name, error) from error


def _import_if_installed(package: str) -> None:
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise


def _warn_of_shadows(directory: Path) -> None:
    """Name what lies in the working directory under one of our names and is not ours."""
    for package in PACKAGES:
        ours = getattr(sys.modules.get(package), "__file__", None)
        for there in (directory / package, directory / f"{package}.py"):
            if (
                there.exists()
                and ours is not None
                and there.resolve() not in (Path(ours).resolve(), Path(ours).resolve().parent)
            ):
                click.echo(
                    f"Warning: {there} has the name of the package {package} and is not imported; rename it", err=True
                )


def _look_here_first(directory: str) -> None:
    if sys.path[:1] != [directory]:
        sys.path.insert(0, directory)
    importlib.invalidate_caches()


def _as_module(text: str) -> str:
    path, colon, attribute = text.partition(":")
    return path.removesuffix(".py").strip("./").replace("/", ".") + colon + attribute


def _not_there(name: str, missing: str) -> CommandError:
    where = f"; the package {missing} of nats-mesh comes first" if missing.partition(".")[0] in PACKAGES else ""
    return CommandError(
        f"no module {missing!r}, asked for {name!r}: looked in {Path.cwd()} and in Python's path{where}",
        ExitCode.USAGE,
        code="NOT_FOUND",
    )


def _failed(name: str, error: BaseException) -> CommandError:
    traceback.print_exception(type(error), error, _own_frames(error.__traceback__), file=sys.stderr)
    return CommandError(f"the module {name!r} cannot be imported", ExitCode.USAGE, code="INVALID_ARGUMENT")


def _own_frames(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame of the user's code on: ours and importlib's say nothing to them."""
    skipped = (__file__, importlib.__file__)
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file not in skipped and not file.startswith("<frozen importlib"):
            return trace
        trace = trace.tb_next
    return None


async def called(value: object, text: str) -> object:
    """What MODULE:ATTRIBUTE stands for: a class or a function is called, its result awaited if need be.

    Raises CommandError, exit 2, when it needs arguments.
    """
    if not inspect.isclass(value) and not inspect.isroutine(value):
        return value
    if not _needs_nothing(value):
        raise CommandError(f"{text} needs arguments: give a function without any that makes it", ExitCode.USAGE)
    result = value()
    return await result if inspect.isawaitable(result) else result


def _needs_nothing(function: Callable[..., object]) -> bool:
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    except ValueError:  # no signature, as of some built-in types
        return True
    return True
