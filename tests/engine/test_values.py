"""What users hand in comes back as it was, or is refused with the type and the place that is wrong."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import threading
import typing
import uuid
from typing import Any, Literal, TypedDict

import msgspec
import pydantic
import pytest
from google.protobuf import timestamp_pb2, wrappers_pb2

from engine import values
from engine.errors import DecodeError, EncodeError
from protos import hello_pb2


@dataclasses.dataclass
class Item:
    name: str
    price: decimal.Decimal
    tags: set[str] = dataclasses.field(default_factory=set)


class Order(msgspec.Struct):
    items: list[Item]
    at: dt.datetime | None = None


class Options(TypedDict, total=False):
    fast: bool


class Colour(enum.Enum):
    RED = "red"


class Customer(pydantic.BaseModel):
    name: str = pydantic.Field(alias="customerName")
    age: int = 0


ROUND_TRIPS: list[Any] = [
    (None, None),
    ("hi", str),
    ("", str),
    (0, int),
    (-(2**62), int),
    (1.5, float),
    (True, bool),
    (b"\x00\xff", bytes),
    (b"", bytes),
    ([1, [2, []]], list[Any]),
    ({"b": 1, "a": {"c": None}}, dict[str, Any]),
    ({1: "one", 2: "two"}, dict[int, str]),
    ((1, "a"), tuple[int, str]),
    pytest.param({"x", "y"}, set[str], id="set"),
    (Order([Item("pen", decimal.Decimal("1.50"), {"a", "b"})], dt.datetime(2026, 1, 2, tzinfo=dt.UTC)), Order),
    (Item("pen", decimal.Decimal(1)), Item),
    (Options(fast=True), Options),
    (Colour.RED, Colour),
    (uuid.UUID(int=7), uuid.UUID),
    (dt.timedelta(seconds=3), dt.timedelta),
    (Customer(customerName="Ada", age=36), Customer),
    ([Customer(customerName="Ada")], list[Customer]),
    (hello_pb2.HelloRequest(name="Ada"), hello_pb2.HelloRequest),
    (hello_pb2.HelloRequest(), hello_pb2.HelloRequest),
    ({"one": hello_pb2.HelloRequest(name="Ada")}, dict[str, hello_pb2.HelloRequest]),
    (None, str | None),
    ("x", Literal["x", "y"]),
]


@pytest.mark.parametrize(("value", "target"), ROUND_TRIPS, ids=lambda part: values.type_name(part)[:40])
def test_a_value_comes_back_as_it_was(value: Any, target: Any) -> None:
    payload = values.encode(value)
    assert values.decode(payload.data, payload.type, target) == value
    assert values.decode(payload.data, payload.type, target) == value  # again, by the kept decoder


def test_no_value_is_none_whatever_is_asked_for() -> None:
    for target in (Any, str, Order, None):
        assert values.decode(*values.NOTHING, target) is None


def test_content_types_say_what_is_stored() -> None:
    assert values.encode({"a": 1}).type == "application/json"
    assert values.encode(bytearray(b"x")).type == "application/octet-stream"
    assert values.encode(hello_pb2.HelloRequest()).type == "application/protobuf; type=hello.HelloRequest"


def test_equal_values_have_equal_bytes() -> None:
    assert values.encode({"a": 1, "b": {"y", "x", "z"}}).data == b'{"a":1,"b":["x","y","z"]}'
    assert values.encode({"b": 1, "a": 2}) == values.encode({"a": 2, "b": 1})


def test_without_a_type_json_becomes_builtins_bytes_stay_and_known_messages_are_made() -> None:
    assert values.decode(b'{"a":[1]}', "application/json") == {"a": [1]}
    assert values.decode(b"\x00", "application/octet-stream") == b"\x00"
    payload = values.encode(hello_pb2.HelloRequest(name="Ada"))
    assert values.decode(payload.data, payload.type) == hello_pb2.HelloRequest(name="Ada")
    assert values.decode(b"\n\x03Ada", "application/protobuf; type=not.Known") == b"\n\x03Ada"


def test_a_message_is_made_from_json_too() -> None:
    """As typed at the command line, or posted over HTTP."""
    assert values.decode(b'{"name":"Ada"}', "application/json", hello_pb2.HelloRequest).name == "Ada"


@pytest.mark.parametrize(
    ("data", "content_type", "target", "reason"),
    [
        (b'{"items":[{"name":"pen","price":"x"}]}', "application/json", Order, r"\$\.items\[0\]\.price"),
        (b'"hi"', "application/json", int, "Expected `int`, got `str`"),
        (b'{"customerName": 3}', "application/json", Customer, "customerName"),
        (b"not json", "application/json", str, "malformed"),
        (b"\xff\xfe", "application/json", str, "malformed|invalid"),
        (b"", "application/json", str, "truncated"),
        (b"[" * 200_000, "application/json", Any, "too deep"),
        (b'"x"', "application/json", Colour, "Invalid enum value"),
        (b'{"nme":"Ada"}', "application/json", hello_pb2.HelloRequest, "nme"),
        (b"\x00", "application/octet-stream", str, "it is bytes"),
        (b"\x0a\xff", "application/protobuf; type=hello.HelloRequest", hello_pb2.HelloRequest, "parsing"),
        (b"", "application/protobuf; type=other.Thing", hello_pb2.HelloRequest, "other.Thing"),
        (b"", "application/protobuf; type=other.Thing", str, "other.Thing"),
        (b"x", "text/html", str, "content type 'text/html'"),
        (b"x", "application/json; charset=utf-8", str, "malformed"),
    ],
)
def test_what_does_not_fit_names_type_and_place(data: bytes, content_type: str, target: Any, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason) as wrong:
        values.decode(data, content_type, target, "input of greet")
    assert wrong.value.type == values.type_name(target)
    assert "input of greet" in str(wrong.value)


@pytest.mark.parametrize(
    ("value", "type_name"),
    [
        ((n for n in [1]), "generator"),
        (threading.Lock(), "lock"),
        (object(), "object"),
        ({"a": [object()]}, "dict containing object"),
        ("\ud800", "str"),
        ({(1, 2): 3}, "dict containing tuple"),
    ],
)
def test_what_has_no_stored_form_names_its_type(value: Any, type_name: str) -> None:
    with pytest.raises(EncodeError, match="result of 'x'") as refused:
        values.encode(value, "result of 'x'")
    assert refused.value.type == type_name


def test_a_value_that_holds_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(EncodeError):
        values.encode(endless)


def test_a_type_that_raises_while_it_is_made_is_a_decode_error() -> None:
    @dataclasses.dataclass
    class Picky:
        n: int

        def __post_init__(self) -> None:
            raise RuntimeError("no")

    with pytest.raises(DecodeError, match="no"):
        values.decode(b'{"n":1}', "application/json", Picky)


def test_a_hint_that_cannot_be_hashed_works() -> None:
    hint = typing.Annotated[int, msgspec.Meta(extra={"a": []})]
    assert values.decode(b"1", "application/json", hint) == 1


def test_shown_as_json_where_the_type_is_known_else_as_base64() -> None:
    assert values.to_json(b'{"a":1}', "application/json") == ({"a": 1}, False)
    assert values.to_json(b"\x00\xff", "application/octet-stream") == ("AP8=", True)
    assert values.to_json(b"not json", "application/json") == ("bm90IGpzb24=", True)
    payload = values.encode(hello_pb2.HelloRequest(name="Ada"))
    assert values.to_json(*payload) == ({"name": "Ada"}, False)
    moment = values.encode(timestamp_pb2.Timestamp(seconds=1))
    assert values.to_json(*moment) == ("1970-01-01T00:00:01Z", False)
    assert values.to_json(*values.encode(wrappers_pb2.StringValue(value="x"))) == ("x", False)
    assert values.to_json(b"\x01", "application/protobuf; type=not.Known") == ("AQ==", True)


def test_text_that_is_typed_is_json_or_refused() -> None:
    assert values.from_text('{"a": 1}') == values.Payload(b'{"a": 1}', "application/json")
    with pytest.raises(DecodeError, match="JSON"):
        values.from_text("{a: 1}")
