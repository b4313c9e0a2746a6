"""Methods by name: found by descriptors, or refused with what to give instead."""

from __future__ import annotations

from typing import Any

import pytest

from engine.descriptors import find_method
from engine.errors import DecodeError, EncodeError, InvalidNameError
from protos.hello_pb2 import HelloRequest, HelloResponse


def test_short_name_is_found_by_the_requests_own_file() -> None:
    found = find_method("HelloService", "SayHello", HelloRequest(name="x"))
    assert (found.service, found.name, found.request_class) == ("hello.HelloService", "SayHello", HelloRequest)
    assert found.response_type == "application/protobuf; type=hello.HelloResponse"
    assert found.decode(HelloResponse(message="hi").SerializeToString()) == HelloResponse(message="hi")


def test_full_name_needs_no_message() -> None:
    found = find_method("hello.HelloService", "SayHello", {"name": "x"})
    payload = found.encode({"name": "x"})
    assert HelloRequest.FromString(payload.data) == HelloRequest(name="x")
    assert found.encode(HelloRequest(name="x")).data == payload.data
    assert found.encode(b"\x0a\x01x").data == payload.data


@pytest.mark.parametrize("request_", [{"nope": 1}, {"name": 5}, {"name": {"a": 1}}, "text", 5, [1], None])
def test_request_that_is_none_is_refused(request_: Any) -> None:
    found = find_method("hello.HelloService", "SayHello", request_)
    with pytest.raises(EncodeError, match="SayHello"):
        found.encode(request_)


def test_service_that_no_descriptor_explains_says_what_to_give() -> None:
    with pytest.raises(InvalidNameError, match="response_type"):
        find_method("Unknown", "Do", b"")
    with pytest.raises(InvalidNameError, match="response_type"):
        find_method("unknown.Service", "Do", b"")
    with pytest.raises(InvalidNameError, match="response_type"):
        find_method("HelloService", "SayHello", {"name": "x"})


def test_unknown_method_says_which_there_are() -> None:
    with pytest.raises(InvalidNameError, match="hello.HelloService has SayHello"):
        find_method("hello.HelloService", "SayGoodbye", HelloRequest())


@pytest.mark.parametrize(("service", "method"), [("a.*", "M"), ("a.b", "M.x"), ("", "M"), ("a.b", ""), ("a.b", ">")])
def test_names_that_would_widen_a_subject_are_refused(service: str, method: str) -> None:
    with pytest.raises(ValueError, match="valid|name|token|must|may"):
        find_method(service, method, b"", bytes)


def test_response_type_decides_how_a_reply_is_read() -> None:
    raw = find_method("unknown.Service", "Do", b"", bytes)
    assert (raw.decode(b"x"), raw.response_type, raw.request_class) == (b"x", "", None)
    json = find_method("unknown.Service", "Do", b"", dict[str, int])
    assert json.decode(b'{"a": 1}') == {"a": 1}
    with pytest.raises(DecodeError):
        json.decode(b"nonsense")
    message = find_method("unknown.Service", "Do", b"", HelloResponse)
    assert message.response_type == "application/protobuf; type=hello.HelloResponse"


class Betterproto:
    """As betterproto's messages are decoded."""

    text = ""

    def parse(self, data: bytes) -> Betterproto:
        self.text = data.decode()
        return self


def test_betterproto_messages_are_parsed() -> None:
    assert find_method("unknown.Service", "Do", b"", Betterproto).decode(b"hi").text == "hi"
