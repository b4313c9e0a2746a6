"""3WAY: whoever is asked about an invocation must say the same. For now the product's client and RAW."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from engine import Client
from engine.durable_pb2 import ExecutionState
from tests.kit.raw import Raw

FINAL = frozenset({"completed", "failed", "cancelled"})


@dataclass(frozen=True, slots=True)
class Seen:
    """What all agreed on."""

    status: str
    result: Any
    error_type: str
    error_message: str
    record: ExecutionState


async def agreement(client: Client, raw: Raw, invocation: str) -> Seen:
    """Ask the client and read the store; AssertionError where they differ. For runs that have a record."""
    described = await client.handle(invocation).describe()
    record = await raw.record(invocation)
    stored = await raw.stored_record(invocation)
    assert record is not None, f"{invocation} has no record"
    assert stored is not None
    assert described.status == record.status, f"client {described.status}, store {record.status}"
    assert described.workflow == record.handler
    assert stored.headers["Mesh-Status"] == record.status, stored.headers
    assert stored.headers["Mesh-Workflow"] == record.handler, stored.headers
    result = msgspec.json.decode(record.result) if record.result else None
    assert described.result == result, f"client {described.result!r}, store {result!r}"
    error = record.error if record.HasField("error") else None
    assert (described.error is None) == (error is None)
    if error is not None and described.error is not None:
        assert (described.error.type, described.error.message) == (error.type, error.message)
    if record.status in FINAL:
        assert [entry.step for entry in described.journal] == [entry.step_number for entry in record.journal]
    return Seen(record.status, result, error.type if error else "", error.message if error else "", record)
