"""The client: start invocations, wait for their results, look at them."""
# ruff: noqa: A002  # `id` and `input` are the names that users type

import asyncio
import os
from collections.abc import Generator, Sequence
from typing import Any, TypeVar, overload

import mesh
from engine import values
from engine.assets import Assets
from engine.client.description import Description, completed_by, lacks_something, of_queued, of_record
from engine.client.handle import Handle
from engine.client.lookup import Lookup
from engine.client.requests import Requests
from engine.client.submission import Submission, Submitter
from engine.client.waiting import Waiting
from engine.controls import rejection_headers
from engine.definition import Workflow
from engine.errors import UnavailableError, WorkflowCancelledError, WorkflowFailedError
from engine.history import steps_of
from engine.journal import TYPE_HEADER
from engine.model import Ask, Duration, Status, seconds
from engine.names import check_key, check_token, new_invocation_id
from engine.records import JournalEntry, Outcome, Record
from engine.store import Store
from mesh.connection import Connection
from mesh.errors import NoRespondersError, NotConnectedError

SUBMIT_TIMEOUT = 30.0
"""Seconds for a start to be accepted: longer than a leader change and a server's restart."""
LOOK_TIMEOUT = 10.0
"""Seconds for a look at what is stored."""
PRESENCE_TIMEOUT = 1.0
"""Seconds in which a processor answers that it is there."""
NAMESPACE_VARIABLE = "MESH_NAMESPACE"

InputT = TypeVar("InputT")
ResultT = TypeVar("ResultT")


