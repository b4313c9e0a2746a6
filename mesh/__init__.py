"""gRPC services on NATS subjects.

async with mesh.connect("nats://127.0.0.1:4222") as m:
    server = mesh.Server(m)
    add_HelloServiceServicer_to_server(HelloService(), server)
    await server.start()
    reply = await HelloServiceStub(m.channel).SayHello(HelloRequest(name="World"), timeout=2)
"""

from mesh.adapters.grpcio import Channel, Server, ServicerContext
from mesh.connection import Connection
from mesh.errors import (
    ConfigError,
    ConnectError,
    InvalidNameError,
    MeshError,
    NoRespondersError,
    NotConnectedError,
    PayloadTooLargeError,
    PermissionDeniedError,
    ProtocolError,
    RpcError,
)
from mesh.facade import Mesh, connect
from mesh.options import ConnectOptions
from mesh.scope import current

__all__ = [
    "Channel",
    "ConfigError",
    "ConnectError",
    "ConnectOptions",
    "Connection",
    "InvalidNameError",
    "Mesh",
    "MeshError",
    "NoRespondersError",
    "NotConnectedError",
    "PayloadTooLargeError",
    "PermissionDeniedError",
    "ProtocolError",
    "RpcError",
    "Server",
    "ServicerContext",
    "connect",
    "current",
]
