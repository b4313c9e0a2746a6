"""The kit itself: what a test relies on when it kills, freezes and counts."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.kit.gates import Gate
from tests.kit.ledger import FOLDER_VARIABLE, Ledger
from tests.kit.process import Process

WRITER = """
import asyncio, signal, sys
from tests.kit.ledger import Ledger
from tests.kit.gates import Gate
ledger = Ledger.of_environment()
signal.signal(signal.SIGTERM, lambda *_: (ledger.write("terminated"), sys.exit(3)))
print("ready", flush=True)
async def main():
    await Gate.of_environment("go").wait()
    for step in range(200):
        ledger.write("tick", step=str(step), note="x" * 300)
    while True:
        ledger.write("alive")
        await asyncio.sleep(0.001)
asyncio.run(main())
"""


def start_writer(folder: Path, name: str = "writer") -> Process:
    environment = {FOLDER_VARIABLE: str(folder), "PYTHONPATH": str(Path(__file__).parents[2])}
    return Process([sys.executable, "-c", WRITER], folder=folder, name=name, environment=environment)


async def test_entries_of_several_killed_processes_are_whole_and_counted(tmp_path: Path) -> None:
    ledger, gate = Ledger(tmp_path / "ledger.jsonl"), Gate(tmp_path, "go")
    writers = [start_writer(tmp_path, f"writer-{n}") for n in range(3)]
    for writer in writers:
        await writer.ready()
    assert ledger.entries() == []
    gate.open()
    await ledger.wait_for(600, event="tick")
    for writer in writers:
        writer.kill()
    assert ledger.count(event="tick") == 600
    assert ledger.count(event="tick", step="7") == 3
    assert {entry.pid for entry in ledger.entries(event="tick")} == {w.pid for w in writers}
    assert [writer.exit_code for writer in writers] == [-9, -9, -9]


async def test_a_frozen_process_does_nothing_until_it_is_thawed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    Gate(tmp_path, "go").open()
    async with start_writer(tmp_path) as writer:
        await ledger.wait_for(event="alive")
        await writer.freeze()
        before = ledger.count()
        await asyncio.sleep(0.05)
        assert ledger.count() == before
        writer.thaw()
        await ledger.wait_for(before + 1)


async def test_a_terminated_process_ends_in_its_own_way(tmp_path: Path) -> None:
    async with start_writer(tmp_path) as writer:
        await writer.ready()
        writer.terminate()
        assert await writer.exited() == 3
    assert Ledger(tmp_path / "ledger.jsonl").count(event="terminated") == 1


async def test_a_killed_frozen_process_is_gone(tmp_path: Path) -> None:
    writer = await start_writer(tmp_path).ready()
    await writer.freeze()
    writer.kill()
    assert writer.exit_code == -9


async def test_a_process_that_ends_before_it_is_ready_says_what_it_printed(tmp_path: Path) -> None:
    script = "import sys; print('no server', file=sys.stderr); sys.exit(6)"
    process = Process([sys.executable, "-c", script], folder=tmp_path, name="broken")
    with pytest.raises(AssertionError, match=r"(?s)ended with 6.*no server"):
        await process.ready()


async def test_a_started_again_process_is_not_ready_by_its_predecessors_line(
    tmp_path: Path,
) -> None:
    first = await start_writer(tmp_path).ready()
    first.kill()
    second = start_writer(tmp_path)
    assert second.stdout == ""
    await second.ready()
    second.kill()


def test_a_question_about_a_field_that_entries_do_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="invocatoin"):
        Ledger(tmp_path / "ledger.jsonl").count(invocatoin="x")
