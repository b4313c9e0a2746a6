"""The parcel service: `mesh serve services.shipping`.

Its numbers are made of the order's id, so that an execution which happens twice changes nothing.
"""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio

from protos import shipping_pb2, shipping_pb2_grpc
from services import ledger

UNREACHABLE = "Atlantis"


class ShippingService(shipping_pb2_grpc.ShippingServiceServicer):
    """Sends parcels out, and stops them while they have not left."""

    async def Ship(
        self, request: shipping_pb2.ShipRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> shipping_pb2.ShipResponse:
        """Send the goods of an order to an address."""
        await ledger.execute("ShippingService.Ship", context)
        if UNREACHABLE in request.address:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"nobody delivers to {request.address}")
        return shipping_pb2.ShipResponse(tracking_number=f"parcel-{request.order_id}")

    async def Cancel(
        self, request: shipping_pb2.CancelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> shipping_pb2.CancelResponse:
        """Stop whatever was sent for an order."""
        await ledger.execute("ShippingService.Cancel", context)
        return shipping_pb2.CancelResponse()
