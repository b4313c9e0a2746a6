"""Pulling from a durable consumer: as many messages as there is room for, and none that would only wait here.

One pull request is outstanding at a time, renewed before it is used up. It is withdrawn, by giving up its inbox, when
the last slot is taken. Heartbeats of the server tell a live pull from a lost one.
"""

import asyncio
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass

from engine import journal
from mesh import headers as header_block
from mesh.connection import Connection
from mesh.errors import NotConnectedError

logger = logging.getLogger("engine.pull")

EXPIRES = 30.0
MIN_EXPIRES = 2.0
HEARTBEAT = 5.0
"""Seconds between signs of life on an idle pull; two missed ones and it is made again."""
RETRY = 1.0
"""Seconds until a refused pull is tried again."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message of a consumer: where to answer, its stream sequence, how often it was delivered."""

    subject: str
    ack: str
    data: bytes
    headers: bytes
    sequence: int
    count: int
    time_ns: int


def read_delivery(ack: str, data: bytes, block: bytes, subject: str) -> Delivery:
    """A message as delivered; what is known of it stands in its acknowledgement subject (ADR-13).

    `$JS.ACK.<stream>.<consumer>.<count>.<stream seq>.<consumer seq>.<time>.<pending>`, or the longer form with domain
    and account.
    """
    tokens = ack.split(".")
    at = 4 if len(tokens) == 9 else 6
    return Delivery(
        subject, ack, data, block, sequence=int(tokens[at + 1]), count=int(tokens[at]), time_ns=int(tokens[at + 3])
    )


class Puller:
    """Keeps one consumer flowing into `deliver`, `room()` messages at most at a time."""

    def __init__(
        self,
        connection: Connection,
        stream: str,
        consumer: str,
        deliver: Callable[[Delivery], None],
        room: Callable[[], int],
        ack_wait: float = EXPIRES,
    ) -> None:
        self._connection = connection
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._name = f"{stream} > {consumer}"
        self._deliver = deliver
        self._room = room
        self._sid = 0
        self._inbox = ""
        # A process that is stopped, not dead, is given messages until its pull expires.
        self._expires = min(EXPIRES, max(ack_wait, MIN_EXPIRES))
        self._heartbeat = min(HEARTBEAT, self._expires * 0.4)
        self._outstanding = 0
        self._heard = 0.0
        self._retry_at = 0.0
        self._stopped = False

    def start(self) -> None:
        """Begin to pull."""
        self._listen()
        self.fill()

    def stop(self) -> None:
        """Withdraw what is outstanding; messages on their way come back after the consumer's ack_wait."""
        self._stopped = True
        self._withdraw()

    def restart(self) -> None:
        """Pull anew: the connection was lost, and the request with it."""
        if not self._stopped:
            self._withdraw()
            self.fill()

    def fill(self) -> None:
        """Ask for as many messages as there is room for and not yet asked for."""
        if self._stopped or not self._connection.is_connected:
            return
        room = self._room()
        if room <= 0:
            if self._outstanding > 0:
                self._withdraw()
            return
        if self._outstanding * 2 > room:
            return
        if asyncio.get_running_loop().time() < self._retry_at:
            return
        if not self._sid:
            self._listen()
        batch = room - self._outstanding
        body = b'{"batch":%d,"expires":%d,"idle_heartbeat":%d}' % (batch, self._expires * 1e9, self._heartbeat * 1e9)
        try:
            self._connection.publish(self._subject, body, reply=self._inbox)
        except NotConnectedError:
            return
        self._outstanding += batch
        self._heard = asyncio.get_running_loop().time()

    def tick(self, now: float) -> None:
        """Look after it: renew a pull whose heartbeats stay away."""
        if self._outstanding and now - self._heard > 2 * HEARTBEAT:
            self.restart()
        else:
            self.fill()

    def _listen(self) -> None:
        self._inbox = self._connection.new_inbox()
        self._sid = self._connection.subscribe(self._inbox, functools.partial(self._on_message, self._inbox))

    def _withdraw(self) -> None:
        if self._sid:
            self._connection.unsubscribe_later(self._sid)
        self._sid = 0
        self._outstanding = 0

    def _on_message(self, inbox: str, subject: str, reply: str, data: bytes, block: bytes) -> None:
        status = header_block.status(block)
        if inbox != self._inbox or self._stopped:  # of a request that was withdrawn
            if status == 0:
                self._deliver(read_delivery(reply, data, block, subject))
            return
        self._heard = asyncio.get_running_loop().time()
        if status == 0:
            self._outstanding -= 1
            self._deliver(read_delivery(reply, data, block, subject))
        elif status != 100:
            self._ended(status, block)
        if status != 100:
            self.fill()

    def _ended(self, status: int, block: bytes) -> None:
        """A pull request is over: expired (408), refused (409) or nobody took it (503)."""
        pending = journal.field(block, b"Nats-Pending-Messages")
        self._outstanding = max(0, self._outstanding - int(pending)) if pending.isdigit() else 0
        if status not in (404, 408):
            text = header_block.description(block)
            logger.warning("pull from %s ended: %s %s", self._name, status, text)
            self._outstanding = 0
            self._retry_at = asyncio.get_running_loop().time() + RETRY
