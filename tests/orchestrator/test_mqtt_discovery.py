"""Home Assistant discovery: its templates rendered on real payloads, and what is cleared on the broker."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any, cast

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.mqtt import payloads
from orchestrator.mqtt.commands import CommandHandler
from orchestrator.mqtt.ha_discovery import HomeAssistantDiscovery
from orchestrator.mqtt.payloads import DaemonRun, StatePayload, StatusPayload
from orchestrator.mqtt.publications import Publications
from orchestrator.mqtt.topics import INFO, STATE, HostTopics, OutgoingMessage
from orchestrator.status.contract import ConfigStatus, DaemonInfo
from orchestrator.status.store import snapshot_store
from orchestrator.supervisor.control import ControlService
from orchestrator.supervisor.event_bus import EventBus
from orchestrator.supervisor.runner import stopped_snapshot
from tunnel.model.options import make_spec
from tunnel.model.snapshot import Snapshot
from tunnel.model.state import State
from tunnel.model.url import parse_url

NOW = "2027-01-15T08:00:00Z"
RUN = DaemonRun("instance", "boot")
TOPICS = HostTopics("edge-1")
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=200)


def discovery(prefix: str = "homeassistant") -> HomeAssistantDiscovery:
    return HomeAssistantDiscovery(prefix, TOPICS, "edge-1", "1.0")


def configuration(messages: tuple[OutgoingMessage, ...], object_: str) -> dict[str, Any]:
    (found,) = [message for message in messages if message.topic.endswith(f"/{object_}/config")]
    whole: dict[str, Any] = json.loads(found.payload)
    return whole


def shown(config: dict[str, Any], key: str, payload: dict[str, Any]) -> str:
    """A template rendered as its reader does."""
    environment = jinja2.Environment(autoescape=False)  # noqa: S701  as there; what comes out is no HTML
    return environment.from_string(config[key]).render(value_json=payload)


def state(**changes: Any) -> dict[str, Any]:  # noqa: ANN401  any field
    spec = make_spec(parse_url("server://a-secret@127.0.0.1:10101/127.0.0.1:8080"))
    seen: Snapshot = replace(stopped_snapshot("web", spec), **changes)
    found: dict[str, Any] = json.loads(
        payloads.encode(StatePayload(seen.as_json(), "boot", 1, "2027-01-15T08:00:00Z").as_json())
    )
    return found


def test_a_tunnel_is_a_few_entities_of_one_device_that_read_its_retained_state() -> None:
    messages = discovery().tunnel_messages("web")
    assert [message.topic for message in messages] == [
        "homeassistant/binary_sensor/edge-1/nodepass-orch_t_web_up/config",
        "homeassistant/sensor/edge-1/nodepass-orch_t_web_connections/config",
        "homeassistant/sensor/edge-1/nodepass-orch_t_web_bytes_in/config",
        "homeassistant/sensor/edge-1/nodepass-orch_t_web_bytes_out/config",
    ]
    assert all((message.qos, message.retain) == (1, True) for message in messages)
    configs = [json.loads(message.payload) for message in (*messages, *discovery().host_messages())]
    assert len({config["unique_id"] for config in configs}) == len(configs)
    assert {json.dumps(config["device"]) for config in configs} == {json.dumps(configs[0]["device"])}
    assert {config["state_topic"] for config in configs[:4]} == {TOPICS.of(STATE, "web")}
    up = configs[0]
    assert shown(up, "value_template", state(state=State.UP)) == "ON"
    down = state(state=State.COOLDOWN, reason='no route to "it"')
    assert shown(up, "value_template", down) == "OFF"
    attributes = json.loads(shown(up, "json_attributes_template", down))
    assert (attributes["reason"], attributes["target_addr"]) == ('no route to "it"', "127.0.0.1:8080")
    numbers = state()
    numbers["connections"]["active"], numbers["bytes"] = 3, {"in": 5, "out": 7}
    assert [shown(config, "value_template", numbers) for config in configs[1:4]] == ["3", "5", "7"]


def test_an_entity_is_available_while_its_host_is_online() -> None:
    up = configuration(discovery().tunnel_messages("web"), "nodepass-orch_t_web_up")
    for online, word in ((True, "online"), (False, "offline")):
        status = StatusPayload.of_run(RUN, "", online=online).as_json()
        assert shown(up, "availability_template", status) == word
        there = configuration(discovery().host_messages(), "nodepass-orch_host_online")
        assert shown(there, "value_template", status) == ("ON" if online else "OFF")
        assert "availability_topic" not in there, "a host that is gone is gone, not unknown"
    problem = configuration(discovery().host_messages(), "nodepass-orch_host_configuration")
    assert shown(problem, "value_template", {"config_ok": True}) == "OFF"
    assert shown(problem, "value_template", {"config_ok": False}) == "ON"


@given(names, names)
def test_any_name_gives_a_topic_of_the_few_characters_allowed(one: str, other: str) -> None:
    for message in discovery().tunnel_messages(one):
        assert re.fullmatch(r"homeassistant/(binary_)?sensor/edge-1/[A-Za-z0-9_-]+/config", message.topic)
        assert discovery().owns(message.topic)
        assert json.loads(message.payload)["name"].startswith(one)
    if one != other:
        topics = [{message.topic for message in discovery().tunnel_messages(name)} for name in (one, other)]
        assert not topics[0] & topics[1]


@pytest.mark.parametrize(
    "topic",
    ["homeassistant/sensor/edge-2/nodepass-orch_t_web_up/config", "homeassistant/sensor/edge-1/lamp/config",
     "homeassistant/light/edge-1/nodepass-orch_x/config", "homeassistant/sensor/edge-1/nodepass-orch_x",
     "other/sensor/edge-1/nodepass-orch_x/config", "homeassistant/sensor/edge-1/nodepass-orch_x/state"],
)  # fmt: skip
def test_configurations_of_others_are_not_ours(topic: str) -> None:
    assert not discovery().owns(topic)


# --- what is cleared -----------------------------------------------------------------------------------------------


class FixedTunnels:
    """Takes the place of the control service, with the tunnels that a test names."""

    read_only = False

    def __init__(self, present: list[str]) -> None:
        self.bus = EventBus()
        self.store = snapshot_store()
        self.present = present

    def info(self) -> DaemonInfo:
        config = ConfigStatus(path="tunnels.yaml", ok=True, loaded_at=NOW)
        return DaemonInfo(
            generation=1, pid=1, config=config, version="1.0", host="edge", read_only=False, started_at=NOW
        )

    def publications(self, found: HomeAssistantDiscovery | None) -> Publications:
        control = cast("ControlService", self)
        handler = CommandHandler(control, TOPICS, "boot", is_enabled=False)
        return Publications(
            control, topics=TOPICS, run=RUN, handler=handler, discovery=found, uniform=lambda low, _: low
        )

    def publish_due(self, publications: Publications) -> dict[str, bytes]:
        """Everything that is due with the present tunnels, by topic."""
        spec = make_spec(parse_url("server://127.0.0.1:10101/127.0.0.1:8080"))
        for name in self.present:
            self.store.update(name, stopped_snapshot(name, spec))
        self.store.retain(self.present)
        list(publications.queue_due())
        return {message.topic: message.payload for message in publications.queue.take_next(1000)}


async def test_topics_left_by_an_earlier_run_are_cleared_and_nothing_else() -> None:
    tunnels = FixedTunnels(["web"])
    publications = tunnels.publications(discovery())
    publications.restart()
    old = discovery().tunnel_messages("old")
    for topic in (TOPICS.of(STATE, "old"), TOPICS.of(STATE, "web"), *(message.topic for message in old)):
        publications.add_old_topic(topic)
    published = tunnels.publish_due(publications)
    cleared = [topic for topic, payload in published.items() if not payload]
    assert set(cleared) == {TOPICS.of(STATE, "old"), *(message.topic for message in old)}
    assert cleared[-1] == TOPICS.of(STATE, "old"), "the configurations that read it first"
    assert {message.topic for message in discovery().tunnel_messages("web")} <= set(published)
    publications.add_old_topic(TOPICS.of(STATE, "web"))
    assert not tunnels.publish_due(publications), "a retained message that arrives late does not clear a present tunnel"


async def test_a_tunnel_that_is_removed_during_birth_leaves_nothing() -> None:
    tunnels = FixedTunnels(["web", "gone"])
    publications = tunnels.publications(None)
    publications.restart()
    publications.add_old_topic(TOPICS.of(STATE, "gone"))
    tunnels.present = ["web"]
    assert tunnels.publish_due(publications)[TOPICS.of(STATE, "gone")] == b""


async def test_a_removed_tunnel_clears_its_entities() -> None:
    tunnels = FixedTunnels(["web", "db"])
    publications = tunnels.publications(discovery())
    publications.restart()
    tunnels.publish_due(publications)
    tunnels.present = ["web"]
    published = {
        topic: payload for topic, payload in tunnels.publish_due(publications).items() if topic != TOPICS.of(INFO)
    }
    assert set(published) == {TOPICS.of(STATE, "db"), *(message.topic for message in discovery().tunnel_messages("db"))}
    assert not any(published.values())
    assert list(published)[-1] == TOPICS.of(STATE, "db")
