"""Answers of the services API, field by field (facts of ADR-32: S-1 to S-27)."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from mesh import micro
from mesh.errors import InvalidNameError


def service() -> micro.ServiceInfo:
    endpoint = micro.EndpointInfo("Get", "svc.S.Get", "q", {"k": "v"})
    return micro.ServiceInfo("S", "1.2.3", "about", {"m": "d"}, endpoints=[endpoint])


@pytest.mark.parametrize("name", ["", "a.b", "a b", "abc\n", "é", "*"])
def test_s1_service_name_is_matched_in_full(name: str) -> None:
    with pytest.raises(InvalidNameError):
        micro.ServiceInfo(name)


@pytest.mark.parametrize("version", ["", "1.0", "v1.0.0", "1.0.0\n", "01.0.0", "1.0.0-", "1.0.0+é"])
def test_s2_version_is_semver(version: str) -> None:
    with pytest.raises(InvalidNameError):
        micro.ServiceInfo("S", version)


@pytest.mark.parametrize("version", ["0.0.0", "1.2.3-rc.1+build.5", "1.0.0-0a"])
def test_s2_good_versions(version: str) -> None:
    assert micro.ServiceInfo("S", version).version == version


def test_s3_id_is_one_token_and_unique() -> None:
    first, second = service(), service()
    assert first.id != second.id
    assert re.fullmatch(r"[A-Za-z0-9]+", first.id)


def test_s5_endpoint_name_has_no_dots() -> None:
    with pytest.raises(InvalidNameError):
        micro.EndpointInfo("pkg.Get", "s", "q")


def test_s10_answers_on_nine_subjects() -> None:
    s = service()
    subjects = [subject for verb in micro.VERBS for subject in s.control_subjects(verb)]
    assert len(set(subjects)) == 9
    assert f"$SRV.STATS.S.{s.id}" in subjects


def test_s14_ping() -> None:
    s = service()
    assert json.loads(s.answer(micro.PING)) == {
        "type": "io.nats.micro.v1.ping_response",
        "name": "S",
        "id": s.id,
        "version": "1.2.3",
        "metadata": {"m": "d"},
    }


def test_s15_info_description_is_a_string_and_endpoints_a_list() -> None:
    bare = json.loads(micro.ServiceInfo("S").answer(micro.INFO))
    assert (bare["description"], bare["endpoints"], bare["metadata"]) == ("", [], {})
    full = json.loads(service().answer(micro.INFO))
    assert full["endpoints"] == [{"name": "Get", "subject": "svc.S.Get", "queue_group": "q", "metadata": {"k": "v"}}]


def test_s16_stats_are_integers_and_last_error_is_there() -> None:
    s = service()
    stats = s.endpoints[0].stats
    stats.num_requests, stats.processing_time_ns = 3, 10
    document = json.loads(s.answer(micro.STATS))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", document["started"])
    assert document["endpoints"] == [
        {
            "name": "Get",
            "subject": "svc.S.Get",
            "queue_group": "q",
            "num_requests": 3,
            "num_errors": 0,
            "last_error": "",
            "processing_time": 10,
            "average_processing_time": 3,
            "data": {"in_flight": 0, "rejected": 0, "expired": 0, "malformed": 0},
        }
    ]


def test_s18_reset_zeroes_counters_and_moves_started() -> None:
    s = service()
    stats = s.endpoints[0].stats
    stats.num_requests, stats.num_errors, stats.last_error, stats.in_flight = 3, 1, "500:x", 2
    started = s.started
    s.reset()
    assert (stats.num_requests, stats.num_errors, stats.last_error, stats.in_flight) == (0, 0, "", 2)
    assert s.started > started
    assert s.endpoints[0].queue_group == "q"


def test_s19_failing_stats_handler_does_not_suppress_the_answer() -> None:
    s = service()
    handlers: list[Any] = [lambda: 1 / 0, object]  # raises; cannot be JSON
    for handler in handlers:
        s.endpoints[0].extra = handler
        (endpoint,) = json.loads(s.answer(micro.STATS))["endpoints"]
        assert "data" not in endpoint
    s.endpoints[0].extra = lambda: {"mine": 1}
    assert json.loads(s.answer(micro.STATS))["endpoints"][0]["data"] == {"mine": 1}


@pytest.mark.parametrize("verb", micro.VERBS)
def test_own_answers_are_without_fault(verb: str) -> None:
    assert micro.fault(verb, json.loads(service().answer(verb))) == ""


@pytest.mark.parametrize(
    ("verb", "change", "fault"),
    [
        (micro.PING, {"type": "x"}, "type"),
        (micro.PING, {"name": "a b"}, "name"),
        (micro.PING, {"id": ""}, "id"),
        (micro.PING, {"version": "1"}, "version"),
        (micro.PING, {"metadata": {"a": 1}}, "metadata"),
        (micro.INFO, {"description": None}, "description"),
        (micro.INFO, {"endpoints": [1]}, "endpoints"),
        (micro.INFO, {"endpoints": [{"name": "a"}]}, "subject"),
        (micro.STATS, {"endpoints": [{"name": "a", "subject": "s", "num_requests": 1.5}]}, "num_requests"),
        (micro.STATS, {"endpoints": {}}, "endpoints"),
    ],
)
def test_faults_of_others_are_named(verb: str, change: dict[str, object], fault: str) -> None:
    document = json.loads(service().answer(verb)) | change
    assert fault in micro.fault(verb, document)
    assert micro.fault(verb, [document]) == "not a JSON object"


def test_null_metadata_and_missing_last_error_are_no_faults() -> None:
    document = json.loads(service().answer(micro.STATS))
    document["metadata"] = None
    del document["endpoints"][0]["last_error"], document["endpoints"][0]["data"]
    assert micro.fault(micro.STATS, document) == ""
