"""Users' values to and from the bytes that are stored: inputs, results, values of steps. Pure.

    bytes                   application/octet-stream
    a protobuf message      application/protobuf; type=<full name>
    anything else           application/json: what msgspec handles (dataclass, Struct, TypedDict,
                            datetime, containers …), and in it or alone pydantic models

The content type is stored beside the bytes, so that a value can be read without the code that
made it. No value at all (a workflow started without an input) is `NOTHING`: no bytes and no
type, which decodes to None.
"""

import base64
import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.message import DecodeError as ProtobufDecodeError
from google.protobuf.message import Message

from engine.errors import DecodeError, EncodeError

JSON = "application/json"
PROTOBUF = "application/protobuf"
BYTES = "application/octet-stream"


class Payload(NamedTuple):
    """A value as it is stored."""

    data: bytes
    type: str


NOTHING = Payload(b"", "")
"""No value."""

_Decode = Callable[[bytes], Any]


# --- to bytes


def encode(value: Any, what: str = "value") -> Payload:
    """The stored form of a value. `what` says whose it is, for the error.

    Equal values have equal bytes in every process: sets are sorted, and so are the keys of dicts.
    Raises EncodeError, naming the value's type.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        return Payload(bytes(value), BYTES)
    try:
        if isinstance(value, Message):
            return Payload(value.SerializeToString(deterministic=True), message_type(type(value)))
        if _is_betterproto(type(value)):
            return Payload(bytes(value), message_type(type(value)))
        return Payload(_encode_json(value), JSON)
    except Exception as error:  # from the value's own code as well: __iter__, a model's serializer
        raise EncodeError(what, _part_name(value, error), str(error)) from error


def _encode_json(value: object) -> bytes:
    try:
        return _sorting.encode(value)
    except TypeError:
        # Sorting wants keys that are strings and members that compare. What fails for another
        # reason fails again here.
        return _plain.encode(value)


def _encode_part(value: Any) -> Any:
    """What JSON cannot carry by itself: models and messages. Called by msgspec for parts, too."""
    cls = type(value)
    if isinstance(value, Message):
        return json_format.MessageToDict(value)
    if _is_betterproto(cls):
        return value.to_dict()
    if _is_pydantic(cls):
        return value.model_dump(mode="json", by_alias=True)
    raise _NotEncodableError(type_name(cls))


class _NotEncodableError(TypeError):
    def __str__(self) -> str:
        return f"no JSON form of {self.args[0]}; use a dataclass, a message, a model or builtins"


_sorting = msgspec.json.Encoder(enc_hook=_encode_part, order="deterministic")
_plain = msgspec.json.Encoder(enc_hook=_encode_part)


def _part_name(value: object, error: Exception) -> str:
    whole = type_name(type(value))
    if isinstance(error, _NotEncodableError) and error.args[0] != whole:
        return f"{whole} containing {error.args[0]}"
    return whole


# --- from bytes


def decode(data: bytes, content_type: str, target: Any = Any, what: str = "value") -> Any:
    """The value of type `target` (a class or any type hint; Any: builtins, bytes or the message).

    Raises DecodeError, which says what type was wanted and where in the value it goes wrong.
    """
    try:
        return _decoder(content_type, target)(data)
    except DecodeError:
        raise
    except (ValueError, TypeError, RecursionError, ProtobufDecodeError) as error:
        raise DecodeError(what, type_name(target), _reason(error)) from error
    except Exception as error:  # from a type's own code: __post_init__, a betterproto parser
        raise DecodeError(what, type_name(target), f"{type(error).__name__}: {error}") from error


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _decoder(content_type: str, target: Any) -> _Decode:
    try:
        return _cached_decoder(content_type, target)
    except TypeError:  # a hint that cannot be hashed, as Annotated[int, [1]]
        return _make_decoder(content_type, target)


def _make_decoder(content_type: str, target: Any) -> _Decode:
    media, parameters = _split(content_type)
    if media == PROTOBUF:
        return _protobuf_decoder(parameters.get("type", ""), target)
    if media == BYTES:
        return _bytes_decoder(target)
    if media in {JSON, ""}:
        decoder = _json_decoder(target)
        return decoder if media else lambda data: decoder(data) if data else None
    reason = f"its content type {content_type!r} is not known"
    return _failing(reason)


_cached_decoder = lru_cache(maxsize=4096)(_make_decoder)


def _split(content_type: str) -> tuple[str, dict[str, str]]:
    media, *rest = content_type.split(";")
    pairs = (part.partition("=") for part in rest)
    return media.strip().lower(), {key.strip().lower(): value.strip() for key, _, value in pairs}


def _json_decoder(target: Any) -> _Decode:
    cls = _class(target)
    if _is_message(cls):
        return lambda data: json_format.Parse(data, cls())
    if _is_betterproto(cls):
        return lambda data: cls().from_json(data.decode())
    decoder: _Decode
    if _is_pydantic(cls):
        decoder = cls.model_validate_json
    else:
        decoder = msgspec.json.Decoder(target, dec_hook=_decode_part).decode
    return decoder


def _decode_part(target: Any, value: Any) -> Any:
    """The reverse of `_encode_part`."""
    if _is_message(target):
        return json_format.ParseDict(value, target())
    if _is_betterproto(target):
        return target().from_dict(value)
    if _is_pydantic(target):
        return target.model_validate(value)
    raise TypeError(f"no value of {type_name(target)} can be made from JSON")


def _bytes_decoder(target: Any) -> _Decode:
    decoder: _Decode = bytes if target is Any else target
    if decoder in {bytes, bytearray, memoryview}:
        return decoder
    return _failing("it is bytes")


def _protobuf_decoder(full_name: str, target: Any) -> _Decode:
    if target is Any:
        target = message_class(full_name) or bytes
    if target is bytes:
        return bytes
    cls = _class(target)
    if not (_is_message(cls) or _is_betterproto(cls)):
        return _failing(f"it is a protobuf message of type {full_name}")
    wanted = message_type(cls).partition("type=")[2]
    if full_name and wanted and full_name != wanted:
        return _failing(f"it is a protobuf message of type {full_name}, not {wanted}")
    decoder: _Decode = cls.FromString
    return decoder


def _failing(reason: str) -> _Decode:
    def fail(_data: bytes) -> Any:
        raise TypeError(reason)

    return fail


# --- for people


def to_json(data: bytes, content_type: str) -> tuple[Any, bool]:
    """The value as JSON can carry it, and whether that is base64 text.

    That it is for bytes, and for what cannot be decoded: messages whose type is not known here.
    """
    try:
        value = decode(data, content_type)
        if isinstance(value, Message):
            return json_format.MessageToDict(value), False
    except (DecodeError, json_format.Error):
        value = data
    if isinstance(value, bytes):
        return base64.b64encode(value).decode(), True
    return value, False


def from_text(text: str) -> Payload:
    """JSON that somebody typed, as a payload. Raises DecodeError where it is not JSON."""
    try:
        json.loads(text)
    except ValueError as error:
        hint = f"{error}; a text stands in quotes, as '\"{text}\"'" if text[:1].isalpha() else str(error)
        raise DecodeError("text", "JSON", hint) from error
    return Payload(text.encode(), JSON)


# --- about types


def message_type(cls: Any) -> str:
    """The content type of a message class; without a name for betterproto, which keeps none."""
    descriptor = getattr(cls, "DESCRIPTOR", None)
    name = getattr(descriptor, "full_name", "")
    return f"{PROTOBUF}; type={name}" if name else PROTOBUF


def message_class(full_name: str) -> type[Message] | None:
    """The class of a message type whose generated module has been imported, else None."""
    try:
        descriptor = descriptor_pool.Default().FindMessageTypeByName(full_name)
    except KeyError:
        return None
    return message_factory.GetMessageClass(descriptor)


def type_name(target: Any) -> str:
    """A type's or hint's name for a message: `int`, `list[Order]`."""
    return target.__qualname__ if isinstance(target, type) and not hasattr(target, "__args__") else str(target)


def _class(target: Any) -> Any:
    """The target if it is a class, else None: `list[int]` is none."""
    return target if isinstance(target, type) and not hasattr(target, "__args__") else None


def _is_message(cls: Any) -> bool:
    return cls is not None and issubclass(cls, Message)


def _is_betterproto(cls: Any) -> bool:
    return hasattr(cls, "_betterproto") and hasattr(cls, "FromString")


def _is_pydantic(cls: Any) -> bool:
    # By its marks, so that pydantic need not be imported, nor installed.
    return hasattr(cls, "__pydantic_validator__") and hasattr(cls, "model_validate_json")
