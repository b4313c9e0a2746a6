"""Durations and sizes as people write them: `30s`, `1h30m`, `250ms`, `4MiB`."""

import re
from datetime import timedelta

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ms|[smhd])")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+")
_BYTES = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_BYTES |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", re.IGNORECASE)


def parse_duration(text: str) -> float:
    """Seconds. Units ms, s, m, h, d, each at most once and in any order; a bare number is seconds.

    Raises ValueError for anything else, a sign included.
    """
    text = text.strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    parts = _PART.findall(text)
    units = [unit for _, unit in parts]
    if not parts or "".join(map("".join, parts)) != text or len(set(units)) != len(units):
        raise ValueError(f"{text!r} is not a duration: expected 30s, 500ms, 1h30m or a number of seconds")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def format_duration(value: float | timedelta) -> str:
    """The shortest text that `parse_duration` reads back, rounded to milliseconds."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    milliseconds = round(seconds * 1000)
    text = ""
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, milliseconds = divmod(milliseconds, size)
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def parse_size(text: str) -> int:
    """Bytes. `4MiB` and `4M` are powers of 1,024, `4MB` is of 1,000, a bare number is bytes. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    factor = _BYTES.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is not a size: expected 4MiB, 512KiB or a number of bytes")
    return int(float(match[1]) * factor)
