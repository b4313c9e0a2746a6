"""Errors say what happened in words and in fields, and survive a process border."""

from __future__ import annotations

import copy
import pickle

import grpc
import grpc.aio
import pytest

import engine
import mesh
from engine import errors

ONE_OF_EACH: list[errors.EngineError] = [
    errors.InvalidNameError("id", "a.b", "no dots"),
    errors.PayloadTooLargeError("input of greet", 2, 1),
    errors.EncodeError("result", "lock", "cannot"),
    errors.DecodeError("input", "int", "is text"),
    errors.UnavailableError("nobody answers", "x"),
    errors.StoreError("full", "COMMANDS"),
    errors.InvocationNotFoundError("x"),
    errors.InvocationConflictError("x"),
    errors.InvocationStateError("x", "completed", "is over"),
    errors.ResultTimeoutError("x", 5),
    errors.WorkflowFailedError("x", "ValueError", "bad", "INTERNAL", "Traceback"),
    errors.WorkflowCancelledError("x"),
    errors.StepFailedError(1, "charge", "ValueError", "bad", 3),
    errors.CallFailedError(
        1,
        "Hello.Say",
        grpc.StatusCode.NOT_FOUND,
        "gone",
        trailing_metadata=[("k", "v"), ("b-bin", b"\x00")],
        attempts=2,
    ),
    errors.AwakeableNotFoundError("x"),
    errors.AwakeableResolvedError("x"),
    errors.AwakeableRejectedError("", "no"),
    errors.NonDeterminismError(1, "sleep 1s", "call Hello.Say"),
    errors.ForeignAwaitError("use ctx.run"),
    errors.PoisonError(10),
    errors.TerminalError("no"),
]


def test_there_is_one_of_each_here() -> None:
    assert {type(error).__name__ for error in ONE_OF_EACH} | {"EngineError"} == set(errors.__all__)


def test_every_error_can_be_imported_from_the_package() -> None:
    for name in errors.__all__:
        assert getattr(engine, name) is getattr(errors, name)


@pytest.mark.parametrize("error", ONE_OF_EACH, ids=lambda error: type(error).__name__)
def test_an_error_comes_back_from_another_process_as_it_was(error: errors.EngineError) -> None:
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert str(again) == str(error) != ""
        assert {k: v for k, v in vars(again).items() if k[0] != "_"} == {
            k: v for k, v in vars(error).items() if k[0] != "_"
        }


def test_a_failed_call_is_a_failed_step_and_an_rpc_error() -> None:
    error = ONE_OF_EACH[13]
    assert isinstance(error, errors.CallFailedError)
    assert isinstance(error, errors.StepFailedError)
    assert isinstance(error, mesh.RpcError)
    assert isinstance(error, grpc.aio.AioRpcError)
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "gone")
    assert list(error.trailing_metadata()) == [("k", "v"), ("b-bin", b"\x00")]
    assert (error.step, error.name, error.type, error.message, error.attempts) == (
        1,
        "Hello.Say",
        "NOT_FOUND",
        "gone",
        2,
    )
    assert "gone" in str(error)
    assert "step 1 (Hello.Say) failed after 2 attempts" in str(error)


def test_time_outs_and_names_are_what_python_calls_them() -> None:
    assert issubclass(errors.ResultTimeoutError, TimeoutError)
    assert issubclass(errors.InvalidNameError, ValueError)


def test_a_hostile_name_is_shown_escaped_and_cut() -> None:
    text = str(errors.InvalidNameError("id", "\x1b[31m" + "é" * 10_000, "no"))
    assert len(text) < 200
    assert text.isprintable()
