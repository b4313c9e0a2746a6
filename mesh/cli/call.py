"""`mesh call`: call a method by name, with JSON; message types come from the service itself."""

import asyncio
import base64
import binascii
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import click
import grpc
from google.protobuf import descriptor_pool, json_format
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message import DecodeError, Message

from mesh import metadata, subjects, wire
from mesh.cli import output
from mesh.cli.asking import at_option
from mesh.cli.conversing import codecs, converse, documents, lines_of_stdin, parse, path
from mesh.cli.flags import connection_options, json_option
from mesh.cli.opening import opened
from mesh.cli.running import run
from mesh.cli.types import Duration, read_input
from mesh.client import describe_service
from mesh.codec import JSON
from mesh.discovery import Found, discover
from mesh.errors import NoRespondersError, PermissionDeniedError, RpcError
from mesh.facade import Mesh
from mesh.options import ConnectOptions

Code = grpc.StatusCode


@dataclass(frozen=True, slots=True)
class Request:
    """One call as it was typed."""

    service: str
    """Short or full."""
    method: str
    text: str | None
    """The request, or requests, in JSON; None: they are to be read from stdin."""
    metadata: tuple[tuple[str, str | bytes], ...]
    timeout: float
    cluster: str | None


@click.command("call")
@click.argument("method", metavar="SERVICE/METHOD")
@click.argument("text", metavar="[JSON]", required=False)
@click.option("-d", "--data", metavar="JSON", help="The request; @FILE reads it from a file, @- from stdin.")
@click.option(
    "-H", "--header", "header_lines", multiple=True, metavar="'KEY: VALUE'", help="Metadata; -bin keys take base64."
)
@click.option("--timeout", type=Duration(), default="5s", show_default=True, help="Deadline of the call.")
@at_option
@json_option
@connection_options()
def command(
    options: ConnectOptions,
    /,
    method: str,
    text: str | None,
    data: str | None,
    header_lines: tuple[str, ...],
    timeout: float,
    cluster: str | None,
    as_json: bool,
) -> int:
    """Call SERVICE/METHOD with a request in JSON and print the response as JSON.

    SERVICE is short or full; no .proto file is needed. A stream of requests is one JSON document after another, on
    stdin (-d @-) one a line, each sent as it comes; responses are printed one a line. The exit code of a call that
    failed is 64 + its gRPC code.
    """
    if text is not None and data is not None:
        raise click.UsageError("the request is given twice: as an argument and by -d")
    service, name = subjects.split_method(method)
    request = Request(
        service,
        name,
        None if (text or data) == "@-" else read_input(text or data or "", stdin="@-"),
        tuple(_header(line) for line in header_lines),
        timeout,
        cluster,
    )
    try:
        run(_call(options, request))
    except RpcError as error:
        return _failed(error, as_json=as_json)
    return output.ExitCode.DONE


def _header(line: str) -> tuple[str, str | bytes]:
    key, colon, value = line.partition(":")
    key, value = key.strip().lower(), value.strip()
    if not colon or not key:
        raise click.BadParameter(f"{line!r} is not 'KEY: VALUE'", param_hint="-H")
    try:
        pair = key, base64.b64decode(value, validate=True) if key.endswith("-bin") else value
        metadata.encode([pair])
    except binascii.Error:
        raise click.BadParameter(f"the value of {key} is not base64", param_hint="-H") from None
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="-H") from error
    return pair


def _failed(error: RpcError, *, as_json: bool) -> int:
    click.echo(f"{error.code().name}: {error.details() or ''}", err=True)
    if as_json:
        output.print_json(
            {
                "code": error.code().name,
                "details": error.details() or "",
                "trailing_metadata": _for_json(error.trailing_metadata()),
            }
        )
    return output.status_exit_code(error.code())


def _for_json(pairs: Any) -> dict[str, str | list[str]]:
    """Metadata for JSON: bytes as base64, a list where a key has several values."""
    found: dict[str, list[str]] = {}
    for key, value in pairs or ():
        found.setdefault(key, []).append(base64.b64encode(value).decode() if isinstance(value, bytes) else value)
    return {key: values[0] if len(values) == 1 else values for key, values in found.items()}


async def _call(options: ConnectOptions, request: Request) -> None:
    """Call, and print each response as it comes. Raises RpcError for everything that has a status."""
    async with opened(options) as m:
        try:
            service, answer = await _resolve(m, request)
            described = await _describe(m, service, request) if service else None
            if described is not None:
                await _call_described(m, described, request)
            else:
                _show(await _call_as_json(m, service, answer, request))
        except PermissionDeniedError as error:
            raise RpcError(Code.PERMISSION_DENIED, str(error)) from error
        except TimeoutError as error:
            raise RpcError(Code.DEADLINE_EXCEEDED, "the service did not answer in time") from error


