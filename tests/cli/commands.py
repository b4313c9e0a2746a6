"""Running `mesh` for tests: one-shot commands in this process, long-lived ones as processes of their own."""

import os
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from mesh.cli import cli
from tests.kit.process import Process

REPOSITORY = Path(__file__).parents[2]
NOWHERE = {"XDG_CONFIG_HOME": "/nonexistent", "NATS_CONTEXT": None}


def mesh(url: str, *arguments: str, **extra: Any) -> Result:
    """Run a command against a server; in another thread where the caller has an event loop."""
    return CliRunner().invoke(cli, arguments, env={**NOWHERE, "NATS_URL": url}, prog_name="mesh", **extra)


def start(folder: Path, url: str, *arguments: str, name: str = "", cwd: Path | None = None) -> Process:
    """Start a command; `close()` ends it."""
    environment = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
        "XDG_CONFIG_HOME": "/nonexistent",
        "NATS_URL": url,
    }
    command = [sys.executable, "-P", "-m", "mesh", *arguments]
    return Process(command, folder=folder, name=name or arguments[0], environment=environment, cwd=cwd or folder)
