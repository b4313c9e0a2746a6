"""Names become subjects, or are refused before anything is sent."""

from __future__ import annotations

import pytest

from mesh import subjects
from mesh.errors import InvalidNameError

HOSTILE = ["", "a.b", "*", ">", "a b", "a\r\n", "a\n", "\x00", "x" * 3000, "é", "../x", "$SYS", ".", "a..b"]


def test_method_subject_is_prefix_service_method() -> None:
    assert subjects.method_subject("hello.HelloService", "SayHello") == "svc.hello.HelloService.SayHello"
    assert subjects.method_subject("S", "M", "svc-v2", "eu") == "eu.svc-v2.S.M"


@pytest.mark.parametrize("name", HOSTILE)
def test_method_and_cluster_are_one_token(name: str) -> None:
    with pytest.raises(InvalidNameError):
        subjects.method_subject("pkg.S", name)
    with pytest.raises(InvalidNameError):
        subjects.check_cluster(name)


@pytest.mark.parametrize("name", [name for name in HOSTILE if name != "a.b"] + ["a.b.", ".a", "1a", "a-b"])
def test_service_is_a_protobuf_name(name: str) -> None:
    with pytest.raises(InvalidNameError):
        subjects.service_subject(name)


@pytest.mark.parametrize("name", ["a b", "q\n", "*", "a.>", "\t"])
def test_queue_group_has_no_wildcards_or_spaces(name: str) -> None:
    with pytest.raises(InvalidNameError):
        subjects.check_queue_group(name)


@pytest.mark.parametrize("reserved", ["_call", "_mesh"])
def test_method_cannot_be_named_like_the_questions_of_the_mesh(reserved: str) -> None:
    with pytest.raises(InvalidNameError, match="reserved"):
        subjects.method_subject("pkg.S", reserved)


@pytest.mark.parametrize("text", ["pkg.S/M", "/pkg.S/M", "pkg.S.M"])
def test_method_is_written_with_slash_or_dot(text: str) -> None:
    assert subjects.split_method(text) == ("pkg.S", "M")


@pytest.mark.parametrize("text", ["M", "/M", "S/", "S/M/N", "S M"])
def test_what_is_no_method_is_refused(text: str) -> None:
    with pytest.raises(InvalidNameError):
        subjects.split_method(text)


def test_services_api_subjects_of_adr_32() -> None:
    assert subjects.services_api("PING") == "$SRV.PING"
    assert subjects.services_api("INFO", "S", "id1") == "$SRV.INFO.S.id1"
    assert subjects.services_api("INFO", "S", cluster="eu") == "eu.$SRV.INFO.S"
    with pytest.raises(InvalidNameError):
        subjects.services_api("INFO", "a.b")
