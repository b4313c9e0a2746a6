"""The configurations in nats/ start, sync before they acknowledge, and three nodes replicate."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats
import nats.errors
import pytest
from nats.js.api import StreamConfig, StreamInfo
from nats.js.errors import APIError

from mesh.localserver import find_binary, free_port
from mesh.processes import spawn

FOLDER = Path(__file__).resolve().parent.parent.parent / "nats"
FILES = sorted(p for p in FOLDER.rglob("*.conf") if p.name != "limits.conf")


def moved(folder: Path) -> dict[int, int]:
    """Copy the configurations to `folder`, on free ports; return the new port of each old one."""
    shutil.copytree(FOLDER, folder / "nats")
    ports: dict[int, int] = {}
    for path in (folder / "nats").rglob("*.conf"):
        text = path.read_text()
        for old in {int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", text)}:
            ports.setdefault(old, free_port())
            text = text.replace(f"127.0.0.1:{old}", f"127.0.0.1:{ports[old]}")
        path.write_text(text)
    return ports


@contextlib.asynccontextmanager
async def running(folder: Path, *files: str) -> AsyncIterator[None]:
    """Servers with these configurations, as a person would start them."""
    processes = [
        spawn([find_binary(), "-c", f"nats/{file}"], directory=folder, stderr=subprocess.DEVNULL) for file in files
    ]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


async def monitor(port: int, path: str) -> Any:
    """What a server says of itself, as soon as it says something."""

    def get() -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=2) as answer:
            return json.load(answer)

    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(OSError):
                return await asyncio.to_thread(get)
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(FOLDER)))
def test_configuration_is_valid(path: Path) -> None:
    checked = subprocess.run([find_binary(), "-t", "-c", path], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


async def test_single_node_syncs_before_it_acknowledges(tmp_path: Path) -> None:
    ports = moved(tmp_path)
    async with running(tmp_path, "single-node.conf"):
        store = (await monitor(ports[8222], "jsz"))["config"]
    assert store["sync_always"] is True
    assert store["max_storage"] == 8 * 1024**3
    assert store["store_dir"] == ".mesh/single-node/jetstream"


async def all_know_the_leader(ports: list[int]) -> None:
    """Wait until three nodes agree who leads: before that a request to JetStream may get no answer."""
    async with asyncio.timeout(40):
        while True:
            states = [(await monitor(port, "jsz")).get("meta_cluster", {}) for port in ports]
            leaders = {state.get("leader") for state in states}
            if len(leaders) == 1 and leaders != {None} and all(state.get("cluster_size") == 3 for state in states):
                return
            await asyncio.sleep(0.05)


async def create_replicated(url: str) -> StreamInfo:
    """A stream on all three nodes; asked for again while an answer does not come."""
    connection = await nats.connect(url)
    try:
        async with asyncio.timeout(40):
            while True:
                with contextlib.suppress(nats.errors.TimeoutError, APIError):
                    return await connection.jetstream(timeout=3).add_stream(
                        StreamConfig(name="THREE", subjects=["three"], num_replicas=3)
                    )
                await asyncio.sleep(0.1)
    finally:
        await connection.close()


@pytest.mark.timeout(120)
async def test_three_nodes_replicate(tmp_path: Path) -> None:
    ports = moved(tmp_path)
    async with running(tmp_path, *(f"three-nodes/node-{n}.conf" for n in (1, 2, 3))):
        for port in (8222, 8223, 8224):
            assert (await monitor(ports[port], "jsz"))["config"]["sync_always"] is True
        await all_know_the_leader([ports[port] for port in (8222, 8223, 8224)])
        stream = await create_replicated(f"nats://127.0.0.1:{ports[4222]}")
    assert stream.config.num_replicas == 3
    assert stream.cluster is not None
