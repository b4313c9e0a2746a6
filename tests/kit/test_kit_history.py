"""The kit itself: a checker that finds nothing must have been able to find it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import monotonic

import pytest

from engine.durable_pb2 import ExecutionState
from protos.hello_pb2 import HelloRequest, HelloResponse
from tests.kit.history import Checker, Expectation, History, digest, value_digest
from tests.kit.ledger import Ledger

ID = "run-1"
ANSWERS = [HelloResponse(message=f"answer {step}") for step in range(2)]
SLOT = "wf.default.j.s.local.0.run-1.incarnation.{}.1.call-abc.HelloService%2ESayHello"


class Scene:
    """A run of two calls, each executed and seen once; tests add what must not be."""

    def __init__(self, folder: Path) -> None:
        self.ledger = Ledger(folder / "ledger.jsonl")
        self.history = History()
        self.record = ExecutionState(invocation_id=ID, status="completed")
        for step, answer in enumerate(ANSWERS):
            self.execute(step)
            self.store(step, answer.SerializeToString())
            self.saw(step, value_digest(answer))
            self.record.journal.add(
                step_number=step,
                step_type="HelloService.SayHello",
                request=HelloRequest(name=f"{ID}-{step}").SerializeToString(),
                response=answer.SerializeToString(),
            )
        self.history.statuses[ID] += ["running", "completed"]

    def execute(self, step: int, key: str = "key") -> None:
        self.ledger.write("begin", invocation=ID, step=f"{ID}-{step}", key=f"{key}-{step}")

    def store(self, step: int, data: bytes) -> None:
        self.history.entries[SLOT.format(step)].append(digest(data))
        self.history.answered.setdefault((ID, step), monotonic())

    def saw(self, step: int, value: str) -> None:
        self.ledger.write("saw", invocation=ID, step=str(step), note=value)

    def contradictions(self, executions: int = 1) -> list[str]:
        return Checker(self.history, self.ledger, {ID: self.record}).check(Expectation(executions, steps=2))


def test_a_run_as_it_should_be_has_no_contradiction(tmp_path: Path) -> None:
    assert Scene(tmp_path).contradictions() == []


def test_a_second_pass_that_saw_the_beginning_again_is_no_contradiction(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.saw(0, value_digest(ANSWERS[0]))
    assert scene.contradictions() == []


def never_executed(scene: Scene) -> None:
    lines = scene.ledger.path.read_text().splitlines(keepends=True)
    scene.ledger.path.write_text("".join(line for line in lines if '"begin"' not in line))


def executed_after_its_record(scene: Scene) -> None:
    scene.execute(1)


def executed_under_another_key(scene: Scene) -> None:
    scene.history.answered.clear()
    scene.execute(1, key="other")


def slot_changed(scene: Scene) -> None:
    scene.store(1, b"another value")


def code_saw_another_value(scene: Scene) -> None:
    scene.saw(0, value_digest(ANSWERS[1]))


def passes_differ(scene: Scene) -> None:
    scene.saw(0, value_digest(ANSWERS[0]))
    scene.saw(1, value_digest(ANSWERS[0]))


def went_on_after_its_end(scene: Scene) -> None:
    scene.history.statuses[ID].append("failed")


def journal_lacks_a_step(scene: Scene) -> None:
    del scene.record.journal[1]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (never_executed, "executed 0 times"),
        (executed_after_its_record, "after its record was seen"),
        (executed_after_its_record, "executed 2 times"),
        (executed_under_another_key, "under several keys"),
        (slot_changed, "several values"),
        (code_saw_another_value, "another value than is stored"),
        (passes_differ, "saw different things"),
        (went_on_after_its_end, "went on after its end"),
        (journal_lacks_a_step, "1 calls in its journal instead of 2"),
    ],
)
def test_what_cannot_be_true_is_said(tmp_path: Path, fault: Callable[[Scene], None], said: str) -> None:
    scene = Scene(tmp_path)
    fault(scene)
    assert any(said in contradiction for contradiction in scene.contradictions())
