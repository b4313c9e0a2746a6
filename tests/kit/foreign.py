"""FOREIGN: services written with a bare nats-py subscription, which know nothing of us.

They live in the test's own process, so that a test can answer each request by hand, in the
order that it wants, and sees every request that arrived with all its headers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Self

from tests.kit.ledger import until

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription


class Request:
    """One request as it arrived; answered by `respond` or `fail`, at any time, or never."""

    def __init__(self, client: Client, message: Msg) -> None:
        self._client = client
        self.subject: str = message.subject
        self.reply: str = message.reply
        self.data: bytes = message.data
        self.headers: Mapping[str, str] = dict(message.headers or {})
        self.at = time.monotonic()
        self.answered = False

    @property
    def key(self) -> str:
        """The idempotency key that it carries."""
        return self.headers.get("Idempotency-Key", "")

    @property
    def run(self) -> int:
        """The run number, the fencing token; 0 where there is none."""
        return int(self.header("mesh-run") or 0)

    def header(self, metadata_key: str) -> str:
        """A header of ours by its metadata name, whichever way it is written on the wire."""
        wanted = {metadata_key.lower(), f"grpc-metadata-{metadata_key}".lower()}
        return next((value for name, value in self.headers.items() if name.lower() in wanted), "")

    async def respond(self, data: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """Publish the answer and wait until the server has it."""
        self.answered = True
        if self.reply:
            await self._client.publish(self.reply, data, headers=headers)
            await self._client.flush()

    async def fail(self, code: int, text: str, **headers: str) -> None:
        """Publish an error reply as ADR-32 has it."""
        await self.respond(b"", {"Nats-Service-Error-Code": str(code), "Nats-Service-Error": text, **headers})


Handler = Callable[[Request], Awaitable[None]]


async def silence(request: Request) -> None:
    """Never answer; the test may do so later by the request itself."""


def echo(prefix: bytes = b"") -> Handler:
    """Answer with the request's own bytes."""

    async def handler(request: Request) -> None:
        await request.respond(prefix + request.data)

    return handler


def script(*handlers: Handler) -> Handler:
    """One handler after the other, the last for all that follow."""
    left = list(handlers)

    async def handler(request: Request) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(request)

    return handler


class Foreign:
    """One endpoint. Requests are handled side by side and kept in `requests` in order of arrival."""

    def __init__(self, client: Client, subject: str, handler: Handler = silence, *, queue: str = "q") -> None:
        self._client = client
        self._subject = subject
        self._queue = queue
        self._subscription: Subscription | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.handler = handler
        self.requests: list[Request] = []

    async def start(self) -> Self:
        """Subscribe; active at the server when this returns."""
        self._subscription = await self._client.subscribe(self._subject, queue=self._queue, cb=self._on_request)
        await self._client.flush()
        return self

    async def stop(self) -> None:
        """Leave the queue group: callers find nobody."""
        if self._subscription is not None:
            await self._subscription.unsubscribe()
            await self._client.flush()
            self._subscription = None
        for task in list(self._tasks):
            task.cancel()

    async def _on_request(self, message: Msg) -> None:
        request = Request(self._client, message)
        self.requests.append(request)
        task = asyncio.create_task(self._handle(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, request: Request) -> None:
        await self.handler(request)

    async def wait_for(self, count: int = 1, timeout: float = 20.0) -> list[Request]:
        """Wait until that many requests have arrived in all."""
        await until(
            lambda: len(self.requests) >= count,
            timeout=timeout,
            what=lambda: f"{count} requests to {self._subject}, {len(self.requests)} came",
        )
        return self.requests

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
