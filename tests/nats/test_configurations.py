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
import pytest
from nats.js.api import StreamConfig

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


async def test_three_nodes_replicate(tmp_path: Path) -> None:
    ports = moved(tmp_path)
    async with running(tmp_path, *(f"three-nodes/node-{n}.conf" for n in (1, 2, 3))):
        for port in (8222, 8223, 8224):
            assert (await monitor(ports[port], "jsz"))["config"]["sync_always"] is True
        async with asyncio.timeout(30):
            while not (await monitor(ports[8222], "jsz")).get("meta_cluster", {}).get("leader"):
                await asyncio.sleep(0.05)
            connection = await nats.connect(f"nats://127.0.0.1:{ports[4222]}")
            try:
                stream = await connection.jetstream(timeout=20).add_stream(
                    StreamConfig(name="THREE", subjects=["three"], num_replicas=3)
                )
            finally:
                await connection.close()
    assert stream.config.num_replicas == 3
    assert stream.cluster is not None
