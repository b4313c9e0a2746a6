"""What the engine's commands share: the namespace, clients, and how errors end a command."""

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import click

from engine import errors
from engine.client import Client
from engine.client.client import NAMESPACE_VARIABLE
from engine.names import check_token
from mesh.cli.opening import opened
from mesh.cli.output import ExitCode, register_error
from mesh.options import ConnectOptions

F = TypeVar("F", bound=Callable[..., Any])

_ID = ("invocation_id",)
register_error(errors.EngineError, "UNKNOWN", ExitCode.OTHER)
register_error(errors.InvalidNameError, "INVALID_ARGUMENT", ExitCode.USAGE)
register_error(errors.EncodeError, "INVALID_ARGUMENT", ExitCode.USAGE)
register_error(errors.DecodeError, "INVALID_ARGUMENT", ExitCode.USAGE)
register_error(errors.PayloadTooLargeError, "RESOURCE_EXHAUSTED", ExitCode.USAGE)
register_error(errors.InvocationNotFoundError, "NOT_FOUND", ExitCode.NOT_FOUND, fields=_ID)
register_error(errors.InvocationConflictError, "ALREADY_EXISTS", ExitCode.CONFLICT, fields=_ID)
register_error(errors.InvocationStateError, "FAILED_PRECONDITION", ExitCode.CONFLICT, fields=_ID)
register_error(errors.AwakeableNotFoundError, "NOT_FOUND", ExitCode.NOT_FOUND)
register_error(errors.AwakeableResolvedError, "FAILED_PRECONDITION", ExitCode.CONFLICT)
register_error(errors.ResultTimeoutError, "DEADLINE_EXCEEDED", ExitCode.TIMEOUT, fields=_ID)
register_error(errors.UnavailableError, "UNAVAILABLE", ExitCode.UNREACHABLE, fields=_ID)
register_error(errors.StoreError, "UNAVAILABLE", ExitCode.FAILED)
register_error(
    errors.WorkflowFailedError,
    lambda error: error.code or "UNKNOWN",
    ExitCode.FAILED,
    source="workflow",
    fields=("invocation_id", "type"),
)
register_error(errors.WorkflowCancelledError, "CANCELLED", ExitCode.FAILED, source="workflow", fields=_ID)


def _namespace(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    try:
        return check_token("namespace", value)
    except errors.InvalidNameError as error:
        raise click.BadParameter(str(error)) from error


def namespace_option(command: F) -> F:
    """`--namespace`, checked."""
    option = click.option(
        "--namespace",
        envvar=NAMESPACE_VARIABLE,
        default="default",
        show_default=True,
        show_envvar=True,
        callback=_namespace,
        help="Workflows of other namespaces are not seen.",
    )
    return option(command)


@contextlib.asynccontextmanager
async def client_of(options: ConnectOptions, namespace: str) -> AsyncIterator[Client]:
    """A client with a connection of its own."""
    async with opened(options) as m:
        client = Client(m, namespace=namespace)
        try:
            yield client
        finally:
            await client.close()
