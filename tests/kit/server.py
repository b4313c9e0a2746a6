"""SRV: a nats-server of one's own, with a store that survives it."""

from __future__ import annotations

from pathlib import Path

from mesh.localserver import LocalServer


class NatsServer(LocalServer):
    """One server process on one folder; killed and started again it has the same ports and store.

    `sync_always` is what a deployment runs with. Tests that do not cut the power leave it off: a
    killed process loses nothing that it wrote.
    """

    def __init__(self, folder: Path, *, sync_always: bool = False, extra: str = "") -> None:
        super().__init__(data=folder, relaxed_sync=not sync_always, config=extra)