class Client:
    """Starts workflows and follows them, over one connection. Needs no processor to be there.

        async with engine.Client.connect("nats://127.0.0.1:4222") as client:
            message = await client.invoke(hello_workflow, "World")

    The first operation finds the namespace's streams, or creates them where that is allowed: each may raise
    StoreError (missing, foreign, too old a server) beside what it says.
    """

    def __init__(self, m: "mesh.Mesh | Connection", *, namespace: str = "default") -> None:
        """Work over `m`, which stays the caller's to close. Raises InvalidNameError for the namespace."""
        self.namespace = check_token("namespace", namespace)
        self._connection = m if isinstance(m, Connection) else m.connection
        self._parts: _Parts | None = None
        self._opening = asyncio.Lock()

    @staticmethod
    def connect(
        url: str | Sequence[str] | None = None, *, namespace: str | None = None, **options: Any
    ) -> "ConnectingClient":
        """A client with a connection of its own: `async with` it, or await it and `close()` it.

        Takes what `mesh.connect` takes. `namespace` is else the environment's MESH_NAMESPACE, else `default`. Raises
        mesh.ConfigError and InvalidNameError at once, mesh.ConnectError when it is awaited and no server takes us.
        """
        namespace = namespace or os.environ.get(NAMESPACE_VARIABLE) or "default"
        return ConnectingClient(mesh.connect(url, **options), check_token("namespace", namespace))

    async def close(self) -> None:
        """End the waiting. The connection is left as it is: `Client.connect` closes its own."""
        if self._parts is not None:
            self._parts.waiting.close()

    # --- start and wait

    @overload
    async def start(
        self, workflow: Workflow[None, ResultT], *, id: str | None = ..., partition_key: str | None = ...
    ) -> Handle[ResultT]: ...
    @overload
    async def start(
        self,
        workflow: Workflow[InputT, ResultT],
        input: InputT,
        *,
        id: str | None = ...,
        partition_key: str | None = ...,
    ) -> Handle[ResultT]: ...
    @overload
    async def start(
        self, workflow: str, input: Any = ..., *, id: str | None = ..., partition_key: str | None = ...
    ) -> Handle[Any]: ...
    async def start(
        self,
        workflow: Workflow[Any, Any] | str,
        input: Any = None,
        *,
        id: str | None = None,
        partition_key: str | None = None,
    ) -> Handle[Any]:
        """Have a workflow started, exactly once for each id as long as its result is kept. Returns when it is stored.

        The same id with the same workflow, key and input is the same invocation, also when it has ended. Without `id`
        one is drawn. A name that nobody serves yet is accepted and waits.

        Raises, with nothing started: InvalidNameError, EncodeError, PayloadTooLargeError, InvocationConflictError,
        StoreError (full, missing), mesh.PermissionDeniedError. UnavailableError: not known; the same call with its
        `invocation_id` as `id` is safe.
        """
        wanted = _submission(workflow, input, id, partition_key)
        parts = self._parts or await self._open()
        await parts.submitter.submit(wanted, asyncio.get_running_loop().time() + SUBMIT_TIMEOUT)
        return Handle(self, wanted.invocation, _result_type(workflow))

    @overload
    async def invoke(
        self,
        workflow: Workflow[None, ResultT],
        *,
        id: str | None = ...,
        partition_key: str | None = ...,
        timeout: Duration | None = ...,
    ) -> ResultT: ...
    @overload
    async def invoke(
        self,
        workflow: Workflow[InputT, ResultT],
        input: InputT,
        *,
        id: str | None = ...,
        partition_key: str | None = ...,
        timeout: Duration | None = ...,
    ) -> ResultT: ...
    @overload
    async def invoke(
        self,
        workflow: str,
        input: Any = ...,
        *,
        id: str | None = ...,
        partition_key: str | None = ...,
        timeout: Duration | None = ...,
    ) -> Any: ...
    async def invoke(
        self,
        workflow: Workflow[Any, Any] | str,
        input: Any = None,
        *,
        id: str | None = None,
        partition_key: str | None = None,
        timeout: Duration | None = None,
    ) -> Any:
        """Start a workflow and wait for its result, `timeout` seconds (or timedelta) at most in all.

        Raises as `start` and `Handle.result`.
        """
        wanted = _submission(workflow, input, id, partition_key)
        parts = self._parts or await self._open()
        loop = asyncio.get_running_loop()
        began = loop.time()
        limit = None if timeout is None else seconds(timeout)
        future = parts.waiting.begin(wanted.invocation)
        try:
            patience = SUBMIT_TIMEOUT if limit is None else min(limit, SUBMIT_TIMEOUT)
            await parts.submitter.submit(wanted, began + patience)
            if not wanted.is_fresh:
                parts.waiting.look(wanted.invocation)
            left = None if limit is None else limit - (loop.time() - began)
            outcome = await parts.waiting.outcome(wanted.invocation, future, left)
        finally:
            parts.waiting.end(wanted.invocation, future)
        return _value(wanted.invocation, outcome, _result_type(workflow))

    @overload
    def handle(self, id: str) -> Handle[Any]: ...
    @overload
    def handle(self, id: str, result_type: type[ResultT]) -> Handle[ResultT]: ...
    @overload
    def handle(self, id: str, result_type: Any) -> Handle[Any]: ...
    def handle(self, id: str, result_type: Any = Any) -> Handle[Any]:
        """An invocation by its id; asks nobody. Raises InvalidNameError.

        Without `result_type` its result is builtins, bytes, or the protobuf message if its type is imported.
        """
        return Handle(self, check_token("invocation id", id), result_type)

    async def result(self, id: str, result_type: Any = Any, *, timeout: Duration | None = None) -> Any:
        """What `Handle.result` returns and raises."""
        check_token("invocation id", id)
        parts = self._parts or await self._open()
        future = parts.waiting.begin(id)
        try:
            parts.waiting.look(id)
            outcome = await parts.waiting.outcome(id, future, None if timeout is None else seconds(timeout))
        finally:
            parts.waiting.end(id, future)
        return _value(id, outcome, result_type)

    # --- ask something of a run

    async def cancel(self, id: str) -> None:
        """Ask for the end of a run: CancelledError at its code's next await, so that compensation runs.

        Returns when the request is stored: it survives everything from then on. A run whose code has not begun is
        `cancelled` without running; of a `cancelled` one nothing is asked. Raises InvocationStateError for a run that
        has ended otherwise, InvocationNotFoundError, UnavailableError (asking again is safe), StoreError.
        """
        check_token("invocation id", id)
        parts = self._parts or await self._open()
        await parts.requests.cancel(id)

    async def pause(self, id: str) -> None:
        """Have a run begin no step any more until `resume`: what is being executed ends and is kept.

        Returns when the request is stored; pausing a paused run changes nothing. A queued run is not begun. Raises
        InvocationStateError where the run has ended, InvocationNotFoundError, UnavailableError (asking again is safe),
        StoreError.
        """
        await self._hold(id, Ask.PAUSE)

    async def resume(self, id: str) -> None:
        """Have a paused run go on; of one that is not paused nothing is asked. Otherwise as `pause`."""
        await self._hold(id, Ask.RESUME)

    async def _hold(self, id: str, kind: str) -> None:
        check_token("invocation id", id)
        parts = self._parts or await self._open()
        await parts.requests.hold(id, kind)

    async def signal(self, id: str, name: str, value: Any = None) -> None:
        """Send a run a signal, which its code reads by `ctx.signals(name)`. Returns when it is stored.

        Signals of one client that awaits each arrive in that order; a run that is queued or suspended gets them, too.
        Raises InvocationStateError where the run has ended, also where it ended before the signal was delivered;
        InvocationNotFoundError, InvalidNameError, EncodeError, PayloadTooLargeError, StoreError; UnavailableError:
        whether it is stored is not known.
        """
        check_token("invocation id", id)
        check_token("signal name", name)
        payload = values.encode(value, f"signal {name!r}")
        if value is None:
            payload = values.Payload(b"null", values.JSON)
        parts = self._parts or await self._open()
        await parts.requests.signal(id, name, payload.data, payload.type)

    async def resolve_awakeable(self, awakeable_id: str, value: Any = None) -> None:
        """Bring what a run waits for under this id (`ctx.awakeable`). Returns when it is stored.

        The first value or rejection counts. Raises AwakeableNotFoundError, AwakeableResolvedError (also where the run
        has ended), InvalidNameError, EncodeError, PayloadTooLargeError, StoreError, UnavailableError (asking again is
        safe).
        """
        payload = values.encode(value, "value of an awakeable")
        if value is None:
            payload = values.Payload(b"null", values.JSON)
        parts = self._parts or await self._open()
        await parts.requests.settle_awakeable(awakeable_id, payload.data, {TYPE_HEADER: payload.type})

    async def reject_awakeable(self, awakeable_id: str, reason: str = "rejected") -> None:
        """Have the await of an awakeable raise AwakeableRejectedError; otherwise as `resolve_awakeable`."""
        parts = self._parts or await self._open()
        await parts.requests.settle_awakeable(awakeable_id, b"", rejection_headers(reason))

    # --- look

    async def describe(self, id: str) -> Description:
        """What `Handle.describe` returns and raises."""
        check_token("invocation id", id)
        parts = self._parts or await self._open()
        found = await parts.lookup.either(id, LOOK_TIMEOUT)
        served = asyncio.ensure_future(self.is_served(found.workflow))
        try:
            if isinstance(found, Record):
                return of_record(found, await self._journal(parts, found), await served)
            steps = await self._steps(parts, id, found.command.incarnation)
            return of_queued(id, found, steps, await served)
        finally:
            served.cancel()

    async def is_served(self, workflow: str) -> bool:
        """Whether a processor that knows the workflow is connected at this moment."""
        check_token("workflow name", workflow)
        parts = self._parts or await self._open()
        try:
            await self._connection.ask(parts.assets.names.here(workflow), timeout=PRESENCE_TIMEOUT)
        except (NoRespondersError, NotConnectedError, TimeoutError):
            return False
        return True

    async def _journal(self, parts: "_Parts", record: Record) -> Sequence[JournalEntry]:
        """A run's steps: the record has them once it is final, or all that fit."""
        if record.is_final and not lacks_something(record):
            return record.journal
        steps = await self._steps(parts, record.invocation_id, record.incarnation)
        return completed_by(record, steps) if record.is_final else steps

    async def _steps(self, parts: "_Parts", id: str, incarnation: str) -> Sequence[JournalEntry]:
        if not incarnation:
            return ()
        names = parts.assets.names
        try:
            async with asyncio.timeout(LOOK_TIMEOUT):
                read = await parts.store.read_journal(names.shard(id), [names.slots(id, incarnation)])
        except TimeoutError as error:
            raise UnavailableError(f"the journal of {id!r} cannot be read within {LOOK_TIMEOUT:g} s", id) from error
        return steps_of(read.entries)

    async def _open(self) -> "_Parts":
        async with self._opening:
            if self._parts is None:
                assets = await Assets.open(self._connection, self.namespace, complete=False)
                self._parts = _Parts(self._connection, assets)
            return self._parts


