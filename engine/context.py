"""What workflow code may call. Every method that is a step says so."""

import asyncio
import inspect
import logging
import typing
import uuid
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from random import Random
from typing import Any, ParamSpec, Protocol, TypeVar, cast, overload

from engine import descriptors, journal, values
from engine.awakeable import Awakeable
from engine.errors import InvalidNameError
from engine.model import (
    CALL_POLICY,
    CALL_TIMEOUT,
    RUN_POLICY,
    Body,
    Call,
    Duration,
    Invocation,
    Kind,
    RetryPolicy,
    Step,
    seconds,
)
from engine.names import check_key, check_token
from engine.signals import Signals
from engine.state import StateAccess
from mesh import metadata as grpc_metadata
from mesh import subjects

MAX_TIMEOUT = 30 * 86_400.0
"""Seconds that an attempt may take at most; what takes longer is not a call."""

P = ParamSpec("P")
T = TypeVar("T")


class Steps(Protocol):
    """What the code's steps are issued to: the replay."""

    invocation: Invocation
    attempt: int
    now_ns: int
    is_replaying: bool

    @property
    def random(self) -> Random:
        """The run's own random numbers."""

    def issue(
        self,
        kind: str,
        name: str,
        digest: str,
        *,
        call: Call | None = None,
        body: Body | None = None,
        access: StateAccess | None = None,
    ) -> Step:
        """The next step, in order of issue."""

    def issue_awakeable(self, target: Any) -> Awakeable[Any]:
        """A value that somebody outside brings."""

    def signals(self, name: str, target: Any) -> Signals[Any]:
        """The signals of a name."""

    def uuid4(self) -> uuid.UUID:
        """A UUID from the run's own randomness."""


