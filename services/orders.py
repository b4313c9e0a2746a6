"""The order book: `mesh serve services.orders`.

Its ids are made of the order's id, so that an execution which happens twice changes nothing.
"""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio

from protos import orders_pb2, orders_pb2_grpc
from services import ledger

PRICES_CENTS = {"tea": 450, "coffee": 620, "cup": 1290, "kettle": 4900}


class OrderService(orders_pb2_grpc.OrderServiceServicer):
    """Holds goods for orders, then confirms the order or takes the goods back."""

    async def Reserve(
        self, request: orders_pb2.ReserveRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> orders_pb2.ReserveResponse:
        """Hold the goods of an order and say what they cost."""
        await ledger.execute("OrderService.Reserve", context)
        if not request.items:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "an order needs an item")
        total = 0
        for item in request.items:
            if item.sku not in PRICES_CENTS:
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{item.sku} is not on sale")
            total += PRICES_CENTS[item.sku] * item.quantity
        return orders_pb2.ReserveResponse(reservation_id=f"reservation-{request.order_id}", total_cents=total)

    async def Confirm(
        self, request: orders_pb2.ConfirmRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> orders_pb2.ConfirmResponse:
        """Close an order that is paid and on its way."""
        await ledger.execute("OrderService.Confirm", context)
        return orders_pb2.ConfirmResponse()

    async def Cancel(
        self, request: orders_pb2.CancelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> orders_pb2.CancelResponse:
        """Take back whatever was held for an order."""
        await ledger.execute("OrderService.Cancel", context)
        return orders_pb2.CancelResponse()
