"""`@workflow`: a coroutine function and what was said about it."""

import inspect
import typing
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, overload

from engine import names
from engine.model import Duration, RetryPolicy, seconds

InputT = TypeVar("InputT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True, eq=False)
class Workflow(Generic[InputT, ResultT]):
    """A workflow: its name on the wire, its function, and how its runs are kept. Not callable outside a run.

    `retention`, `timeout` and `total_timeout` are seconds; None stands for the processor's setting, or no limit.
    """

    name: str
    function: Callable[..., Coroutine[Any, Any, ResultT]]
    takes_input: bool
    input_required: bool = True
    retention: float | None = None
    keyed: bool = False
    retry: RetryPolicy | None = None
    timeout: float | None = None
    total_timeout: float | None = None

    @property
    def input_type(self) -> Any:
        """The annotation of the input, Any where there is none."""
        return _hints(self.function)[0]

    @property
    def result_type(self) -> Any:
        """The annotation of the result, Any where there is none."""
        return _hints(self.function)[1]

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        """Always raises TypeError: what calls it would not be durable."""
        raise TypeError(
            f"workflow {self.name!r} is not called: start it with client.start or client.invoke, "
            "in a workflow with ctx.workflow"
        )


_cache: dict[Callable[..., Any], tuple[Any, Any]] = {}


def _hints(function: Callable[..., Any]) -> tuple[Any, Any]:
    if function not in _cache:
        hints = typing.get_type_hints(function)
        parameters = list(inspect.signature(function).parameters)
        input_hint = hints.get(parameters[1], Any) if len(parameters) > 1 else Any
        _cache[function] = (input_hint, hints.get("return", Any))
    return _cache[function]


@overload
def workflow(function: Callable[[Any], Coroutine[Any, Any, ResultT]], /) -> Workflow[None, ResultT]: ...


@overload
def workflow(function: Callable[[Any, InputT], Coroutine[Any, Any, ResultT]], /) -> Workflow[InputT, ResultT]: ...


@overload
def workflow(
    *, name: str | None = None, retention: Duration | None = None, retry: RetryPolicy | None = None
) -> "_Decorator": ...


def workflow(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    retention: Duration | None = None,
    retry: RetryPolicy | None = None,
) -> Any:
    """Make an `async def f(ctx)` or `async def f(ctx, input)` a workflow.

    `name` is the function's unless given. `retention` is how long a final run is kept (seconds or timedelta).

    Raises InvalidNameError for a name that no subject may bear, TypeError for what is no such function.
    """

    def decorate(function: Callable[..., Any]) -> Workflow[Any, Any]:
        if not inspect.iscoroutinefunction(function):
            raise TypeError(f"a workflow is an async def function, not {function!r}")
        parameters = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
        required = [p for p in parameters if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
        if not parameters or len(required) > 2 or any(p.kind is p.KEYWORD_ONLY for p in required):
            raise TypeError(f"workflow {function.__qualname__} must take (ctx) or (ctx, input)")
        return Workflow(
            name=names.check_token("workflow name", name or function.__name__),
            function=function,
            takes_input=len(parameters) > 1,
            input_required=len(required) > 1,
            retention=None if retention is None else seconds(retention),
            retry=retry,
        )

    return decorate if function is None else decorate(function)


class _Decorator(Protocol):
    """What `@workflow(…)` with options is: typed as `@workflow` is."""

    @overload
    def __call__(self, function: Callable[[Any], Coroutine[Any, Any, ResultT]], /) -> Workflow[None, ResultT]: ...
    @overload
    def __call__(
        self, function: Callable[[Any, InputT], Coroutine[Any, Any, ResultT]], /
    ) -> Workflow[InputT, ResultT]: ...
