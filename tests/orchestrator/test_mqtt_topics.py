"""Topics and payloads: names, parsing, decoding, and the reference for the documentation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.mqtt import payloads
from orchestrator.mqtt.payloads import CommandPayload, DaemonRun, InfoPayload, ResponsePayload, StatusPayload
from orchestrator.mqtt.topics import (
    COMMAND,
    EVERY_HOST,
    STATE,
    TOPICS,
    HostTopics,
    ParsedTopic,
    parse,
    render_reference,
)
from orchestrator.process.terminal_text import printable

NOW = 1_800_000_000.0
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=50)


@given(names)
def test_any_name_is_one_level_of_a_topic(name: str) -> None:
    topic = HostTopics("edge-1").of(STATE, name)
    assert topic.count("/") == 5
    assert not set(topic) & set("+# \0")
    assert parse(topic) == ParsedTopic("edge-1", "state", printable(name))


def test_a_host_name_that_no_host_can_have_is_not_parsed() -> None:
    assert parse(HostTopics("edge\x9b31m").of(STATE, "web")) is None


def test_every_topic_of_the_table_parses_to_its_kind() -> None:
    for row in TOPICS:
        name = "x" if "NAME" in row.suffix else ""
        assert parse(HostTopics("edge-1").of(row, name)) == ParsedTopic("edge-1", row.kind, name)


def test_the_documentation_shows_the_topic_table() -> None:
    assert (Path(__file__).parents[2] / "docs/reference/mqtt.md").read_text() == render_reference()


def test_a_topic_without_a_name_is_a_pattern_for_subscriptions() -> None:
    assert EVERY_HOST.of(STATE) == "nodepass-orch/v1/+/t/+/state"
    assert HostTopics("edge-1").of(STATE, "+") == "nodepass-orch/v1/edge-1/t/%2B/state"


@pytest.mark.parametrize(
    "topic",
    ["", "nodepass-orch/v1", "nodepass-orch/v1/", "nodepass-orch/v2/a/status", "nodepass-orch/v1//status",
     "nodepass-orch/v1/a", "nodepass-orch/v1/a/t/web", "nodepass-orch/v1/a/t//state", "nodepass-orch/v1/a/rsp/",
     "nodepass-orch/v1/a/x", "nodepass-orch/v1/a/t/web/state/x"],
)  # fmt: skip
def test_a_topic_outside_the_table_is_not_parsed(topic: str) -> None:
    assert parse(topic) is None


@given(st.binary(max_size=200) | st.text(max_size=50))
def test_received_data_decodes_to_an_object_of_our_version_or_to_none(data: bytes | str) -> None:
    found = payloads.decode(data)
    assert found is None or found["v"] == payloads.VERSION


@given(st.one_of(st.none(), st.booleans(), st.text(), st.lists(st.none()), st.floats()))
def test_any_value_parses_to_a_timestamp_or_to_none(value: object) -> None:
    found = payloads.parse_timestamp(value)
    assert found is None or isinstance(found, float)


def test_timestamps_need_a_time_zone() -> None:
    assert payloads.parse_timestamp("2027-01-15T08:00:00Z") == NOW
    assert payloads.parse_timestamp("2027-01-15T09:00:00+01:00") == NOW
    assert payloads.parse_timestamp("2027-01-15T08:00:00") is None
    assert payloads.parse_timestamp(10**400) is None


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_numbers_that_json_does_not_have_are_rejected(number: bytes) -> None:
    assert payloads.parse_json(b'{"v": 1, "exp": ' + number + b"}") is None


def test_a_payload_is_the_same_after_encoding_and_decoding() -> None:
    status = StatusPayload.of_run(DaemonRun("a", "boot-1", NOW), "2027-01-15T08:00:00Z", online=True)
    assert StatusPayload.from_json(payloads.decode(payloads.encode(status.as_json())) or {}) == status
    response = ResponsePayload.failed("c1", "no", {"tunnels": {}})
    assert ResponsePayload.from_json(json.loads(payloads.encode(response.as_json()))) == response
    assert set(status.as_json()) == set(StatusPayload.json_keys())


def test_info_with_a_wrong_type_is_null_there_and_with_a_wrong_text_not_decoded() -> None:
    info = InfoPayload.from_json({"v": 1, "name": "edge", "generation": "4", "config_ok": 1, "tunnels": True})
    assert info == InfoPayload(name="edge")
    assert InfoPayload.from_json({"v": 1, "name": 7}) is None


def test_a_command_has_only_the_optional_keys_that_were_given() -> None:
    message = HostTopics("edge-1").message(COMMAND, CommandPayload(id="c1", op="stop", target="web", timeout=0.0))
    assert (message.topic, message.qos, message.retain) == ("nodepass-orch/v1/edge-1/cmd", 1, False)
    assert json.loads(message.payload) == {"v": 1, "id": "c1", "op": "stop", "target": "web", "timeout": 0.0}


@pytest.mark.parametrize("text", [b' {"a":1}', b'\n{"a":1}\n', b'{"a":1}\t'])
def test_blanks_around_a_message_are_allowed(text: bytes) -> None:
    assert payloads.parse_json(text) == {"a": 1}