async def _resolve(m: Mesh, request: Request) -> tuple[str, Found | None]:
    """The full name, "" of a service that is not protobuf's; and what the service says, where it was asked."""
    if "." in request.service:
        return request.service, None
    answers = await discover(m.connection, request.service, cluster=request.cluster)
    names = sorted({answer.service or answer.name for answer in answers if answer.name})
    if not names:
        raise _nobody(request)
    if len(names) > 1:
        raise output.CommandError(
            f"several services are called {request.service}: {', '.join(names)}; give the full name",
            output.ExitCode.USAGE,
            code="INVALID_ARGUMENT",
        )
    return answers[0].service, answers[0]


async def _describe(m: Mesh, service: str, request: Request) -> ServiceDescriptor | None:
    """The service's descriptor from the service itself; None where it has none to give."""
    try:
        stored = await describe_service(m.connection, service, cluster=request.cluster, timeout=request.timeout)
    except NoRespondersError:
        return None
    except RpcError as error:
        if error.code() in (Code.NOT_FOUND, Code.UNIMPLEMENTED):
            return None
        raise
    pool = descriptor_pool.DescriptorPool()
    try:
        for file in FileDescriptorSet.FromString(stored).file:
            pool.Add(file)
        return pool.FindServiceByName(service)
    except (DecodeError, TypeError, KeyError) as error:
        raise RpcError(Code.INTERNAL, f"the descriptors that {service} gave do not fit: {error}") from error


def _method(service: ServiceDescriptor, name: str) -> MethodDescriptor:
    method = service.methods_by_name.get(name)
    if method is None:
        known = ", ".join(service.methods_by_name)
        raise RpcError(Code.UNIMPLEMENTED, f"{service.full_name} has no method {name}; it has {known}")
    return method


async def _call_described(m: Mesh, service: ServiceDescriptor, request: Request) -> None:
    method = _method(service, request.method)
    channel = m.channel if request.cluster is None else m.channel.at(request.cluster)
    options: dict[str, Any] = {"timeout": request.timeout, "metadata": request.metadata or None}

    def show(response: Message) -> None:
        _show(json_format.MessageToJson(response, indent=None, ensure_ascii=False, descriptor_pool=service.file.pool))

    if method.client_streaming:
        texts = lines_of_stdin() if request.text is None else _each(documents(request.text))
        await converse(channel, method, texts, show, **options)
        return
    message = parse(method, await _one_text(request))
    if method.server_streaming:
        async for response in channel.unary_stream(path(method), **codecs(method))(message, **options):
            show(response)
    else:
        show(await channel.unary_unary(path(method), **codecs(method))(message, **options))


async def _each(texts: Iterator[str]) -> AsyncIterator[str]:
    for text in texts:
        yield text


async def _one_text(request: Request) -> str:
    text = await asyncio.to_thread(sys.stdin.read) if request.text is None else request.text
    return text.strip() or "{}"


def _show(text: str) -> None:
    """A response, on a line of its own, at once."""
    click.echo(text)
    sys.stdout.flush()


async def _call_as_json(m: Mesh, service: str, answer: Found | None, request: Request) -> str:
    """Without descriptors, JSON goes as it is: to services that read it (M-D5), and to those that do not know us."""
    if answer is None:
        answers = await discover(m.connection, service, cluster=request.cluster)
        if not answers:
            raise _nobody(request)
        answer = answers[0]
    subject = next((str(e.get("subject")) for e in answer.endpoints if e.get("name") == request.method), "")
    if not subject:
        raise RpcError(
            Code.UNIMPLEMENTED, f"{request.service} has no method {request.method}; it has {', '.join(answer.methods)}"
        )
    if request.cluster is not None:
        subject = f"{request.cluster}.{subject}"
    try:
        reply = await m.connection.ask(
            subject, (await _one_text(request)).encode(), headers=_headers(request), timeout=request.timeout
        )
    except NoRespondersError:
        raise _nobody(request) from None
    result = wire.outcome(reply.data, reply.headers)
    if not result.ok:
        raise RpcError(result.code, result.details, trailing_metadata=result.trailing_metadata)
    return result.data.decode("utf-8", errors="replace")


def _headers(request: Request) -> bytes:
    return wire.encode_request(
        timeout=request.timeout,
        deadline_ms=int((time.time() + request.timeout) * 1000),
        user_metadata=request.metadata,
        content_type=JSON,
    )


def _nobody(request: Request) -> RpcError:
    where = f" in cluster {request.cluster}" if request.cluster else ""
    return RpcError(Code.UNAVAILABLE, f"no instance of {request.service} answers{where}; mesh ls shows who does")
