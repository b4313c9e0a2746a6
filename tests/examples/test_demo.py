"""`make run` proves what it says, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def start(data: Path) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NATS_")}
    return subprocess.Popen(
        [sys.executable, "-m", "examples.demo", "--data", str(data)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def left_behind(data: Path) -> list[str]:
    """Processes that have anything to do with this demo: its folder in their arguments or environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        try:
            text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if os.fsencode(data) in text and (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
            found.append(text[:200].decode(errors="replace"))
    return found


@pytest.mark.timeout(180)
@pytest.mark.slow
def test_demo_proves_that_no_step_of_the_interrupted_order_ran_twice(tmp_path: Path) -> None:
    demo = start(tmp_path / "demo")
    output, _ = demo.communicate(timeout=170)
    assert demo.returncode == 0, output
    assert "Hello, World!" in output
    assert "kill -9" in output
    assert "PaymentService.Charge    executed 1 x" in output
    assert "Proven:" in output
    assert max(len(line) for line in output.splitlines()) <= 100
    assert left_behind(tmp_path) == []


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill-9"])
def test_an_interrupted_demo_leaves_no_process_behind(tmp_path: Path, number: signal.Signals) -> None:
    demo = start(tmp_path / "demo")
    assert demo.stdout is not None
    for line in demo.stdout:
        if "ready:" in line:
            break
    else:
        pytest.fail("the demo ended by itself")
    assert left_behind(tmp_path) != []
    demo.send_signal(number)
    demo.stdout.read()
    demo.stdout.close()
    assert demo.wait(timeout=60) == (130 if number == signal.SIGINT else -signal.SIGKILL)
    deadline = time.monotonic() + 10
    while left_behind(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left_behind(tmp_path) == []
