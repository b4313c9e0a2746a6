"""What the reference services do besides their work: count their executions, and take their time.

Two environment variables, read at each call:

    SERVICES_LEDGER  a file to which each execution appends one line, a JSON object with the keys
                     `time` (Unix seconds), `pid`, `method` and `key` (the idempotency key that the
                     caller sent, or ""); several processes may share the file
    SERVICES_PACE    seconds that each execution takes, so that people can watch; default 0

The line is written when the execution begins: a service that is killed in mid-call has counted it.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc.aio

FILE_VARIABLE = "SERVICES_LEDGER"
PACE_VARIABLE = "SERVICES_PACE"


class Execution(NamedTuple):
    """One execution of a method, as a line of the ledger has it."""

    time: float
    pid: int
    method: str
    key: str


async def execute(method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """Note one execution of `method`, then take as long as the environment says."""
    append(method, idempotency_key(context))
    pace = float(os.environ.get(PACE_VARIABLE, "0"))
    if pace > 0:
        await asyncio.sleep(pace)


def idempotency_key(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """Return the key that is the same for all attempts of one durable step; "" for a plain call."""
    for key, value in context.invocation_metadata() or ():
        if key == "idempotency-key":
            return value.decode() if isinstance(value, bytes) else value
    return ""


def append(method: str, key: str) -> None:
    """Append one line, whole and at once: O_APPEND keeps the lines of several processes apart."""
    path = os.environ.get(FILE_VARIABLE)
    if not path:
        return
    line = json.dumps(Execution(time.time(), os.getpid(), method, key)._asdict()) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def read(path: Path) -> Iterator[Execution]:
    """Yield the executions of a ledger file in order; none if nothing was executed yet."""
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        yield Execution(**json.loads(line))
