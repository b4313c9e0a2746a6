"""What all tests share: one store a test, processes that never outlive it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kit.raw import Raw
from tests.kit.server import NatsServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


def pytest_configure(config: pytest.Config) -> None:
    """nats-py drops the stream of a lost connection without waiting for its end: not ours to mend."""
    config.addinivalue_line("filterwarnings", "ignore:unclosed <StreamWriter:ResourceWarning")


@pytest.fixture
async def nats_server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A nats-server of the test's own."""
    async with NatsServer(tmp_path / "nats") as server:
        yield server


@pytest.fixture
async def raw(nats_server: NatsServer) -> AsyncIterator[Raw]:
    """A bare connection to the test's own server."""
    async with await Raw.connect(nats_server.url) as connection:
        yield connection