class _Parts:
    """What a client consists of, once the namespace is known."""

    __slots__ = ("assets", "lookup", "requests", "store", "submitter", "waiting")

    def __init__(self, connection: Connection, assets: Assets) -> None:
        self.assets = assets
        self.lookup = Lookup(assets.api, assets.names)
        self.submitter = Submitter(connection, assets.names, self.lookup, assets.complete)
        self.waiting = Waiting(connection, assets.names)
        self.store = Store(connection, assets.names)
        self.requests = Requests(assets.api, assets.names, self.lookup, self.store)


class ConnectingClient:
    """What `Client.connect` returns: `async with` it, or await it and close what comes of that."""

    def __init__(self, connecting: Any, namespace: str) -> None:
        self._connecting = connecting
        self._namespace = namespace
        self._client: OwningClient | None = None

    async def _open(self) -> "OwningClient":
        return OwningClient(await self._connecting, namespace=self._namespace)

    def __await__(self) -> Generator[Any, None, "OwningClient"]:
        return self._open().__await__()

    async def __aenter__(self) -> "OwningClient":
        self._client = await self._open()
        return self._client

    async def __aexit__(self, *_error: object) -> None:
        if self._client is not None:
            await self._client.close()


class OwningClient(Client):
    """A client whose connection is its own: closing it closes both."""

    def __init__(self, m: mesh.Mesh, *, namespace: str) -> None:
        super().__init__(m, namespace=namespace)
        self._mesh = m

    async def close(self) -> None:
        """End the waiting and the connection."""
        await super().close()
        await self._mesh.close()


