"""The connection of a command, from its flags."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from mesh.caller import Caller
from mesh.connection import Connection
from mesh.facade import Mesh
from mesh.options import ConnectOptions


async def open_mesh(options: ConnectOptions, **caller: Any) -> Mesh:
    """`mesh.connect` with settings that are resolved already. Raises ConfigError, ConnectError."""
    connection = await Connection.open(options)
    return Mesh(connection, Caller(connection, **caller))


@contextlib.asynccontextmanager
async def opened(options: ConnectOptions, **caller: Any) -> AsyncIterator[Mesh]:
    """The same as a context manager."""
    m = await open_mesh(options, **caller)
    try:
        yield m
    finally:
        await m.close()
