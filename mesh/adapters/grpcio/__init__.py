"""grpcio: generated stubs on `Channel`, generated servicers on `Server`, both unchanged.

`Channel` is a grpc.aio.Channel and `Server` a grpc.aio.Server as far as generated code and its users
go; ports and credentials belong to NATS and are refused.
"""

from mesh.adapters.grpcio.channel import Channel, UnaryUnaryCall
from mesh.adapters.grpcio.context import ServicerContext, SyncServicerContext
from mesh.adapters.grpcio.limits import message_limits
from mesh.adapters.grpcio.server import Server

__all__ = ["Channel", "Server", "ServicerContext", "SyncServicerContext", "UnaryUnaryCall", "message_limits"]
