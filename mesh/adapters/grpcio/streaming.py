"""Servicers' methods with streams, of generated code, as the server runs them."""

import asyncio
import concurrent.futures
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import grpc
import grpc.aio

from mesh.adapters.grpcio.context import SyncServicerContext
from mesh.method import Method
from mesh.server import ServerStream

Code = grpc.StatusCode


def serve(behavior: Callable[[Any, Any], Any], method: Method) -> Callable[[ServerStream], Coroutine[Any, Any, None]]:
    """A coroutine or async generator function of grpc.aio; it may use `context.read` and `write` instead."""

    async def run(call: ServerStream) -> None:
        argument = _requests(call) if method.client_streaming else await call.only_request()
        result = behavior(argument, call)
        if inspect.isasyncgen(result):
            await _send_all(result, call)
            return
        response = await result
        if not method.server_streaming and not call.is_answered and call.code() in (None, Code.OK):
            await call.respond(response)

    return run


async def _requests(call: ServerStream) -> AsyncIterator[Any]:
    while (request := await call.next_request()) is not None:
        yield request


async def _send_all(responses: Any, call: ServerStream) -> None:
    try:
        async for response in responses:
            await call.respond(response)
    finally:
        await responses.aclose()


def serve_in_thread(behavior: Callable[[Any, Any], Any], method: Method) -> Callable[[ServerStream], None]:
    """A plain function, or one that yields or returns an iterator of responses; run in a thread."""

    def run(call: ServerStream) -> None:
        loop = call.endpoint.host.loop
        context = SyncServicerContext(call)
        argument = _SyncRequests(call) if method.client_streaming else _wait(loop, call.only_request())
        result = behavior(argument, context)
        if method.server_streaming:
            for response in result:
                _wait(loop, call.respond(response))
        elif not call.is_answered and call.code() in (None, Code.OK):
            _wait(loop, call.respond(result))

    return run


class _SyncRequests:
    """The requests of a call, for a thread. Raises grpc.RpcError where the call was cut off."""

    def __init__(self, call: ServerStream) -> None:
        self._call = call

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        request = _wait(self._call.endpoint.host.loop, self._call.next_request())
        if request is None:
            raise StopIteration
        return request


def _wait(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any]) -> Any:
    """Run it on the loop and wait for it, in a thread."""
    try:
        return asyncio.run_coroutine_threadsafe(work, loop).result()
    except (concurrent.futures.CancelledError, asyncio.CancelledError):
        raise grpc.RpcError("the call was cancelled") from None