class Context:
    """A workflow's view of its run: durable calls, side effects, time and identity."""

    def __init__(self, steps: Steps, loop: asyncio.AbstractEventLoop) -> None:
        self._steps = steps
        self._loop = loop

    # --- steps

    @property
    def channel(self) -> "DurableChannel":
        """A `grpc.aio.Channel`: a stub on it makes durable calls."""
        from engine.channel import DurableChannel  # noqa: PLC0415  # the channel stands on this room

        return DurableChannel(self)

    async def call(
        self,
        service: str,
        method: str,
        request: Any,
        response_type: type[T] | None = None,
        *,
        timeout: Duration | None = None,
        retry: RetryPolicy | None = None,
        metadata: Sequence[tuple[str, str | bytes]] | None = None,
    ) -> T:
        """Call `method` of a service and have the answer recorded; a step.

        `service` is a full proto name, or a short one where the request's own file or package defines it. The response
        type is the descriptor's unless given. `timeout` is per attempt (default 60 s), seconds or timedelta.

        `request` is a message, a dict in ProtoJSON where the method is known by its descriptor, or encoded bytes.

        Raises CallFailedError when the call failed terminally or its attempts are used up, InvalidNameError for a name
        that no descriptor explains, EncodeError for a request that is none.
        """
        method_of = descriptors.find_method(service, method, request, response_type)
        step = self.issue_call(
            method_of.service,
            method,
            method_of.encode(request),
            method_of.decode,
            response_type=method_of.response_type,
            timeout=timeout,
            retry=retry,
            metadata=metadata,
        )
        return cast(T, await step.future)

    def issue_call(
        self,
        service: str,
        method: str,
        request: values.Payload,
        decode: Callable[[bytes], Any],
        *,
        response_type: str = "",
        cluster: str | None = None,
        timeout: Duration | None = None,
        retry: RetryPolicy | None = None,
        metadata: Sequence[tuple[str, str | bytes]] | None = None,
    ) -> Step:
        """Issue a durable call without awaiting it: what stubs stand on.

        Raises InvalidNameError, and ValueError for a time-out or metadata that no request can carry.
        """
        subject, name = _target(service, method, cluster)
        limit = CALL_TIMEOUT if timeout is None else seconds(timeout)
        if not 0 < limit < MAX_TIMEOUT:
            raise ValueError(f"timeout of {limit!r} s: give seconds above 0 and below {MAX_TIMEOUT:g}, or None")
        call = Call(
            subject,
            request.data,
            request.type,
            response_type,
            decode,
            limit,
            _policy(retry, CALL_POLICY),
            tuple(grpc_metadata.encode(metadata)) if metadata else (),
        )
        return self._steps.issue(Kind.CALL, name, journal.digest(Kind.CALL, subject.encode(), request.data), call=call)

    @overload
    async def run(self, name: str, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T: ...
    @overload
    async def run(self, name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...
    @overload
    async def run(  # type: ignore[overload-cannot-match]  # it is matched: by calls that have retry= where P has not
        self, name: str, function: Callable[..., Awaitable[T]], *args: Any, retry: RetryPolicy | None, **kwargs: Any
    ) -> T: ...
    @overload
    async def run(  # type: ignore[overload-cannot-match]
        self, name: str, function: Callable[..., T], *args: Any, retry: RetryPolicy | None, **kwargs: Any
    ) -> T: ...
    async def run(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Execute a side effect and record what it returns; a step. An `async def` runs in the processor's loop, a
        `def` in a thread.

        It runs again only if its processor died before the result was stored. One attempt, unless
        `retry=RetryPolicy(...)` is given, which is not passed on to the function.

        Raises StepFailedError, live and in replay alike, when it raised; TypeError for what is no function.
        """
        policy = _policy(kwargs.pop("retry", None), RUN_POLICY)
        if not isinstance(name, str) or not name:  # type: ignore[redundant-expr]  # ctx.run(function) is a common slip
            raise InvalidNameError("step name", name, "a text that is not empty")
        if not callable(function):
            if inspect.iscoroutine(function):  # type: ignore[unreachable]
                function.close()  # else Python warns that nobody awaited it
            raise TypeError(f"ctx.run({name!r}, …) takes a function and its arguments, not what it returns")
        body = Body(function, args, kwargs, policy, _return_type(function))
        step = self._steps.issue(Kind.RUN, name, journal.digest(Kind.RUN, name.encode()), body=body)
        return await step.future

    async def sleep(self, delay: Duration) -> None:
        """`asyncio.sleep`, which is durable here; a step."""
        await asyncio.sleep(seconds(delay))

    # --- state, which belongs to the run

    async def get(self, key: str, type_: Any = Any, default: Any = None) -> Any:
        """The value of `key` as `type_`, or `default` where none was set; a step. A stored None is a value.

        Raises InvalidNameError for a key that is none, StepFailedError where the value is not of the type.
        """
        return await self._access(StateAccess(Kind.GET, check_key("state key", key), target=type_, default=default))

    async def set(self, key: str, value: Any) -> None:
        """Set `key`; a step. Raises InvalidNameError, and EncodeError for a value that has no stored form."""
        payload = values.encode(value, f"the state {key!r}")
        await self._access(StateAccess(Kind.SET, check_key("state key", key), payload))

    async def clear(self, key: str | None = None) -> None:
        """Remove `key`, or everything; a step."""
        await self._access(StateAccess(Kind.CLEAR, "" if key is None else check_key("state key", key)))

    async def keys(self) -> list[str]:
        """The names that have a value, sorted; a step."""
        return cast(list[str], await self._access(StateAccess(Kind.KEYS)))

    async def _access(self, access: StateAccess) -> Any:
        digest = journal.digest(access.kind, access.key.encode(), access.value.data)
        return await self._steps.issue(access.kind, access.key, digest, access=access).future

    @overload
    def awakeable(self, type_: type[T]) -> Awakeable[T]: ...
    @overload
    def awakeable(self, type_: Any = Any) -> Awakeable[Any]: ...
    def awakeable(self, type_: Any = Any) -> Awakeable[Any]:
        """A value that somebody outside brings, of a type that msgspec knows or a message; a step.

        Hand out its `id`, then await it. It can be resolved as soon as a later step is recorded or it is awaited; the
        value waits. A run that only waits for it is in no process's memory.
        """
        return self._steps.issue_awakeable(type_)

    @overload
    def signals(self, name: str, type_: type[T]) -> Signals[T]: ...
    @overload
    def signals(self, name: str, type_: Any = Any) -> Signals[Any]: ...
    def signals(self, name: str, type_: Any = Any) -> Signals[Any]:
        """The signals that `client.signal(id, name, value)` sends to this run: `await q.get()`, `async for v in q`.

        They come in order of storage, those sent before the first access too, and each is read once. A run that only
        waits for them is in no process's memory. What is unread when the run ends is dropped. Raises InvalidNameError.
        """
        return self._steps.signals(check_token("signal name", name), type_)

    # --- what is the same in every replay

    @property
    def invocation_id(self) -> str:
        """The id of this run's invocation."""
        return self._steps.invocation.id

    @property
    def partition_key(self) -> str | None:
        """The key it was started with."""
        return self._steps.invocation.partition_key or None

    def now(self) -> datetime:
        """Server time of the newest input: aware, UTC, never going back."""
        return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=self._steps.now_ns // 1000)

    def random(self) -> Random:
        """The run's own random numbers, seeded by invocation id and incarnation."""
        return self._steps.random

    def uuid4(self) -> uuid.UUID:
        """A UUID from the run's own random numbers."""
        return self._steps.uuid4()

    # --- what is not

    @property
    def attempt(self) -> int:
        """How often the run was taken up after a processor was lost, from 1. For logs: no code may branch on it."""
        return self._steps.attempt

    @property
    def is_replaying(self) -> bool:
        """Whether the code now repeats what happened before. For logs and metrics, likewise."""
        return self._steps.is_replaying

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """Logs with the invocation id, and not again what was logged before a replay."""
        return _Logger(logging.getLogger(f"workflow.{self._steps.invocation.workflow}"), self._steps)

    def issue(self, kind: str, name: str, digest: str, *, body: Body | None = None) -> Step:
        """Issue a step: for the rooms of the engine."""
        return self._steps.issue(kind, name, digest, body=body)


def _policy(given: Any, default: RetryPolicy) -> RetryPolicy:
    if given is not None and not isinstance(given, RetryPolicy):
        raise TypeError(f"retry={given!r}: give an engine.RetryPolicy")
    return given or default


class _Logger(logging.LoggerAdapter[logging.Logger]):
    def __init__(self, logger: logging.Logger, steps: Steps) -> None:
        super().__init__(logger, {"invocation_id": steps.invocation.id})
        self._steps = steps

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802  # logging's name
        return not self._steps.is_replaying and super().isEnabledFor(level)

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        kwargs["extra"] = {**(kwargs.get("extra") or {}), **(self.extra or {})}
        return f"[{self._steps.invocation.id}] {msg}", kwargs


@lru_cache(maxsize=1024)
def _target(service: str, method: str, cluster: str | None) -> tuple[str, str]:
    """Subject and step name of a method. Raises InvalidNameError."""
    return subjects.method_subject(service, method, cluster=cluster), f"{subjects.short_name(service)}.{method}"


def _return_type(function: Callable[..., Any]) -> Any:
    """What a function's result decodes to; Any where it does not say."""
    target: Any = function
    if not inspect.isroutine(target):
        target = getattr(function, "func", None) or getattr(function, "__call__", function)  # noqa: B004  # its hints
    try:
        return typing.get_type_hints(target).get("return", Any)
    except Exception:  # noqa: BLE001  # hints are the user's code; without them a result decodes to builtins
        return Any


if typing.TYPE_CHECKING:
    from engine.channel import DurableChannel
