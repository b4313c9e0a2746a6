"""The reference services do what they say, and count it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos import hello_pb2, orders_pb2, payments_pb2, shipping_pb2
from services import hello, ledger, orders, payments, shipping


class Abort(Exception):
    """What `context.abort` raises here."""


class FakeContext:
    """As much of a servicer's context as the services use."""

    def __init__(self, key: str | None = None) -> None:
        self._key = key

    def invocation_metadata(self) -> list[tuple[str, str]] | None:
        return None if self._key is None else [("x", "y"), ("idempotency-key", self._key)]

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise Abort(code.name, details)


def context(key: str | None = None) -> Any:
    return FakeContext(key)


@pytest.fixture(autouse=True)
def ledger_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "ledger.jsonl"
    monkeypatch.setenv(ledger.FILE_VARIABLE, str(path))
    monkeypatch.delenv(ledger.PACE_VARIABLE, raising=False)
    return path


async def test_each_execution_is_one_line_with_pid_method_and_key(ledger_file: Path) -> None:
    reply = await hello.HelloService().SayHello(hello_pb2.HelloRequest(name="World"), context("k1"))
    await hello.HelloService().SayHello(hello_pb2.HelloRequest(name="Mesh"), context())

    assert reply.message == "Hello, World!"
    first, second = ledger.read(ledger_file)
    assert (first.pid, first.method, first.key) == (os.getpid(), "HelloService.SayHello", "k1")
    assert (second.method, second.key) == ("HelloService.SayHello", "")
    assert second.time >= first.time


async def test_without_a_file_nothing_is_counted(ledger_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ledger.FILE_VARIABLE)
    await hello.HelloService().SayHello(hello_pb2.HelloRequest(name="World"), context())
    assert list(ledger.read(ledger_file)) == []


async def test_an_order_is_priced() -> None:
    items = [orders_pb2.Item(sku="tea", quantity=2), orders_pb2.Item(sku="kettle", quantity=1)]
    reply = await orders.OrderService().Reserve(orders_pb2.ReserveRequest(order_id="7", items=items), context())
    assert (reply.reservation_id, reply.total_cents) == ("reservation-7", 5800)


async def test_what_cannot_be_done_is_refused_for_good() -> None:
    unknown = orders_pb2.ReserveRequest(order_id="7", items=[orders_pb2.Item(sku="moon", quantity=1)])
    with pytest.raises(Abort, match="FAILED_PRECONDITION.*moon is not on sale"):
        await orders.OrderService().Reserve(unknown, context())
    with pytest.raises(Abort, match="INVALID_ARGUMENT"):
        await orders.OrderService().Reserve(orders_pb2.ReserveRequest(order_id="7"), context())
    declined = payments_pb2.ChargeRequest(order_id="7", card=payments.DECLINED_CARD, amount_cents=1)
    with pytest.raises(Abort, match="FAILED_PRECONDITION.*declined"):
        await payments.PaymentService().Charge(declined, context())
    lost = shipping_pb2.ShipRequest(order_id="7", address=f"1 Road, {shipping.UNREACHABLE}")
    with pytest.raises(Abort, match="FAILED_PRECONDITION.*nobody delivers"):
        await shipping.ShippingService().Ship(lost, context())


async def test_compensations_answer_even_if_there_is_nothing_to_take_back() -> None:
    await orders.OrderService().Cancel(orders_pb2.CancelRequest(order_id="7"), context())
    await payments.PaymentService().Refund(payments_pb2.RefundRequest(order_id="7"), context())
    await shipping.ShippingService().Cancel(shipping_pb2.CancelRequest(order_id="7"), context())
