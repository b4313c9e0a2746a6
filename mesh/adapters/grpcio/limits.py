"""Message limits as gRPC's `options` name them."""

from collections.abc import Iterable
from typing import Any

from mesh.caller import DEFAULT_MAX_MESSAGE_BYTES

MAX_SEND_OPTION = "grpc.max_send_message_length"
MAX_RECEIVE_OPTION = "grpc.max_receive_message_length"
UNLIMITED = 1 << 62


def message_limits(options: Iterable[tuple[str, Any]] | None) -> tuple[int, int]:
    """Limits of sent and received messages in bytes, from gRPC's `options` (M-A3); -1 is none, as in gRPC."""
    limits = {MAX_SEND_OPTION: DEFAULT_MAX_MESSAGE_BYTES, MAX_RECEIVE_OPTION: DEFAULT_MAX_MESSAGE_BYTES}
    for key, value in options or ():
        if key in limits:
            limits[key] = UNLIMITED if int(value) < 0 else int(value)
    return limits[MAX_SEND_OPTION], limits[MAX_RECEIVE_OPTION]
