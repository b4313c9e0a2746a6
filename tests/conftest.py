"""What all tests share: one store a test, processes that never outlive it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kit.raw import Raw
from tests.kit.server import NatsServer
from tests.kit.stage import M1, Stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator
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


@pytest.fixture
async def stage(
    tmp_path: Path, nats_server: NatsServer, raw: Raw, request: pytest.FixtureRequest
) -> AsyncIterator[Stage]:
    """A stage in the mode that the test asks for, M1 unless it does."""
    mode = request.getfixturevalue("mode") if "mode" in request.fixturenames else M1
    stage = Stage(tmp_path, nats_server, raw, mode)
    try:
        yield stage
    finally:
        stage.close()
        if _failed(request.node):
            said = f"--- ledger\n{stage.ledger.text()}\n{stage.reports()}"
            request.node.add_report_section("teardown", "stage", said)


def _failed(item: pytest.Item) -> bool:
    report = item.stash.get(_REPORT, None)
    return report is None or report.failed


_REPORT = pytest.StashKey[pytest.TestReport]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember how the test itself went, so that fixtures can print what processes said when it failed."""
    report = yield
    if report.when == "call":
        item.stash[_REPORT] = report
    return report
