"""An order over three services: `mesh processor examples.orders.workflows`.

Each call is a durable step. When one fails for good, what was done before is taken back, in
reverse order, by calls that are durable steps as well: a processor that dies in the middle of
the compensation changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from engine import CallFailedError, Context, workflow
from protos import orders_pb2, payments_pb2, shipping_pb2
from protos.orders_pb2_grpc import OrderServiceStub
from protos.payments_pb2_grpc import PaymentServiceStub
from protos.shipping_pb2_grpc import ShippingServiceStub

Undo = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Item:
    """So many of one article."""

    sku: str
    quantity: int = 1


@dataclass(frozen=True, slots=True)
class Order:
    """What a customer asks for."""

    order_id: str
    items: list[Item]
    card: str
    address: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an order."""

    status: Literal["shipped", "rejected"]
    total_cents: int = 0
    payment_id: str = ""
    tracking_number: str = ""
    reason: str = ""


@workflow
async def order_processing(ctx: Context, order: Order) -> Outcome:
    """Hold the goods, charge the card, send the parcel, confirm; take everything back on failure."""
    undo: list[Undo] = []
    try:
        return await fulfil(ctx, order, undo)
    except CallFailedError as error:
        await take_back(undo)
        return Outcome("rejected", reason=error.message)
    except asyncio.CancelledError:  # `client.cancel`: the goods go back, then the run is cancelled
        await take_back(undo)
        raise


async def fulfil(ctx: Context, order: Order, undo: list[Undo]) -> Outcome:
    """Do the four steps, noting before each how it is taken back.

    Before, not after: of a call that is cancelled under way nobody knows whether it happened, so
    the services' compensations take back whatever there is, if there is anything.
    """
    number = order.order_id
    orders = OrderServiceStub(ctx.channel)
    payments = PaymentServiceStub(ctx.channel)
    shipping = ShippingServiceStub(ctx.channel)

    undo.append(lambda: orders.Cancel(orders_pb2.CancelRequest(order_id=number)))
    items = [orders_pb2.Item(sku=item.sku, quantity=item.quantity) for item in order.items]
    held = await orders.Reserve(orders_pb2.ReserveRequest(order_id=number, items=items))

    undo.append(lambda: payments.Refund(payments_pb2.RefundRequest(order_id=number)))
    paid = await payments.Charge(
        payments_pb2.ChargeRequest(order_id=number, card=order.card, amount_cents=held.total_cents)
    )

    undo.append(lambda: shipping.Cancel(shipping_pb2.CancelRequest(order_id=number)))
    sent = await shipping.Ship(
        shipping_pb2.ShipRequest(order_id=number, reservation_id=held.reservation_id, address=order.address)
    )

    await orders.Confirm(
        orders_pb2.ConfirmRequest(
            order_id=number,
            reservation_id=held.reservation_id,
            payment_id=paid.payment_id,
            tracking_number=sent.tracking_number,
        )
    )
    return Outcome("shipped", held.total_cents, paid.payment_id, sent.tracking_number)


async def take_back(undo: list[Undo]) -> None:
    """Run the compensations, the newest first."""
    for step in reversed(undo):
        await step()
