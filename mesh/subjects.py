"""Service, method and cluster <-> NATS subject. Pure; the one place that builds a subject of the mesh.

    [<cluster>.]<prefix>.<full service name>.<Method>                 requests, queue group
    [<cluster>.]<prefix>.<full service name>.<Method>._call           questions about a call in flight,
                                                                       to every instance (M-C4)
    [<cluster>.]<prefix>.<full service name>.<Method>._s.<token>      frames of streams, to one instance
    [<cluster>.]<prefix>.<full service name>._mesh.<question>         questions to the service, queue group
    $SRV.<VERB>[.<name>[.<id>]]                                       the services API (ADR-32)

Everything of a service lies beneath `<prefix>.<full service name>.>`: permissions, imports and
leafnodes that carry its methods carry its questions too.
"""

import re

from mesh.errors import InvalidNameError

DEFAULT_PREFIX = "svc"
DEFAULT_QUEUE_GROUP = "q"
CALL_TOKEN = "_call"
"""Last token of the subject of questions about a call. Methods are letters, digits and `_`; one
named so would be another method's questions, so it is refused."""
MESH_TOKEN = "_mesh"
"""Token beneath a service for questions to it; refused as the name of a method."""
SESSION_TOKEN = "_s"
"""Token beneath a method, before the token of the instance that has the session."""
METHODS_QUESTION = "methods"
DESCRIPTOR_QUESTION = "descriptor"
SERVICES_API = "$SRV"

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SERVICE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")
_TOKEN = re.compile(r"[A-Za-z0-9_-]+")
_TOKENS = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_QUEUE_GROUP = re.compile(r"[^\s.*>]+(?:\.[^\s.*>]+)*")
MAX_SUBJECT_BYTES = 1024
"""The server drops a connection that names a subject over 4 KB (`max_control_line`); ours stay far below."""


def check_service(service: str) -> str:
    """The full service name, if it is one of protobuf's; else InvalidNameError."""
    if not _SERVICE.fullmatch(service) or len(service) > MAX_SUBJECT_BYTES // 2:
        raise InvalidNameError(f"{service[:200]!r} is not a protobuf service name such as pkg.Service")
    return service


def check_method(method: str) -> str:
    """The method's name, if it is one of protobuf's and not ours; else InvalidNameError."""
    if not _IDENTIFIER.fullmatch(method) or len(method) > MAX_SUBJECT_BYTES // 4:
        raise InvalidNameError(f"{method[:200]!r} is not the name of a protobuf method")
    if method in (CALL_TOKEN, MESH_TOKEN):
        raise InvalidNameError(f"{method!r} is reserved: the mesh asks its questions there")
    return method


def check_prefix(prefix: str) -> str:
    """A prefix of method subjects: tokens of letters, digits, `-` and `_`; else InvalidNameError."""
    if not _TOKENS.fullmatch(prefix) or len(prefix) > MAX_SUBJECT_BYTES // 8:
        raise InvalidNameError(f"{prefix[:200]!r} is not a subject prefix such as 'svc' or 'svc-v2'")
    return prefix


def check_cluster(cluster: str) -> str:
    """A cluster's name, one token of letters, digits, `-` and `_` (M-H3); else InvalidNameError."""
    if not _TOKEN.fullmatch(cluster) or len(cluster) > 128:
        raise InvalidNameError(f"{cluster!r:.200} is not the name of a cluster: one token of A-Za-z0-9_-")
    return cluster


def check_queue_group(queue_group: str) -> str:
    """A queue group, `""` for none; else InvalidNameError."""
    if queue_group and not _QUEUE_GROUP.fullmatch(queue_group):
        raise InvalidNameError(f"{queue_group[:200]!r} is not a queue group: no spaces, '*' or '>'")
    return queue_group


def service_subject(service: str, prefix: str = DEFAULT_PREFIX, cluster: str | None = None) -> str:
    """What all subjects of a service begin with. Raises InvalidNameError."""
    subject = f"{check_prefix(prefix)}.{check_service(service)}"
    return subject if cluster is None else f"{check_cluster(cluster)}.{subject}"


def method_subject(service: str, method: str, prefix: str = DEFAULT_PREFIX, cluster: str | None = None) -> str:
    """Where a method takes its requests. Raises InvalidNameError for anything that is not a name."""
    return f"{service_subject(service, prefix, cluster)}.{check_method(method)}"


def call_subject(subject: str) -> str:
    """Where questions about a call to the method at `subject` are asked."""
    return f"{subject}.{CALL_TOKEN}"


def session_subject(subject: str, token: str) -> str:
    """Where the instance known by `token` takes the frames of its sessions with the method at `subject`."""
    return f"{subject}.{SESSION_TOKEN}.{token}"


def question_subject(service_at: str, question: str) -> str:
    """Where a service is asked something: `service_at` is its `service_subject`."""
    return f"{service_at}.{MESH_TOKEN}.{question}"


def services_api(verb: str, name: str = "", id: str = "", cluster: str | None = None) -> str:  # noqa: A002
    """`$SRV.<VERB>[.<name>[.<id>]]` (ADR-32), of another cluster behind its prefix. Raises InvalidNameError."""
    tokens = [SERVICES_API, verb] + ([check_api_name(name)] if name else [])
    if id:
        tokens.append(check_api_name(id))
    if cluster is not None:
        tokens.insert(0, check_cluster(cluster))
    return ".".join(tokens)


def check_api_name(name: str) -> str:
    """A name of the services API: `[A-Za-z0-9_-]+` (ADR-32); else InvalidNameError."""
    if not _TOKEN.fullmatch(name) or len(name) > MAX_SUBJECT_BYTES // 4:
        raise InvalidNameError(f"{name[:200]!r} is not a service name or id: [A-Za-z0-9_-]+")
    return name


def split_method(text: str) -> tuple[str, str]:
    """`pkg.Service/Method`, `/pkg.Service/Method` or `pkg.Service.Method` as (service, method).

    The service may be short. Raises InvalidNameError (M-A2).
    """
    name = text.removeprefix("/")
    service, slash, method = name.rpartition("/")
    if not slash:
        service, _, method = name.rpartition(".")
    if not service:
        raise InvalidNameError(f"{text[:200]!r} is not a method: expected Service/Method or pkg.Service/Method")
    return check_service(service), check_method(method)


def short_name(service: str) -> str:
    """The name without its package: what the services API calls the service (M-B3)."""
    return service.rpartition(".")[2]


def package(service: str) -> str:
    """The package of a full service name, `""` without one."""
    return service.rpartition(".")[0]
