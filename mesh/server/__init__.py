"""Register (ADR-32), dispatch, drain.

`Host` serves services over one connection. A request goes from the read loop to its `Endpoint`,
which decides at once whether it is started, and then runs in a task of its own: a slow handler
never holds up the next request, and past the bound on their number a request is refused, not queued.
"""

from mesh.server.call import ServerCall
from mesh.server.endpoint import Handler
from mesh.server.host import (
    DEFAULT_MAX_CONCURRENT,
    DEFAULT_MAX_MESSAGE_BYTES,
    Host,
    HostedService,
    ServiceDefinition,
)
from mesh.server.stream import ServerStream

__all__ = [
    "DEFAULT_MAX_CONCURRENT",
    "DEFAULT_MAX_MESSAGE_BYTES",
    "Handler",
    "Host",
    "HostedService",
    "ServerCall",
    "ServerStream",
    "ServiceDefinition",
]
