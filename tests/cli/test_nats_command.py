"""`mesh nats`: a server that says where it is, and goes when we go."""

import json
import signal
from pathlib import Path

import pytest

from mesh.localserver import LocalServer, free_port
from tests.cli.commands import start
from tests.cli.test_localserver import gone
from tests.kit.ledger import until
from tests.kit.raw import Raw


async def test_it_says_where_it_is_and_ends_by_ctrl_c(tmp_path: Path) -> None:
    port, monitor = free_port(), free_port()
    process = start(tmp_path, "", "nats", "--port", str(port), "--monitor-port", str(monitor), "--json")
    try:
        assert json.loads(await process.line("{")) == {
            "event": "ready",
            "url": f"nats://127.0.0.1:{port}",
            "monitor": f"http://127.0.0.1:{monitor}",
            "data": ".mesh/nats",
        }
        async with await Raw.connect(f"nats://127.0.0.1:{port}") as raw:
            assert raw.client.is_connected
        assert (tmp_path / ".mesh" / ".gitignore").read_text() == "*\n"
        process.signal(signal.SIGINT)
        assert await process.exited() == 0
    finally:
        await process.close()


async def test_its_data_is_kept_and_its_server_goes_with_it_however_it_ends(tmp_path: Path) -> None:
    port = str(free_port())
    for round_ in range(2):
        process = start(tmp_path, "", "nats", "--port", port, "--monitor-port", str(free_port()))
        try:
            await process.ready()
            async with await Raw.connect(f"nats://127.0.0.1:{port}") as raw:
                if round_ == 0:
                    await raw.client.jetstream().add_stream(name="S", subjects=["s"])
                else:
                    assert (await raw.client.jetstream().stream_info("S")).config.name == "S"
            server = nats_server_of(process.pid)
            process.kill()
            assert gone(server)
        finally:
            await process.close()


async def test_a_taken_default_port_is_said(tmp_path: Path) -> None:
    with LocalServer(data=tmp_path / "other", port=free_port(4222)) as other:
        process = start(tmp_path, "", "nats", "--data", str(tmp_path / "mine"))
        try:
            line = await process.line("ready")
            assert "nats://127.0.0.1:4222 " not in line or other.port != 4222
            assert "Port 4222 is taken" in process.stderr
        finally:
            await process.close()


async def test_a_taken_port_that_was_asked_for_is_an_error(tmp_path: Path) -> None:
    with LocalServer(data=tmp_path / "other") as other:
        process = start(tmp_path, "", "nats", "--port", str(other.port), "--data", str(tmp_path / "mine"))
        try:
            assert await process.exited() == 7
            assert "address already in use" in process.stderr
        finally:
            await process.close()


async def test_a_second_one_on_the_same_data_is_refused(tmp_path: Path) -> None:
    with LocalServer(data=tmp_path / "data"):
        process = start(tmp_path, "", "nats", "--data", str(tmp_path / "data"))
        try:
            assert await process.exited() == 2
            assert "is the data folder of a nats-server that is running" in process.stderr
        finally:
            await process.close()


async def test_it_ends_when_its_server_does(tmp_path: Path) -> None:
    process = start(tmp_path, "", "nats", "--port", str(free_port()), "--monitor-port", str(free_port()))
    try:
        await process.ready()
        import os

        os.kill(nats_server_of(process.pid), signal.SIGKILL)
        assert await process.exited() == 1
        assert "ended by itself" in process.stderr
    finally:
        await process.close()


async def test_relaxed_sync_says_what_it_costs(tmp_path: Path) -> None:
    process = start(
        tmp_path, "", "nats", "--port", str(free_port()), "--monitor-port", str(free_port()), "--relaxed-sync"
    )
    try:
        await process.ready()
        await until(lambda: "a power cut" in process.stderr, what="the warning")
    finally:
        await process.close()


@pytest.mark.slow
async def test_a_cluster_of_three(tmp_path: Path) -> None:
    process = start(
        tmp_path, "", "nats", "--port", str(free_port()), "--monitor-port", str(free_port()), "--cluster", "3"
    )
    try:
        line = await process.line("ready")
        assert line.split()[1].count("nats://") == 3
        process.terminate()
        assert await process.exited() == 0
    finally:
        await process.close()


def nats_server_of(owner: int) -> int:
    """The pid of the child that is a nats-server."""
    children = Path(f"/proc/{owner}/task").glob("*/children")
    for pid in (int(pid) for file in children for pid in file.read_text().split()):
        if "nats-server" in Path(f"/proc/{pid}/cmdline").read_text():
            return pid
    raise AssertionError("no nats-server beneath this process")
