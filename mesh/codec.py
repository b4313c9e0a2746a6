"""Message <-> bytes, by Content-Type. Pure.

A codec is a few callables a message type; protobuf's own classes, betterproto's and plain bytes
all fit. Which one a method uses is decided once, when it is registered or first called.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.message import DecodeError, Message

PROTOBUF = "application/protobuf"
JSON = "application/json"
_PROTOBUF_TYPES = frozenset(
    {
        "",
        PROTOBUF,
        "application/x-protobuf",
        "application/vnd.google.protobuf",
        "application/proto",
        "application/grpc",
        "application/grpc+proto",
    }
)

Decoder = Callable[[bytes], Any]
Encoder = Callable[[Any], bytes]


class UnknownContentTypeError(ValueError):
    """A Content-Type that is neither protobuf's nor JSON's, or JSON where no types are known."""


@dataclass(frozen=True, slots=True)
class JsonCodec:
    """ProtoJSON of one method's types; raises ValueError for text that does not fit the type."""

    decode_request: Decoder
    encode_response: Encoder


def media_type(content_type: str) -> str:
    """The type without parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def is_json(content_type: str) -> bool:
    """Whether the body is ProtoJSON (True) or protobuf (False). Raises UnknownContentTypeError for others."""
    kind = media_type(content_type)
    if kind == JSON:
        return True
    if kind in _PROTOBUF_TYPES:
        return False
    raise UnknownContentTypeError(f"Content-Type {content_type[:100]!r} is neither {PROTOBUF} nor {JSON}")


def google_json(request: type[Message], response: type[Message]) -> JsonCodec:
    """ProtoJSON by google's json_format: unknown fields are errors, defaults are left out (M-D5)."""

    def decode(data: bytes) -> Message:
        message = request()
        try:
            json_format.Parse(data, message)
        except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(str(error)) from error
        return message

    def encode(message: Message) -> bytes:
        if not isinstance(message, response):
            raise TypeError(f"expected {response.DESCRIPTOR.full_name}, not {type(message).__name__}")
        return json_format.MessageToJson(message, indent=None).encode()

    return JsonCodec(decode, encode)


def type_name(function: Any) -> str:
    """The message type that a generated (de)serializer belongs to, for texts."""
    owner = getattr(function, "__self__", None)
    descriptor = getattr(owner, "DESCRIPTOR", None)
    name = getattr(descriptor, "full_name", "") or getattr(owner, "__name__", "")
    return str(name or getattr(function, "__qualname__", "") or "its type")


def is_decode_error(error: BaseException) -> bool:
    """Whether a decoder refused the bytes, as opposed to a fault in it."""
    return isinstance(error, (DecodeError, ValueError, EOFError))


def find_service(service: str) -> ServiceDescriptor | None:
    """The descriptor of a service whose generated code is imported in this process."""
    try:
        return descriptor_pool.Default().FindServiceByName(service)
    except KeyError:
        return None


def message_class(descriptor: Any) -> type[Message]:
    """The class of a message descriptor."""
    return message_factory.GetMessageClass(descriptor)


def json_of(method: MethodDescriptor) -> JsonCodec:
    """The ProtoJSON codec of a described method."""
    return google_json(message_class(method.input_type), message_class(method.output_type))


def descriptor_set(service: ServiceDescriptor) -> bytes:
    """A serialized FileDescriptorSet: the service's file and all it imports, imports first."""
    files: dict[str, Any] = {}

    def add(file: Any) -> None:
        if file.name in files:
            return
        for dependency in file.dependencies:
            add(dependency)
        proto = FileDescriptorProto()
        file.CopyToProto(proto)
        files[file.name] = proto

    add(service.file)
    return FileDescriptorSet(file=list(files.values())).SerializeToString(deterministic=True)
