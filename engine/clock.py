"""Clocks: one that counts through a suspended machine, and the server's as far as it is known."""

import time

NANOS = 1_000_000_000

_BOOT = getattr(time, "CLOCK_BOOTTIME", None)

WINDOW = 60.0
"""Seconds for which a sample of the server's clock counts, at least; at most twice as long."""


def elapsed() -> float:
    """Seconds that go on while the machine sleeps, where there is such a clock: a lease is counted in them."""
    return time.clock_gettime(_BOOT) if _BOOT is not None else time.monotonic()


class ServerClock:
    """The server's time, never ahead of it.

    Each time stamp that comes from the server is a sample: when it arrived, the server's clock showed at least that.
    The greatest offset of the last minute is the best lower bound, so a timer counted by it is never early, by the
    server's own clock.
    """

    def __init__(self) -> None:
        self._offset: int | None = None
        self._previous: int | None = None
        self._since = elapsed()

    def observe(self, server_ns: int) -> None:
        """A time stamp of the server has just arrived."""
        now = elapsed()
        offset = server_ns - int(now * NANOS)
        if now - self._since > WINDOW:
            self._previous = self._offset if now - self._since <= 2 * WINDOW else None
            self._offset, self._since = None, now
        if self._offset is None or offset > self._offset:
            self._offset = offset

    def now_ns(self) -> int:
        """The server's time at least, nanoseconds since 1970."""
        known = [offset for offset in (self._offset, self._previous) if offset is not None]
        if not known:
            return time.time_ns()
        return int(elapsed() * NANOS) + max(known)
