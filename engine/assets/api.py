"""JetStream's management API, as far as we use it."""

import asyncio
import json
import random
from typing import Any

from engine.errors import StoreError, UnavailableError
from mesh import headers
from mesh.connection import Connection
from mesh.errors import NoRespondersError, NotConnectedError, PermissionDeniedError

NOT_FOUND = {10059, 10014, 10037}
"""Stream, consumer, message."""
EXISTS = {10058, 10148, 10013}
"""Stream with another configuration, consumer with another one, durable in use."""
NO_ROOM = 10047
OVERLAP = 10065
NO_PEERS = 10005
TOO_MANY_REPLICAS = {10074, NO_PEERS}
"""Not clustered; not so many servers, or not yet."""
TRANSIENT = {10007, 10008, 10009}
"""No leader at the moment, or its peers are not there yet."""

CALL_TIMEOUT = 15.0
"""Seconds for one request and its repetitions; long enough for a cluster that is just starting."""
_ATTEMPT_TIMEOUT = 5.0
_NO_RESPONDERS_ATTEMPTS = 5


class ApiError(StoreError):
    """The API answered with an error; `err_code` is its number in JetStream's own list."""

    def __init__(self, subject: str, error: dict[str, Any]) -> None:
        self.err_code = int(error.get("err_code", 0))
        self.description = str(error.get("description", "unknown error"))
        advice = ": free disk space, or raise JetStream's max_file" if self.err_code == NO_ROOM else ""
        super().__init__(f"{subject}: {self.description} ({self.err_code}){advice}", subject.rpartition(".")[2])


class Api:
    """Requests that are repeated where that may help, and whose refusals by permission are errors at once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: dict[str, set[asyncio.Future[bytes]]] = {}
        connection.on_permission_error(self._denied)

    async def call(self, what: str, body: dict[str, Any] | None = None, *, timeout: float = CALL_TIMEOUT) -> Any:
        """The document that `$JS.API.<what>` answers.

        Raises ApiError, mesh.PermissionDeniedError; StoreError where there is no JetStream; UnavailableError after
        `timeout` seconds.
        """
        return await self.ask(f"$JS.API.{what}", b"" if body is None else json.dumps(body).encode(), timeout=timeout)

    async def ask(
        self, subject: str, payload: bytes = b"", *, block: bytes = b"", timeout: float = CALL_TIMEOUT
    ) -> Any:
        """The same on any subject that JetStream answers: a publish, too, that may safely be repeated."""
        problem: Exception | None = None
        attempts_unheard = 0
        try:
            async with asyncio.timeout(timeout):
                while True:
                    try:
                        return await self._once(subject, payload, block)
                    except ApiError as error:
                        if error.err_code not in TRANSIENT:
                            raise
                        problem = error
                    except NoRespondersError as error:
                        attempts_unheard += 1
                        if attempts_unheard == _NO_RESPONDERS_ATTEMPTS:
                            raise _no_jetstream(subject) from error
                    except (NotConnectedError, TimeoutError) as error:
                        problem = error
                    await asyncio.sleep(random.uniform(0.05, 0.2))  # noqa: S311  # spread, not secret
        except TimeoutError as error:
            reason = problem or "no answer"
            raise UnavailableError(f"{subject}: JetStream does not answer within {timeout:g} s: {reason}") from error

    async def _once(self, subject: str, payload: bytes, block: bytes) -> Any:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def answered(data: bytes, answer_block: bytes) -> None:
            if future.done():
                return
            if headers.is_no_responders(answer_block):
                future.set_exception(NoRespondersError(subject))
            else:
                future.set_result(data)

        token = self._connection.request(subject, payload, answered, headers=block)
        self._waiting.setdefault(subject, set()).add(future)
        try:
            async with asyncio.timeout(_ATTEMPT_TIMEOUT):
                document = json.loads(await future)
        finally:
            self._connection.forget(token)
            self._forget(subject, future)
        if "error" in document:
            raise ApiError(subject, document["error"])
        return document

    def _forget(self, subject: str, future: asyncio.Future[bytes]) -> None:
        waiting = self._waiting[subject]
        waiting.discard(future)
        if not waiting:
            del self._waiting[subject]

    def _denied(self, operation: str, subject: str) -> None:
        for future in self._waiting.get(subject, ()):
            if not future.done():
                future.set_exception(PermissionDeniedError(operation, subject))


def _no_jetstream(subject: str) -> StoreError:
    if subject.startswith("$JS.API."):
        return StoreError(
            "there is no JetStream for this user: start nats-server with -js, or enable it for the account"
        )
    return StoreError(f"no stream captures {subject}: run `mesh init`")