def _submission(
    workflow: Workflow[Any, Any] | str, input: Any, id: str | None, partition_key: str | None
) -> Submission:
    """What is asked for, checked before anything is sent."""
    if not isinstance(workflow, Workflow | str):
        raise TypeError(f"not a workflow, nor the name of one: {workflow!r}; is @workflow missing?")
    name = check_token("workflow name", workflow) if isinstance(workflow, str) else workflow.name
    payload = values.NOTHING if input is None else values.encode(input, f"input of {name}")
    return Submission(
        name,
        new_invocation_id() if id is None else check_token("invocation id", id),
        payload,
        "" if partition_key is None else check_key("partition key", partition_key),
        is_fresh=id is None,
    )


def _result_type(workflow: Workflow[Any, Any] | str) -> Any:
    return Any if isinstance(workflow, str) else workflow.result_type


def _value(invocation: str, outcome: Outcome, result_type: Any) -> Any:
    """The result, or what is raised in its place."""
    if outcome.status == Status.COMPLETED:
        return values.decode(outcome.result, outcome.result_type, result_type, f"result of {invocation!r}")
    if outcome.status == Status.CANCELLED:
        raise WorkflowCancelledError(invocation)
    error = outcome.error
    if error is None:
        raise WorkflowFailedError(invocation, "UnknownError", "the record has no error")
    raise WorkflowFailedError(invocation, error.type, error.message, error.code or None, error.traceback)
