"""What Home Assistant is told: its templates rendered on what a host really says, and what is taken back."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.load import load
from orchestrator.mqtt import payloads
from orchestrator.mqtt.discovery import Discovery
from orchestrator.mqtt.outbox import Message
from orchestrator.mqtt.payloads import Origin
from orchestrator.mqtt.steering import Steering
from orchestrator.mqtt.telling import Telling
from orchestrator.mqtt.topics import HostTopics
from orchestrator.supervisor.control import ControlService
from orchestrator.supervisor.runner import stopped_snapshot
from orchestrator.supervisor.supervisor import Supervisor
from tests.orchestrator.fakes import FakeEngine
from tunnel.model.address import Address
from tunnel.model.options import make_spec
from tunnel.model.snapshot import Snapshot
from tunnel.model.state import State
from tunnel.model.url import parse_url

ORIGIN = Origin("instance", "boot")
TOPICS = HostTopics("edge-1")
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=200)


def discovery(prefix: str = "homeassistant") -> Discovery:
    return Discovery(prefix, TOPICS, "edge-1", "1.0")


def configuration(messages: tuple[Message, ...], object_: str) -> dict[str, Any]:
    (found,) = [message for message in messages if message.topic.endswith(f"/{object_}/config")]
    whole: dict[str, Any] = json.loads(found.payload)
    return whole


def shown(config: dict[str, Any], key: str, payload: dict[str, Any]) -> str:
    """A template rendered as its reader does."""
    environment = jinja2.Environment(autoescape=False)  # noqa: S701  as there; what comes out is no HTML
    return environment.from_string(config[key]).render(value_json=payload)


def told(**changes: Any) -> dict[str, Any]:  # noqa: ANN401  any field
    spec = make_spec(parse_url("server://a-secret@127.0.0.1:10101/127.0.0.1:8080"))
    seen: Snapshot = replace(stopped_snapshot("web", spec), **changes)
    found: dict[str, Any] = json.loads(
        payloads.encode(payloads.state(ORIGIN, seen.as_json(), 1, "2027-01-15T08:00:00Z"))
    )
    return found


def test_a_tunnel_is_a_few_entities_of_one_device_that_read_its_retained_state() -> None:
    messages = discovery().of_tunnel("web")
    assert [message.topic for message in messages] == [
        "homeassistant/binary_sensor/edge-1/nodepass-orch_t_web_up/config",
        "homeassistant/sensor/edge-1/nodepass-orch_t_web_connections/config",
        "homeassistant/sensor/edge-1/nodepass-orch_t_web_bytes_in/config",
        "homeassistant/sensor/edge-1/nodepass-orch_t_web_bytes_out/config",
    ]
    assert all((message.qos, message.retain) == (1, True) for message in messages)
    configs = [json.loads(message.payload) for message in (*messages, *discovery().of_host())]
    assert len({config["unique_id"] for config in configs}) == len(configs)
    assert {json.dumps(config["device"]) for config in configs} == {json.dumps(configs[0]["device"])}
    assert {config["state_topic"] for config in configs[:4]} == {TOPICS.state_of("web")}
    up = configs[0]
    assert shown(up, "value_template", told(state=State.UP)) == "ON"
    down = told(state=State.COOLDOWN, reason='no route to "it"')
    assert shown(up, "value_template", down) == "OFF"
    attributes = json.loads(shown(up, "json_attributes_template", down))
    assert (attributes["reason"], attributes["target_addr"]) == ('no route to "it"', "127.0.0.1:8080")
    numbers = told()
    numbers["connections"]["active"], numbers["bytes"] = 3, {"in": 5, "out": 7}
    assert [shown(config, "value_template", numbers) for config in configs[1:4]] == ["3", "5", "7"]


def test_it_is_available_while_its_host_is() -> None:
    up = configuration(discovery().of_tunnel("web"), "nodepass-orch_t_web_up")
    for online, word in ((True, "online"), (False, "offline")):
        status = payloads.status(ORIGIN, "", online=online)
        assert shown(up, "availability_template", status) == word
        there = configuration(discovery().of_host(), "nodepass-orch_host_online")
        assert shown(there, "value_template", status) == ("ON" if online else "OFF")
        assert "availability_topic" not in there, "a host that is gone is gone, not unknown"
    problem = configuration(discovery().of_host(), "nodepass-orch_host_configuration")
    assert shown(problem, "value_template", {"config_ok": True}) == "OFF"
    assert shown(problem, "value_template", {"config_ok": False}) == "ON"


@given(names, names)
def test_any_name_makes_a_topic_of_the_few_characters_allowed(one: str, other: str) -> None:
    for message in discovery().of_tunnel(one):
        assert re.fullmatch(r"homeassistant/(binary_)?sensor/edge-1/[A-Za-z0-9_-]+/config", message.topic)
        assert discovery().is_ours(message.topic)
        assert json.loads(message.payload)["name"].startswith(one)
    if one != other:
        topics = [{message.topic for message in discovery().of_tunnel(name)} for name in (one, other)]
        assert not topics[0] & topics[1]


@pytest.mark.parametrize(
    "topic",
    ["homeassistant/sensor/edge-2/nodepass-orch_t_web_up/config", "homeassistant/sensor/edge-1/lamp/config",
     "homeassistant/light/edge-1/nodepass-orch_x/config", "homeassistant/sensor/edge-1/nodepass-orch_x",
     "other/sensor/edge-1/nodepass-orch_x/config", "homeassistant/sensor/edge-1/nodepass-orch_x/state"],
)  # fmt: skip
def test_what_others_configured_is_none_of_ours(topic: str) -> None:
    assert not discovery().is_ours(topic)


# --- what is taken back -----------------------------------------------------------------------------------------------


class Stand:
    """A desk whose tunnels are as a test wants them."""

    def __init__(self, tmp_path: Path, present: list[str]) -> None:
        file = tmp_path / "f.yaml"
        file.write_text("version: 1\ntunnels:\n")
        ports: dict[Address, object] = {}
        supervisor = Supervisor(
            load(file, {}), engine_factory=lambda name, spec, sink: FakeEngine(name, spec, sink, ports)
        )
        spec = make_spec(parse_url("server://127.0.0.1:10101/127.0.0.1:8080"))
        self.present = present
        supervisor.each = lambda names=None: iter(  # type: ignore[method-assign]
            [stopped_snapshot(name, spec) for name in (self.present if names is None else names)]
        )
        self.control = ControlService(supervisor)

    def telling(self, found: Discovery | None) -> Telling:
        steering = Steering(self.control, TOPICS, "boot", is_on=False)
        return Telling(
            self.control, topics=TOPICS, origin=ORIGIN, steering=steering, discovery=found, uniform=lambda low, _: low
        )


def said(telling: Telling) -> dict[str, bytes]:
    list(telling.due())
    return {message.topic: message.payload for message in telling.outbox.take(1000)}


async def test_what_an_earlier_life_left_is_taken_back_and_nothing_else(tmp_path: Path) -> None:
    stand = Stand(tmp_path, ["web"])
    telling = stand.telling(discovery())
    telling.begin()
    old = discovery().of_tunnel("old")
    for topic in (TOPICS.state_of("old"), TOPICS.state_of("web"), *(message.topic for message in old)):
        telling.inherit(topic)
    words = said(telling)
    cleared = [topic for topic, payload in words.items() if not payload]
    assert set(cleared) == {TOPICS.state_of("old"), *(message.topic for message in old)}
    assert cleared[-1] == TOPICS.state_of("old"), "its readers first"
    assert {message.topic for message in discovery().of_tunnel("web")} <= set(words)
    telling.inherit(TOPICS.state_of("web"))
    assert not said(telling), "a broker that is late with what it keeps does not make us take back what is true"


async def test_a_tunnel_that_goes_while_we_are_being_born_leaves_nothing(tmp_path: Path) -> None:
    stand = Stand(tmp_path, ["web", "gone"])
    telling = stand.telling(None)
    telling.begin()
    telling.inherit(TOPICS.state_of("gone"))
    stand.present = ["web"]
    assert said(telling)[TOPICS.state_of("gone")] == b""


async def test_a_removed_tunnel_takes_its_entities_along(tmp_path: Path) -> None:
    stand = Stand(tmp_path, ["web", "db"])
    telling = stand.telling(discovery())
    telling.begin()
    said(telling)
    stand.present = ["web"]
    words = {topic: payload for topic, payload in said(telling).items() if topic != TOPICS.info}
    assert set(words) == {TOPICS.state_of("db"), *(message.topic for message in discovery().of_tunnel("db"))}
    assert not any(words.values())
    assert list(words)[-1] == TOPICS.state_of("db")
