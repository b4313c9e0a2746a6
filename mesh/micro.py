"""The services API (ADR-32): what a service answers on `$SRV.PING`, `INFO` and `STATS`. Pure.

Field by field as `nats micro` validates them: counters are integers, times nanoseconds,
`description` and `last_error` always strings, `metadata` always an object.
"""

import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from mesh import subjects
from mesh.errors import InvalidNameError

PING, INFO, STATS = "PING", "INFO", "STATS"
VERBS = (PING, INFO, STATS)
TYPES = {verb: f"io.nats.micro.v1.{verb.lower()}_response" for verb in VERBS}
DEFAULT_VERSION = "0.0.0"

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_VERSION = re.compile(  # semver.org's own expression; fullmatch, for `$` admits a line break
    r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    r"(?:-((?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(?:\.(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*))?"
    r"(?:\+([0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*))?",
    re.ASCII,
)


def check_name(name: str) -> str:
    """A service's or endpoint's name (ADR-32: `[A-Za-z0-9_-]+`); else InvalidNameError."""
    if not _NAME.fullmatch(name):
        raise InvalidNameError(f"{name[:200]!r} is not a name of the services API: [A-Za-z0-9_-]+")
    return name


def check_version(version: str) -> str:
    """A SemVer 2 version; else InvalidNameError."""
    if not _VERSION.fullmatch(version):
        raise InvalidNameError(f"{version[:200]!r} is not a SemVer version such as 1.0.0")
    return version


def new_id() -> str:
    """An id of one instance: 22 letters and digits, one subject token."""
    return secrets.token_hex(11)


def _now() -> datetime:
    return datetime.now(UTC)


def fault(verb: str, document: object) -> str:
    """What is wrong with somebody's answer to a verb, `""` if nothing is (ADR-32, jsm.go's schemas).

    What the ADR calls optional may be missing; `metadata` may be null.
    """
    if not isinstance(document, dict):
        return "not a JSON object"
    if document.get("type") != TYPES[verb]:
        return f"type is {document.get('type')!r:.80}, not {TYPES[verb]!r}"
    return _standard_fault(document) or (
        "" if verb == PING else _info_fault(document) if verb == INFO else _stats_fault(document)
    )


def _standard_fault(document: dict[str, Any]) -> str:
    for key, pattern in (("name", _NAME), ("id", None), ("version", _VERSION)):
        value = document.get(key)
        if not isinstance(value, str) or not value or (pattern is not None and not pattern.fullmatch(value)):
            return f"{key} is {value!r:.80}"
    return _metadata_fault(document.get("metadata"))


def _metadata_fault(metadata: object) -> str:
    if metadata is None:
        return ""
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        return "metadata is not an object of strings"
    return ""


def _endpoints(document: dict[str, Any]) -> list[Any]:
    found = document.get("endpoints")
    return [] if found is None else found if isinstance(found, list) else [None]


def _info_fault(document: dict[str, Any]) -> str:
    if not isinstance(document.get("description", ""), str):
        return "description is not a string"
    for endpoint in _endpoints(document):
        if not isinstance(endpoint, dict):
            return "endpoints is not a list of objects"
        for key in ("name", "subject"):
            if not isinstance(endpoint.get(key), str):
                return f"{key} of an endpoint is {endpoint.get(key)!r:.80}"
        if problem := _metadata_fault(endpoint.get("metadata")):
            return f"{problem} (endpoint {endpoint['name']!r:.80})"
    return ""


def _stats_fault(document: dict[str, Any]) -> str:
    for endpoint in _endpoints(document):
        if not isinstance(endpoint, dict):
            return "endpoints is not a list of objects"
        for key in ("name", "subject"):
            if not isinstance(endpoint.get(key), str):
                return f"{key} of an endpoint is {endpoint.get(key)!r:.80}"
        for key in ("num_requests", "num_errors", "processing_time", "average_processing_time"):
            value = endpoint.get(key)
            if not isinstance(value, int) or isinstance(value, bool):
                return f"{key} of endpoint {endpoint['name']!r:.80} is {value!r:.80}, not an integer"
    return ""


