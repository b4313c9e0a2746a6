"""Plain lines for a terminal or a pipe: no colours, no cursor movements, flushed one by one."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message_factory import GetMessageClass

from protos import hello_pb2, orders_pb2, payments_pb2, shipping_pb2

WIDTH = 100
_began = time.monotonic()

# While a run is under way its journal holds the services' answers as they came: bytes, of these types.
_RESPONSES = {
    f"{service.name}.{method.name}": method.output_type
    for protocol in (hello_pb2, orders_pb2, payments_pb2, shipping_pb2)
    for service in protocol.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


def title(text: str) -> None:
    """Begin a part of the story."""
    print(f"\n{text}", flush=True)


def line(text: str) -> None:
    """One event, with the seconds since the demo began."""
    print(shortened(f"{time.monotonic() - _began:6.1f} s  {text}"), flush=True)


def detail(text: str) -> None:
    """More about the event before."""
    print(shortened(f"          {text}"), flush=True)


def step(entry: Any) -> None:
    """One step of a journal, as `describe` returns it."""
    line(f"  step {entry.step}  {entry.name:<23}  {answer(entry)}")


def answer(entry: Any) -> str:
    """Return what a step came to."""
    if entry.error is not None:
        return f"{entry.error.code or entry.error.type}: {entry.error.message}"
    response = entry.response
    if entry.encoding == "base64" and entry.name in _RESPONSES:
        message = GetMessageClass(_RESPONSES[entry.name]).FromString(base64.b64decode(response))
        response = MessageToDict(message)
    if isinstance(response, dict):
        return ", ".join(f"{key} {value}" for key, value in response.items()) or "done"
    return "done" if response is None else json.dumps(response, default=str)


def shortened(text: str) -> str:
    """Cut a line to what an ordinary terminal shows."""
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."
