"""A method: names, types, cardinality. Pure."""

from dataclasses import dataclass, field

from mesh import subjects


@dataclass(frozen=True, slots=True)
class Method:
    """What protobuf says of a method, as far as it is known: type names are `""` where they are not."""

    service: str
    """Full service name, `pkg.Service`."""
    name: str
    request_type: str = ""
    response_type: str = ""
    client_streaming: bool = False
    server_streaming: bool = False
    path: str = field(init=False)
    """`pkg.Service/Method`, as in texts and metadata; gRPC's `:path` has a slash before it."""

    def __post_init__(self) -> None:
        subjects.check_service(self.service)
        subjects.check_method(self.name)
        object.__setattr__(self, "path", f"{self.service}/{self.name}")

    @property
    def is_unary(self) -> bool:
        """Whether one request has one reply."""
        return not (self.client_streaming or self.server_streaming)

    def endpoint_metadata(self) -> dict[str, str]:
        """What the services API says of it (M-B3)."""
        return {
            "proto.method": self.path,
            "proto.request": self.request_type,
            "proto.response": self.response_type,
            "proto.client_streaming": str(self.client_streaming).lower(),
            "proto.server_streaming": str(self.server_streaming).lower(),
        }
