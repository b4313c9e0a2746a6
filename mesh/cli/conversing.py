"""`mesh call` on methods with streams: one JSON document a request, one a line for each response."""

import asyncio
import io
import json
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from mesh.cli import output


def documents(text: str) -> Iterator[str]:
    """The JSON documents that stand in a text one after another. Raises CommandError where one is none."""
    decoder = json.JSONDecoder()
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        try:
            end = decoder.raw_decode(text, at)[1]
        except ValueError as error:
            raise _not_a_request(str(error)) from error
        yield text[at:end]
        at = end


async def lines_of_stdin() -> AsyncIterator[str]:
    """The lines of stdin that are not empty, each as soon as it is there.

    They are read in a thread that nobody waits for: a call that ends does not need another line to be typed.
    """
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str] = asyncio.Queue()
    stream = _own_stdin()

    def read() -> None:
        try:
            for line in stream:
                loop.call_soon_threadsafe(lines.put_nowait, line)
            loop.call_soon_threadsafe(lines.put_nowait, "")
        except RuntimeError:  # the loop is closed: the call is over
            return

    threading.Thread(target=read, name="mesh-stdin", daemon=True).start()
    while line := await lines.get():
        if line.strip():
            yield line


def _own_stdin() -> Any:
    """Another reader of the same input: one that is read when Python ends must not be Python's own."""
    try:
        return os.fdopen(os.dup(sys.stdin.fileno()), encoding="utf-8", errors="replace")
    except (io.UnsupportedOperation, OSError):
        return sys.stdin


def parse(method: MethodDescriptor, text: str) -> Message:
    """A request of a method. Raises CommandError for JSON that is none of its type."""
    message = message_factory.GetMessageClass(method.input_type)()
    try:
        json_format.Parse(text, message, descriptor_pool=method.containing_service.file.pool)
    except json_format.ParseError as error:
        raise _not_a_request(str(error), method.input_type.full_name) from error
    return message


def _not_a_request(text: str, kind: str = "JSON document") -> output.CommandError:
    return output.CommandError(f"the request is not a {kind}: {text}", output.ExitCode.USAGE, code="INVALID_ARGUMENT")


class _Requests:
    """Messages of documents; remembers what was wrong with one, since a call only says that it was cancelled."""

    def __init__(self, method: MethodDescriptor, texts: AsyncIterator[str]) -> None:
        self._method = method
        self._texts = texts
        self.error: output.CommandError | None = None

    async def __aiter__(self) -> AsyncIterator[Message]:
        try:
            async for text in self._texts:
                yield parse(self._method, text)
        except output.CommandError as error:
            self.error = error
            raise


async def converse(
    channel: Any, method: MethodDescriptor, texts: AsyncIterator[str], show: Callable[[Message], None], **options: Any
) -> None:
    """Call a method whose requests are a stream; `show` gets each response. Raises RpcError, CommandError."""
    kind = channel.stream_stream if method.server_streaming else channel.stream_unary
    requests = _Requests(method, texts)
    call = kind(path(method), **codecs(method))(requests, **options)
    try:
        if method.server_streaming:
            async for response in call:
                show(response)
        else:
            show(await call)
    except asyncio.CancelledError:
        if requests.error is not None:
            raise requests.error from None
        raise


def path(method: MethodDescriptor) -> str:
    """As gRPC writes it."""
    return f"/{method.containing_service.full_name}/{method.name}"


def codecs(method: MethodDescriptor) -> dict[str, Any]:
    """The arguments that make a channel's method speak a method's types."""
    request = message_factory.GetMessageClass(method.input_type)
    return {
        "request_serializer": request.SerializeToString,
        "response_deserializer": message_factory.GetMessageClass(method.output_type).FromString,
    }
