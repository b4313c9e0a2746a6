"""The cashier: `mesh serve services.payments`.

Its ids are made of the order's id, so that an execution which happens twice changes nothing.
"""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio

from protos import payments_pb2, payments_pb2_grpc
from services import ledger

DECLINED_CARD = "4000-0000-0000-0002"


class PaymentService(payments_pb2_grpc.PaymentServiceServicer):
    """Takes money, and gives it back."""

    async def Charge(
        self, request: payments_pb2.ChargeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> payments_pb2.ChargeResponse:
        """Charge a card for an order."""
        await ledger.execute("PaymentService.Charge", context)
        if request.card == DECLINED_CARD:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the card was declined")
        return payments_pb2.ChargeResponse(payment_id=f"payment-{request.order_id}")

    async def Refund(
        self, request: payments_pb2.RefundRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> payments_pb2.RefundResponse:
        """Give back whatever was charged for an order."""
        await ledger.execute("PaymentService.Refund", context)
        return payments_pb2.RefundResponse()
