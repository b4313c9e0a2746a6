"""Generated servicers on `Server`, unchanged."""

import asyncio
import contextvars
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, NoReturn

import grpc
import grpc.aio

from mesh import codec, subjects
from mesh.adapters.grpcio import streaming
from mesh.adapters.grpcio.context import ServicerContext, StreamServicerContext, SyncServicerContext
from mesh.adapters.grpcio.limits import UNLIMITED, message_limits
from mesh.method import Method
from mesh.server import DEFAULT_MAX_CONCURRENT, Handler, Host, HostedService, ServerCall, ServiceDefinition

MAX_THREADS = 64
"""Of one server, for servicers of plain functions; a thread is made when all others are busy."""


class Server(grpc.aio.Server):
    """Hosts generated servicers: `add_XServicer_to_server(servicer, server)`, `await server.start()`.

    `maximum_concurrent_rpcs` bounds calls of all its services; past it a call is RESOURCE_EXHAUSTED
    at once. `cluster` makes its services reachable as `<cluster>.<prefix>.…` too. `options` as in gRPC:
    the message limits. `service_version` is for servicers without a `version` of their own.
    """

    def __init__(
        self,
        mesh: Any,
        *,
        maximum_concurrent_rpcs: int | None = DEFAULT_MAX_CONCURRENT,
        interceptors: Sequence[Any] = (),
        options: Sequence[tuple[str, Any]] = (),
        keepalive: float = 10.0,
        cluster: str | None = None,
        prefix: str = subjects.DEFAULT_PREFIX,
        queue_group: str = subjects.DEFAULT_QUEUE_GROUP,
        service_version: str = "",
        migration_thread_pool: Executor | None = None,
    ) -> None:
        if interceptors:
            raise NotImplementedError("server interceptors are not there yet")
        send, receive = message_limits(options)
        self._generic: list[Any] = []
        self._pool = migration_thread_pool
        self._host = Host(
            mesh,
            mesh.connection,
            prefix=prefix,
            queue_group=queue_group,
            cluster=cluster,
            max_concurrent=UNLIMITED if maximum_concurrent_rpcs is None else maximum_concurrent_rpcs,
            max_send_bytes=send,
            max_receive_bytes=receive,
            service_version=service_version,
            keepalive=keepalive,
        )

    @property
    def services(self) -> list[HostedService]:
        """What is served: each with `name`, `id` and `service`, its full name."""
        return self._host.services

    def add(self, servicer: Any) -> None:
        """Serve a grpclib or betterproto object: anything with `__mapping__()`.

        Raises TypeError for others; generated grpcio servicers are added by their
        `add_XServicer_to_server`.
        """
        if not callable(getattr(servicer, "__mapping__", None)):
            raise TypeError(
                f"{type(servicer).__name__} has no __mapping__(); "
                "a grpcio servicer is added by its generated add_…Servicer_to_server(servicer, server)"
            )
        from mesh.adapters.grpclib import definitions  # noqa: PLC0415  # an optional library

        for definition in definitions(servicer):
            self._host.add(definition)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Any]) -> None:
        """What generated code calls."""
        self._host.add(self._definition(service_name, method_handlers))

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[Any]) -> None:
        """What generated code calls, too; by itself in code of grpcio before 1.65.

        Raises ValueError for a handler that does not name its service and methods.
        """
        for handler in generic_rpc_handlers:
            if not isinstance(handler, grpc.ServiceRpcHandler) or not hasattr(handler, "_method_handlers"):
                raise ValueError(f"{handler!r} does not name its service: only service handlers can be served")
            self._generic.append(handler)

    def _add_generic(self) -> None:
        """Serve what only came as generic handlers."""
        known = {hosted.service for hosted in self.services}
        for handler in self._generic:
            service = handler.service_name()
            if service not in known:
                handlers = {path.rpartition("/")[2]: method for path, method in handler._method_handlers.items()}  # noqa: SLF001
                self.add_registered_method_handlers(service, handlers)
                known.add(service)

    def _definition(self, service: str, method_handlers: Mapping[str, Any]) -> ServiceDefinition:
        described = codec.find_service(service)
        methods = {} if described is None else dict(described.methods_by_name)
        servicer = _servicer(method_handlers)
        return ServiceDefinition(
            service,
            tuple(
                _handler(service, name, handler, methods.get(name), self._in_thread, self._stream_in_thread)
                for name, handler in method_handlers.items()
            ),
            version=str(getattr(servicer, "version", "") or ""),
            description=describe(servicer),
            descriptors=None if described is None else codec.descriptor_set(described),
        )

    async def _in_thread(self, function: Callable[[Any, Any], Any], request: Any, call: ServerCall) -> Any:
        response = await self._run_in_thread(call, function, request, SyncServicerContext(call))
        return await response if inspect.isawaitable(response) else response

    async def _run_in_thread(self, call: ServerCall, function: Callable[..., Any], *arguments: Any) -> Any:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="mesh-servicer")
        work = functools.partial(contextvars.copy_context().run, function, *arguments)
        return await call.endpoint.host.loop.run_in_executor(self._pool, work)

    async def _stream_in_thread(self, serve: Callable[[Any], None], call: ServerCall) -> None:
        await self._run_in_thread(call, serve, call)

    async def start(self) -> None:
        """Return when the NATS server has confirmed every subscription.

        Raises PermissionDeniedError where it does not allow one, TimeoutError, NotConnectedError.
        """
        self._add_generic()
        await self._host.start()

    async def stop(self, grace: float | None) -> None:
        """Drain: take no new request, finish what was delivered, cancel after `grace` seconds (None: at once)."""
        await self._host.stop(grace)
        if isinstance(self._pool, ThreadPoolExecutor):
            self._pool.shutdown(wait=False)

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        """Wait until it is stopped or its connection is closed for good. False after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._host.stopped.wait()
        except TimeoutError:
            return False
        return True

    def add_insecure_port(self, address: str) -> NoReturn:
        """Raises: a mesh server has subjects, no ports."""
        raise NotImplementedError(f"a mesh server has subjects, no ports: {address} is not opened")

    def add_secure_port(self, address: str, server_credentials: Any) -> NoReturn:
        """Raises: see `add_insecure_port`."""
        self.add_insecure_port(address)


def _behavior(handler: Any) -> Callable[..., Any] | None:
    """The servicer's function of a method handler."""
    return next(
        (
            function
            for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
            if (function := getattr(handler, kind)) is not None
        ),
        None,
    )


