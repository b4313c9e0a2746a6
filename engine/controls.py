"""Controls: what clients ask of a run, published to its journal's shard beside the slots. Pure.

A control is stored once, under a request id drawn by whoever asks and kept over retries. It has no place in the order
of a run's inputs until the run's owner gives it one: the slot `in.<k>` says "all controls up to sequence X", and live
and in replay alike they are delivered when that entry is fed (protocol H11).
"""

import grpc

from engine import journal, names
from engine.model import Control
from mesh import headers as header_block
from mesh.metadata import encode_message

NAME_HEADER = "Mesh-Name"
"""Which signal it is."""
TOKEN_HEADER = "Mesh-Request"
"""Random for each request: whether a control that stands where ours should is our own."""


def read_control(subject: str, sequence: int, time_ns: int, data: bytes, block: bytes) -> Control | None:
    """A message of a shard as read, as a control; None where its subject is none. Whoever wrote it, never raises."""
    parsed = names.parse_control(subject)
    if parsed is None:
        return None
    found = header_block.parse(block) if b"Mesh-" in block else {}
    return Control(
        sequence,
        time_ns,
        subject,
        parsed.kind,
        parsed.request,
        found.get(NAME_HEADER, ""),
        found.get(journal.TYPE_HEADER, ""),
        data,
        block,
    )


def rejection_headers(reason: str) -> dict[str, str]:
    """What makes a control a rejection: in ADR-32's words, with the text unchanged beside them."""
    return {
        "Nats-Service-Error-Code": "409",
        "Nats-Service-Error": reason,
        "Grpc-Status": str(grpc.StatusCode.ABORTED.value[0]),
        "Grpc-Message": encode_message(reason),
    }