class EndpointStats:
    """Counters of one endpoint. Plain attributes, since every request writes to them."""

    __slots__ = (
        "expired", "in_flight", "last_error", "malformed", "num_errors", "num_requests",
        "processing_time_ns", "rejected",
    )  # fmt: skip

    def __init__(self) -> None:
        self.in_flight = 0
        self.reset()

    def reset(self) -> None:
        """Zero, but for what is in flight."""
        self.num_requests = 0
        self.num_errors = 0
        self.last_error = ""
        self.processing_time_ns = 0
        self.rejected = 0
        self.expired = 0
        self.malformed = 0

    def data(self) -> dict[str, int]:
        """What STATS shows under `data` (M-D7)."""
        return {
            "in_flight": self.in_flight,
            "rejected": self.rejected,
            "expired": self.expired,
            "malformed": self.malformed,
        }


@dataclass(slots=True)
class EndpointInfo:
    """One endpoint as others see it, and its counters."""

    name: str
    subject: str
    queue_group: str
    metadata: dict[str, str] = field(default_factory=dict)
    stats: EndpointStats = field(default_factory=EndpointStats)
    extra: Callable[[], Any] | None = None
    """Called for STATS' `data`; its failure leaves `data` out and nothing else (ADR-32)."""

    def __post_init__(self) -> None:
        check_name(self.name)

    def info(self) -> dict[str, Any]:
        """As in INFO."""
        return {
            "name": self.name,
            "subject": self.subject,
            "queue_group": self.queue_group,
            "metadata": dict(self.metadata),
        }

    def stats_answer(self) -> dict[str, Any]:
        """As in STATS."""
        stats = self.stats
        requests = stats.num_requests
        answer = {
            "name": self.name,
            "subject": self.subject,
            "queue_group": self.queue_group,
            "num_requests": requests,
            "num_errors": stats.num_errors,
            "last_error": stats.last_error,
            "processing_time": stats.processing_time_ns,
            "average_processing_time": stats.processing_time_ns // requests if requests else 0,
        }
        try:
            answer["data"] = self.extra() if self.extra else stats.data()
            json.dumps(answer["data"])
        except Exception:  # noqa: BLE001  # a user's stats handler must not silence the answer (ADR-32)
            answer.pop("data", None)
        return answer


@dataclass(slots=True)
class ServiceInfo:
    """One instance of a service as others see it."""

    name: str
    version: str = DEFAULT_VERSION
    description: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    id: str = field(default_factory=new_id)
    endpoints: list[EndpointInfo] = field(default_factory=list)
    started: datetime = field(default_factory=_now)

    def __post_init__(self) -> None:
        check_name(self.name)
        check_version(self.version)

    def control_subjects(self, verb: str) -> list[str]:
        """Where this instance answers a verb: all, by name, by id. None of them in a queue group."""
        return [
            subjects.services_api(verb),
            subjects.services_api(verb, self.name),
            subjects.services_api(verb, self.name, self.id),
        ]

    def answer(self, verb: str) -> bytes:
        """The JSON document for PING, INFO or STATS."""
        document: dict[str, Any] = {
            "type": TYPES[verb],
            "name": self.name,
            "id": self.id,
            "version": self.version,
            "metadata": dict(self.metadata),
        }
        if verb == INFO:
            document["description"] = self.description
            document["endpoints"] = [endpoint.info() for endpoint in self.endpoints]
        elif verb == STATS:
            document["started"] = self.started.isoformat(timespec="microseconds").replace("+00:00", "Z")
            document["endpoints"] = [endpoint.stats_answer() for endpoint in self.endpoints]
        return json.dumps(document, ensure_ascii=False).encode()

    def reset(self) -> None:
        """Zero all counters; `started` becomes now."""
        for endpoint in self.endpoints:
            endpoint.stats.reset()
        self.started = _now()