def _servicer(method_handlers: Mapping[str, Any]) -> Any:
    """The object whose bound methods these are, None for loose functions."""
    owners = (getattr(_behavior(handler), "__self__", None) for handler in method_handlers.values())
    return next((owner for owner in owners if owner is not None), None)


def describe(servicer: Any) -> str:
    """Its `description`, else the first line of its class's own docstring, else nothing (M-B4)."""
    said = getattr(servicer, "description", None)
    if isinstance(said, str):
        return said
    text = vars(type(servicer)).get("__doc__") or ""
    return text.strip().partition("\n")[0].strip()


def _identity(data: bytes) -> bytes:
    return data


def _handler(
    service: str,
    name: str,
    handler: Any,
    described: Any,
    in_thread: Callable[..., Any],
    stream_in_thread: Callable[..., Any],
) -> Handler:
    """One method as the host serves it; `described` is its descriptor, None where there is none."""
    method = Method(
        service,
        name,
        request_type="" if described is None else described.input_type.full_name,
        response_type="" if described is None else described.output_type.full_name,
        client_streaming=bool(handler.request_streaming),
        server_streaming=bool(handler.response_streaming),
    )
    function = handler.unary_unary if method.is_unary else None
    if function is not None and not _is_async(function):
        function = functools.partial(in_thread, function)
    stream = None
    if not method.is_unary:
        behavior = _behavior(handler)
        assert behavior is not None, "a method handler has a behavior"
        if _is_async(behavior):
            stream = streaming.serve(behavior, method)
        else:
            stream = functools.partial(stream_in_thread, streaming.serve_in_thread(behavior, method))
    decode = handler.request_deserializer or _identity
    takes_messages = described is not None and handler.request_deserializer is not None
    return Handler(
        method,
        function,
        decode,
        handler.response_serializer or _identity,
        json=codec.json_of(described) if takes_messages else None,
        response_class=codec.message_class(described.output_type) if takes_messages else None,
        call_class=ServicerContext,
        stream=stream,
        stream_class=StreamServicerContext,
    )


def _is_async(function: Any) -> bool:
    called = getattr(function, "__call__", None)  # noqa: B004  # an object with an async __call__
    return any(
        kind(candidate)
        for kind in (inspect.iscoroutinefunction, inspect.isasyncgenfunction)
        for candidate in (function, called)
    )
