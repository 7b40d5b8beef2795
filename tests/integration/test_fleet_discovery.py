"""Home Assistant discovery on a real broker: which configurations are retained, and when they are cleared."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from typing import Any, Final

import pytest

from tests.integration.test_fleet import KEY, PASSWORD, Hosts, Mosquitto, connected, publish, retained
from tests.integration.test_programs import needs
from tests.support.ports import free_port
from tests.support.processes import ROOT, ProcessHarness
from tests.support.waiting import wait_until

pytestmark = needs("mosquitto", "mosquitto_sub", "mosquitto_pub", "mosquitto_passwd")

TREES: Final = ("homeassistant/#", "ha/here/#")
OPERATOR: Final = ("operator", PASSWORD)
SENSORS: Final = ("connections", "bytes_in", "bytes_out")


@pytest.fixture
def broker(harness: ProcessHarness) -> Mosquitto:
    return harness.close_at_end(Mosquitto(harness.directory / "broker"))


@pytest.fixture
def hosts(harness: ProcessHarness) -> Hosts:
    return Hosts(harness)


def of_tunnel(name: str, prefix: str = "homeassistant") -> set[str]:
    sensors = {f"{prefix}/sensor/edge-1/nodepass-orch_t_{name}_{number}/config" for number in SENSORS}
    return {*sensors, f"{prefix}/binary_sensor/edge-1/nodepass-orch_t_{name}_up/config"}


def of_host(prefix: str = "homeassistant") -> set[str]:
    return {f"{prefix}/binary_sensor/edge-1/nodepass-orch_host_{what}/config" for what in ("online", "configuration")}


def configured(broker: Mosquitto, login: tuple[str, str] | None = None) -> dict[str, Any]:
    """The retained configurations below both prefixes."""
    return {topic: text for tree in TREES for topic, text in retained(broker, login, topic=tree).items()}


def stand(broker: Mosquitto, wanted: set[str], login: tuple[str, str] | None = None) -> dict[str, Any]:
    """Wait until the retained configurations are these."""
    found: dict[str, Any] = {}

    def is_wanted() -> bool:
        found.clear()
        found.update(configured(broker, login))
        return set(found) == wanted

    try:
        wait_until(is_wanted, within=20, what="the configurations are as wanted")
    except AssertionError as error:
        error.add_note(f"there are {sorted(found)}")
        raise
    return found


def test_entities_follow_tunnels_and_the_discovery_setting(
    harness: ProcessHarness, broker: Mosquitto, hosts: Hosts
) -> None:
    lamp = "homeassistant/light/edge-1/lamp/config"
    subprocess.run(["mosquitto_pub", "-p", str(broker.port), "-r", "-t", lamp, "-m", "{}"], check=True)
    spare = {"spare": f"client://{KEY}@127.0.0.1:{free_port()}/127.0.0.1:1"}
    daemon = hosts.up("edge-1", broker, {**hosts.server, **spare}, discovery=True)
    found = stand(broker, {lamp} | of_host() | of_tunnel("web") | of_tunnel("spare"))
    assert KEY not in json.dumps(found)
    up = found["homeassistant/binary_sensor/edge-1/nodepass-orch_t_web_up/config"]
    tree = retained(broker)
    states = {f"nodepass-orch/v1/{topic}" for topic in tree}
    assert {up["state_topic"], up["json_attributes_topic"], up["availability_topic"]} <= states, "they are there"
    assert tree["edge-1/info"]["discovery"] == "homeassistant"
    daemon.write({**hosts.server, "other": spare["spare"]})
    stand(broker, {lamp} | of_host() | of_tunnel("web") | of_tunnel("other"))
    daemon.kill()
    daemon = hosts.up("edge-1", broker, hosts.server, discovery=True)
    stand(broker, {lamp} | of_host() | of_tunnel("web"))
    daemon.kill()
    daemon = hosts.up("edge-1", broker, hosts.server, discovery=True, discovery_prefix="ha/here")
    stand(broker, {lamp} | of_host("ha/here") | of_tunnel("web", "ha/here"))
    daemon.signal(signal.SIGTERM)
    assert daemon.wait_exit() == 0
    assert set(configured(broker)) > {lamp}, "a host that is gone is shown gone, not forgotten"
    daemon = hosts.up("edge-1", broker, hosts.server)
    stand(broker, {lamp})
    assert retained(broker)["edge-1/info"]["discovery"] is None
    warnings = [line for line in daemon.log_text().splitlines() if " WARN " in line]
    assert [line for line in warnings if daemon.file.name not in line] == [], "only the file has something to warn of"


def test_without_the_setting_no_discovery_is_published(
    harness: ProcessHarness, broker: Mosquitto, hosts: Hosts
) -> None:
    daemon = hosts.up("edge-1", broker, hosts.server)
    connected(daemon)
    wait_until(lambda: "edge-1/t/web/state" in retained(broker), within=5, what="the state is told")
    assert not configured(broker)


@pytest.mark.slow
def test_the_sample_access_rule_permits_only_own_entities_and_its_lack_is_reported(
    harness: ProcessHarness, hosts: Hosts
) -> None:
    directory = harness.directory / "guarded"
    directory.mkdir()
    passwords, rules = directory / "passwords", directory / "acl"
    passwords.touch(mode=0o600)
    shutil.copy(ROOT / "configs" / "fleet" / "acl", rules)
    rules.chmod(0o600)
    for user in ("edge-1", "edge-2", "operator"):
        subprocess.run(["mosquitto_passwd", "-b", str(passwords), user, PASSWORD], check=True, capture_output=True)
    lines = f"allow_anonymous false\npassword_file {passwords}\nacl_file {rules}\n"
    guarded = harness.close_at_end(Mosquitto(directory, lines))
    daemon = hosts.up("edge-1", guarded, hosts.server, username="edge-1", password=PASSWORD, discovery=True)
    daemon.wait_for_log(r"drops the discovery messages: .* homeassistant/sensor/edge-1/\+/config", within=25)
    daemon.signal(signal.SIGTERM)
    assert daemon.wait_exit() == 0
    guarded.stop()
    text = rules.read_text()
    line = "pattern readwrite homeassistant/+/%u/+/config\n"
    assert f"# {line}" in text
    rules.write_text(f"{text.replace(f'# {line}', line)}topic read homeassistant/#\n")
    guarded.start()
    daemon = hosts.up("edge-1", guarded, hosts.server, username="edge-1", password=PASSWORD, discovery=True)
    stand(guarded, of_host() | of_tunnel("web"), OPERATOR)
    stranger = publish(guarded, "x", "{}", "-u", "edge-2", "-P", PASSWORD, "-t", "homeassistant/sensor/edge-1/x/config")
    assert "ot authorized" in stranger.stderr
    assert "discovery" not in daemon.log_text()
