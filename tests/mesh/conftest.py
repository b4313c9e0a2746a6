"""What the mesh's tests share: one nats-server a module, connections, and a servicer made on the spot."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import nats
import pytest
from nats.aio.client import Client

import mesh
from mesh.localserver import LocalServer


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A nats-server of the module's own."""
    with LocalServer(relaxed_sync=True) as server:
        yield server.url


@pytest.fixture
async def m(url: str) -> AsyncIterator[mesh.Mesh]:
    """The connection that serves."""
    async with mesh.connect(url, name="serves") as connection:
        yield connection


@pytest.fixture
async def caller(url: str) -> AsyncIterator[mesh.Mesh]:
    """Another connection, which calls."""
    async with mesh.connect(url, name="calls", keepalive=1.0) as connection:
        yield connection


@pytest.fixture
async def foreigner(url: str) -> AsyncIterator[Client]:
    """A bare nats-py connection, which knows nothing of us."""
    client = await nats.connect(url, error_cb=_ignore)
    yield client
    await client.close()


async def _ignore(_error: Exception) -> None:
    """The default prints; what is wrong shows in the tests' own asserts."""
