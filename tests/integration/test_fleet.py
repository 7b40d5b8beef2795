"""Hosts on a real broker: what they publish and accept, and that problems of the broker do not affect tunnels."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from orchestrator.mqtt.broker import Broker
from orchestrator.mqtt.ownership import COPY_RETURNS_WITHIN_S, load_identity
from orchestrator.mqtt.session import BrokerClient
from orchestrator.mqtt.topics import OutgoingMessage
from tests.bench.processes import clean_environment
from tests.bench.screen import selected_tunnel
from tests.bench.terminal import run_on_terminal
from tests.integration.test_programs import find, needs
from tests.support.namespaces import Host
from tests.support.peers import connect, round_trip
from tests.support.ports import free_port
from tests.support.processes import ROOT, Command, Daemon, ProcessHarness, running_harness
from tests.support.scale import GUARD_S, time_allowed
from tests.support.waiting import wait_until
from tests.tui.conftest import screen_text, shows
from tests.tui.conftest import wait_until_shown as seen
from tui.app import Dashboard
from tui.sources.fleet import FleetSource

pytestmark = needs("mosquitto", "mosquitto_sub", "mosquitto_pub", "mosquitto_passwd")

TREE: Final = "nodepass-orch/v1"
KEY: Final = "a-secret-key"
DASHBOARD: Final = (sys.executable, "-m", "tui.cli")
PASSWORD: Final = "p%s:@rd+/ of a broker"


class Mosquitto:
    """A broker on a free port: of loopback, or of a host of our own at all of its addresses."""

    def __init__(
        self,
        directory: Path,
        lines: str = "allow_anonymous true\n",
        port: int | None = None,
        host: Host | None = None,
    ) -> None:
        self.port = port or free_port()
        self.prefix = host.prefix if host else ()
        self._host = host
        self.directory = directory
        directory.mkdir(exist_ok=True)
        directory.chmod(0o755)
        self.config = directory / "mosquitto.conf"
        user = "user root\n" if os.geteuid() == 0 else ""
        listener = f"listener {self.port} {'0.0.0.0' if host else '127.0.0.1'}"
        self.config.write_text(f"{user}persistence false\n{listener}\n{lines}")
        self.start()

    def start(self) -> None:
        """Start mosquitto; return when it listens."""
        with (self.directory / "log").open("ab") as log:
            command = [*self.prefix, str(find("mosquitto")), "-c", str(self.config)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

        def listens() -> bool:
            assert self.process.poll() is None, (self.directory / "log").read_text()
            try:
                with self.in_namespace():
                    connect(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                return False
            return True

        wait_until(listens, within=10, what="mosquitto listens")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a process signal and wait for the end."""
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(number)
        self.process.wait(10)

    def close(self) -> None:
        """Kill mosquitto if it still runs."""
        if self.process.poll() is None:
            self.stop(signal.SIGKILL)

    def in_namespace(self) -> contextlib.AbstractContextManager[None]:
        """Enter the network namespace of its host, where loopback reaches it; sockets made there stay there."""
        return self._host.entered() if self._host else contextlib.nullcontext()

    def count_logins(self, address: str) -> int:
        """How many clients from an address have logged in so far."""
        return (self.directory / "log").read_text().count(f"New client connected from {address}:")

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"


class BrokerRecorder:
    """Records all messages on a broker, in their order, from a moment after its creation.

    Wait for a retained message before you cause one that is not retained.
    """

    def __init__(self, harness: ProcessHarness, broker: Mosquitto, *options: str, topic: str = f"{TREE}/#") -> None:
        arguments = [
            *broker.prefix,
            "mosquitto_sub",
            "-p",
            str(broker.port),
            "-V",
            "5",
            "-F",
            "%U %r %t %p",
            "-t",
            topic,
        ]
        self._command = Command(f"recorder-{len(harness.commands)}", [*arguments, *options], harness.directory, {})
        harness.close_at_end(self._command)

    def messages(self) -> list[tuple[bool, str, str]]:
        """Whether it was retained, topic and payload of each message."""
        return [(flag == "1", topic, text) for _, flag, topic, text in self._lines()]

    def timed_payloads(self) -> list[tuple[float, dict[str, Any]]]:
        """Time of arrival, in seconds since the epoch, and payload of each message that is not retained."""
        return [(float(moment), json.loads(text)) for moment, flag, _, text in self._lines() if flag == "0"]

    def _lines(self) -> list[list[str]]:
        return [line.split(" ", 3) for line in self._command.stdout_text().split("\n") if line]

    def payloads(self, topic: str) -> list[dict[str, Any]]:
        """The payloads on one topic; an empty one is an empty object."""
        return [json.loads(text or "{}") for _, where, text in self.messages() if where == f"{TREE}/{topic}"]

    def wait_payload(
        self, topic: str, wanted: Callable[[dict[str, Any]], object] = bool, *, within: float = 5.0
    ) -> dict[str, Any]:
        """Wait until the last payload on a topic is as wanted, and return it."""

        def last() -> dict[str, Any] | None:
            words = self.payloads(topic)
            return words[-1] if words and wanted(words[-1]) else None

        try:
            found = wait_until(last, within=within, what=f"{topic} is as wanted")
        except AssertionError as error:
            error.add_note(f"heard: {self.messages()[-10:]}")
            raise
        assert found is not None
        return found


def retained(broker: Mosquitto, login: tuple[str, str] | None = None, *, topic: str = f"{TREE}/#") -> dict[str, Any]:
    """All retained messages: those that arrive before SUBACK of a second subscription."""
    found: dict[str, Any] = {}
    answers: list[int] = []

    def subscribe(client: paho.Client, *_: object) -> None:
        client.subscribe(topic)
        client.subscribe("no/messages/here")

    def receive(_client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        if message.retain:
            found[message.topic.removeprefix(f"{TREE}/")] = json.loads(message.payload)

    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.on_connect, client.on_message = subscribe, receive
    client.on_subscribe = lambda _client, _data, number, *_: answers.append(number)
    if login:
        client.username_pw_set(*login)
    with broker.in_namespace():
        client.connect("127.0.0.1", broker.port)

    def has_read_all() -> bool:
        assert not (error := client.loop(0.1)), f"the connection to the broker: {error.name}"
        return len(answers) == 2

    wait_until(has_read_all, within=10, what="the broker sends its retained messages")
    client.disconnect()
    return found


def wait_offline(broker: Mosquitto, host: str) -> None:
    """Wait until the retained status of a host is offline."""
    wait_until(lambda: retained(broker)[f"{host}/status"]["online"] is False, within=5, what=f"{host} is gone")


def publish(broker: Mosquitto, topic: str, payload: object, *options: str) -> subprocess.CompletedProcess[str]:
    text = payload if isinstance(payload, str) else json.dumps(payload)
    command = ["mosquitto_pub", "-V", "5", "-p", str(broker.port), "-q", "1", "-t", f"{TREE}/{topic}", "-m", text]
    return subprocess.run([*command, *options], capture_output=True, text=True, check=False, timeout=GUARD_S)


@pytest.fixture
def broker(harness: ProcessHarness) -> Mosquitto:
    return harness.close_at_end(Mosquitto(harness.directory / "broker"))


class Hosts:
    """Daemons that publish, all of them here or on a host of our own."""

    def __init__(self, harness: ProcessHarness, home: Host | None = None) -> None:
        self.harness = harness
        self.prefix = home.prefix if home else ()
        self.target = harness.start_target()
        self.tunnel_port, self.visitor_port = free_port(), free_port()

    @property
    def server(self) -> dict[str, str]:
        return {"web": f"server://{KEY}@127.0.0.1:{self.tunnel_port}/127.0.0.1:{self.visitor_port}?mode=reverse"}

    @property
    def client(self) -> dict[str, str]:
        return {"web": f"client://{KEY}@127.0.0.1:{self.tunnel_port}/127.0.0.1:{self.target.port}"}

    def up(
        self,
        name: str,
        broker: Mosquitto,
        tunnels: Mapping[str, str],
        *,
        options: Sequence[str] = (),
        password: str = "",
        **mqtt: object,
    ) -> Daemon:
        """A daemon whose file has this section, and whose environment this password."""
        section = {"url": broker.url, "host": name, "commands": True, **mqtt}
        env = {"XDG_STATE_HOME": str(self.harness.directory / "state"), "NODEPASS_ORCH_MQTT_PASSWORD": password}
        supervisor = {"mqtt": section}
        return self.harness.start_daemon(
            tunnels, name=name, prefix=self.prefix, env=env, supervisor=supervisor, options=options
        )

    def pair(self, broker: Mosquitto) -> tuple[Daemon, Daemon]:
        """edge-1 with the server, edge-2 with the client, both up."""
        one, two = self.up("edge-1", broker, self.server), self.up("edge-2", broker, self.client)
        for daemon in (one, two):
            daemon.wait_state("up", name="web", within=10)
        return one, two


@pytest.fixture
def hosts(harness: ProcessHarness) -> Hosts:
    return Hosts(harness)


def mqtt_of(daemon: Daemon) -> dict[str, Any]:
    try:
        found: dict[str, Any] = daemon.status()["mqtt"]
    except OSError:
        return {"state": "not answering", "reason": ""}
    return found


def connected(daemon: Daemon, *, within: float = 10.0) -> None:
    wait_until(
        lambda: mqtt_of(daemon)["state"] == "online",
        within=within,
        what=f"{daemon.name} publishes; {daemon.log_text()}",
    )


def fleet(harness: ProcessHarness, broker: Mosquitto, *arguments: str, url: str = "") -> tuple[int, str, str]:
    """The command: exit code, standard output, standard error."""
    command = harness.start_command("fleet", *arguments, "--mqtt", url or broker.url)
    return command.wait_exit(within=30), command.stdout_text(), command.log_text()


LASTING = ("name", "role", "direction", "state", "tunnel_addr", "target_addr", "link", "auth", "tags", "restarts")


# --- what is published ------------------------------------------------------------------------------------------------


ODD_NAME: Final = "odd/na+me #[red] é"
ODD_TOPIC: Final = "odd%2Fna%2Bme%20%23%5Bred%5D%20%C3%A9"


@dataclass(frozen=True)
class PublishedPair:
    """Two hosts that are up and publish, and what they have published from the start."""

    broker: Mosquitto
    recorder: BrokerRecorder
    hosts: Hosts
    one: Daemon
    two: Daemon

    def states(self) -> list[dict[str, Any]]:
        """The published states of all tunnels of edge-1, in their order."""
        topics = re.compile(rf"{TREE}/edge-1/t/[^/]+/state")
        return [json.loads(text) for _, topic, text in self.recorder.messages() if topics.fullmatch(topic)]

    def write_tunnels(self) -> None:
        """Write the file of edge-1, with a tunnel whose name needs encoding."""
        self.one.write({**self.hosts.server, ODD_NAME: f"client://{KEY}@127.0.0.1:9/127.0.0.1:1"})


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Generator[PublishedPair]:
    """One pair for the tests of what is published. A test that changes the file restores it."""
    with running_harness(tmp_path_factory.mktemp("published")) as harness:
        broker = harness.close_at_end(Mosquitto(harness.directory / "broker"))
        recorder, hosts = BrokerRecorder(harness, broker), Hosts(harness)
        pair = PublishedPair(broker, recorder, hosts, *hosts.pair(broker))
        pair.write_tunnels()
        recorder.wait_payload(f"edge-1/t/{ODD_TOPIC}/state", lambda word: word["state"] == "cooldown", within=15)
        yield pair


def test_status_and_info_follow_the_contract(published: PublishedPair) -> None:
    birth = published.recorder.payloads("edge-1/status")[0]
    assert birth == {**birth, "v": 1, "online": True}
    info = published.recorder.wait_payload("edge-1/info", lambda word: word["tunnels"] == 2)
    assert info == {**info, "v": 1, "config_ok": True, "config_error": None, "boot": birth["boot"]}
    assert {"name", "version", "ts"} <= set(info)


@pytest.mark.parametrize("host", ["edge-1", "edge-2"])
def test_a_published_state_equals_the_status_of_the_daemon(published: PublishedPair, host: str) -> None:
    state = published.recorder.wait_payload(f"{host}/t/web/state", lambda word: word["pool"]["idle"] == 8)
    truth = (published.one if host == "edge-1" else published.two).tunnel("web")
    assert {key: state[key] for key in LASTING} == {key: truth[key] for key in LASTING}
    assert set(truth) | {"v", "boot", "seq", "ts"} == set(state)


def test_the_sequence_numbers_of_a_host_only_grow(published: PublishedPair) -> None:
    wait_until(lambda: len(published.states()) > 2, within=15, what="the host has published three states")
    sequence = [state["seq"] for state in published.states()]
    assert sequence == sorted(set(sequence))


def test_statistics_follow_a_visitor(published: PublishedPair) -> None:
    with connect(("127.0.0.1", published.hosts.visitor_port)) as visitor:
        visitor.sendall(b"x" * 100)
        stats = published.recorder.wait_payload(
            "edge-1/t/web/stats", lambda word: (word["connections"]["active"], word["bytes"]["in"]) == (1, 100)
        )
        assert {"v", "pool", "signals", "connections", "bytes", "rtt_ms", "cooldown"} <= set(stats)


def test_a_reload_is_published_as_an_event(published: PublishedPair) -> None:
    def kinds() -> set[str]:
        return {event["kind"] for event in published.recorder.payloads("edge-1/event")}

    wait_until(lambda: "reload" in kinds(), within=5, what="the reload is published")
    fields = {"v", "ts", "kind", "tunnel", "text"}
    assert all(fields <= set(event) for event in published.recorder.payloads("edge-1/event"))


def test_an_invalid_file_is_published_with_its_place(published: PublishedPair) -> None:
    published.one.file.write_text("version: 1\ntunnels: [\n")
    broken = published.recorder.wait_payload("edge-1/info", lambda word: not word["config_ok"], within=15)
    assert ":2:" in broken["config_error"] or ":3:" in broken["config_error"]
    published.write_tunnels()
    published.recorder.wait_payload("edge-1/info", lambda word: word["config_ok"], within=15)


def test_a_strict_ps_of_the_fleet_fails_while_a_host_refuses_its_file(
    harness: ProcessHarness, published: PublishedPair
) -> None:
    published.one.file.write_text("version: 1\ntunnels: [\n")
    published.recorder.wait_payload("edge-1/info", lambda word: not word["config_ok"], within=15)
    try:
        fault = f"the last valid configuration stays in force: {published.one.file}:"
        asked = partial(fleet, harness, published.broker, "ps")
        assert [asked("edge-1/web")[0], asked("edge-2", "--strict")[0]] == [0, 0]
        code, out, _ = asked("--strict")
        assert (code, fault in out) == (2, True), "not 3, though a tunnel is in cooldown"
        code, out, said = asked("--strict", "--routes")
        assert (code, fault in out, said.startswith(f"nodepass-orch: edge-1: {fault}")) == (2, False, True)
    finally:
        published.write_tunnels()
        published.recorder.wait_payload("edge-1/info", lambda word: word["config_ok"], within=15)


def test_only_lasting_topics_are_retained(published: PublishedPair) -> None:
    whole = {f"{host}/{topic}" for host in ("edge-1", "edge-2") for topic in ("status", "info", "t/web/state")}
    assert set(retained(published.broker)) == whole | {f"edge-1/t/{ODD_TOPIC}/state"}


def test_no_message_contains_a_key(published: PublishedPair) -> None:
    texts = [text for _, _, text in published.recorder.messages()]
    assert len(texts) > 6
    assert KEY not in "".join(texts)


def test_the_last_will_reports_a_kill_and_the_next_run_clears_old_topics(
    harness: ProcessHarness, broker: Mosquitto, hosts: Hosts
) -> None:
    recorder = BrokerRecorder(harness, broker)
    extra = {"old one": f"client://127.0.0.1:{free_port()}/127.0.0.1:1"}
    first = hosts.up("edge-1", broker, {**hosts.server, **extra})
    recorder.wait_payload("edge-1/t/old%20one/state")
    first.kill()
    recorder.wait_payload("edge-1/status", lambda word: word["online"] is False, within=5)
    second = hosts.up("edge-1", broker, hosts.server)
    connected(second)
    recorder.wait_payload("edge-1/status", lambda word: word["online"] is True)
    wait_until(lambda: recorder.payloads("edge-1/t/old%20one/state")[-1] == {}, within=5, what="the orphan is cleared")
    assert "edge-1/t/old%20one/state" not in retained(broker)
    assert retained(broker)["edge-1/status"]["online"] is True
    second.signal(signal.SIGTERM)
    assert second.wait_exit() == 0
    assert retained(broker)["edge-1/status"]["online"] is False


def test_a_removed_tunnel_leaves_no_retained_message(harness: ProcessHarness, broker: Mosquitto, hosts: Hosts) -> None:
    recorder = BrokerRecorder(harness, broker)
    daemon = hosts.up("edge-1", broker, {**hosts.server, "gone": f"client://127.0.0.1:{free_port()}/127.0.0.1:1"})
    recorder.wait_payload("edge-1/t/gone/state")
    daemon.write(hosts.server)
    wait_until(lambda: recorder.payloads("edge-1/t/gone/state")[-1] == {}, within=15, what="its state is cleared")
    assert "edge-1/t/gone/state" not in retained(broker)


def test_what_a_host_carried_today_and_this_month_is_shown_in_the_fleet(
    harness: ProcessHarness, broker: Mosquitto, hosts: Hosts
) -> None:
    server, _ = hosts.pair(broker)
    with connect(("127.0.0.1", hosts.visitor_port)) as visitor:
        assert round_trip(visitor, bytes(5000)) == bytes(5000)
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    server.start()
    info = wait_until(
        lambda: (found := retained(broker)["edge-1/info"])["bytes_today"] and found, within=15, what="it is published"
    )
    assert info["bytes_today"] == info["bytes_month"] == 10_000
    _, text, _ = fleet(harness, broker, "ps", "edge-1")
    assert "online, 1 tunnel, 9.8K today, 9.8K this month" in text


def test_a_host_without_a_name_publishes_under_its_stored_id(harness: ProcessHarness, broker: Mosquitto) -> None:
    section = {"mqtt": {"url": broker.url}}
    daemon = harness.start_daemon({}, supervisor=section, env={"STATE_DIRECTORY": str(harness.directory / "state")})
    connected(daemon)
    (kept,) = (harness.directory / "state").glob("host-*")
    assert retained(broker)[f"{kept.read_text().strip()}/status"]["online"] is True


# --- a broker's trouble -----------------------------------------------------------------------------------------------


def test_a_restarted_broker_has_the_present_state_within_seconds(
    harness: ProcessHarness, broker: Mosquitto, hosts: Hosts
) -> None:
    one, two = hosts.pair(broker)
    with connect(("127.0.0.1", hosts.visitor_port)) as visitor:
        broker.stop(signal.SIGKILL)
        wait_until(lambda: mqtt_of(one)["state"] == "unreachable", within=5, what="the problem is shown")
        wait_until(lambda: "refused the connection" in mqtt_of(one)["reason"], within=5, what="its reason is shown")
        for number in range(200):
            visitor.sendall(b"%03d" % number)
            assert visitor.recv(3) == b"%03d" % number
        broker.start()
        began = time.monotonic()
        for daemon in (one, two):
            connected(daemon, within=5)
        wait_until(
            lambda: {"edge-1/t/web/state", "edge-2/t/web/state"} <= set(retained(broker)),
            within=5,
            what="all states are published",
        )
        assert time.monotonic() - began < time_allowed(7), "five seconds, and two polls"
        told = retained(broker)
        assert told["edge-1/t/web/state"]["link"] == one.tunnel("web")["link"]
        assert told["edge-1/status"]["online"] is True
        visitor.sendall(b"end")
        assert visitor.recv(3) == b"end"


def test_a_frozen_broker_delays_neither_tunnels_nor_commands_nor_the_end(
    harness: ProcessHarness, broker: Mosquitto, hosts: Hosts
) -> None:
    one, _ = hosts.pair(broker)
    connected(one)
    broker.process.send_signal(signal.SIGSTOP)
    try:
        harness.wait_serving(("127.0.0.1", hosts.visitor_port))
        one.signal(signal.SIGTERM)
        began = time.monotonic()
        assert one.wait_exit(within=15) == 0
        assert time.monotonic() - began < time_allowed(10)
    finally:
        broker.process.send_signal(signal.SIGCONT)
    wait_offline(broker, "edge-1")  # it could not publish its offline status, so its last will does


@pytest.mark.slow
def test_a_frozen_broker_is_reported_and_reconnected(harness: ProcessHarness, broker: Mosquitto, hosts: Hosts) -> None:
    one, _ = hosts.pair(broker)
    connected(one)
    before = one.rss()
    broker.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: mqtt_of(one)["state"] == "unreachable", within=60, what="the silence is noticed")
    assert one.rss() - before < 4 << 20
    broker.process.send_signal(signal.SIGCONT)
    connected(one, within=15)
    wait_until(lambda: retained(broker)["edge-1/status"]["online"], within=5, what="online again")


def test_a_daemon_starts_without_its_broker(harness: ProcessHarness, hosts: Hosts) -> None:
    nobody = free_port()
    daemon = harness.start_daemon(
        hosts.server,
        supervisor={"mqtt": {"url": f"mqtt://127.0.0.1:{nobody}", "host": "edge-1"}},
        env={"XDG_STATE_HOME": str(harness.directory)},
    )
    daemon.wait_state("waiting", name="web")
    wait_until(lambda: mqtt_of(daemon)["state"] == "unreachable", within=5, what="the unreachable broker is shown")
    shown = mqtt_of(daemon)
    assert (shown["broker"], shown["host"]) == (f"mqtt://127.0.0.1:{nobody}", "edge-1")
    time.sleep(2)  # several attempts
    assert len([line for line in daemon.log_text().splitlines() if "mqtt" in line]) == 1, (
        "told once, not at each attempt"
    )


def test_of_two_hosts_with_one_name_the_second_waits(harness: ProcessHarness, broker: Mosquitto, hosts: Hosts) -> None:
    recorder = BrokerRecorder(harness, broker)
    first = hosts.up("edge-1", broker, hosts.server)
    connected(first)
    boot = recorder.wait_payload("edge-1/status")["boot"]
    second = hosts.up("edge-1", broker, hosts.client)
    shown = wait_until(
        lambda: mqtt_of(second)["state"] == "duplicate" and mqtt_of(second), within=10, what="it is reported"
    )
    assert shown
    assert "another host is online as 'edge-1'" in shown["reason"]
    second.wait_for_log("another host is online as 'edge-1'")
    time.sleep(1)
    assert {word.get("boot") for word in recorder.payloads("edge-1/status")} == {boot}
    assert mqtt_of(first)["state"] == "online"
    since = mqtt_of(second)["since"]
    time.sleep(1)
    assert mqtt_of(second)["since"] == since, "it retries, and the problem is the same"
    first.kill()
    connected(second)
    assert (mqtt_of(second)["reason"], mqtt_of(second)["since"] > since) == (None, True)
    assert recorder.wait_payload("edge-1/status", lambda word: word["online"])["boot"] != boot


@pytest.mark.slow
def test_of_two_copied_machines_the_earlier_run_withdraws_and_reports_it(
    harness: ProcessHarness, broker: Mosquitto, hosts: Hosts
) -> None:
    first = hosts.up("edge-1", broker, hosts.server)
    connected(first)
    state = harness.directory / "state" / "nodepass-orch"
    (kept,) = state.glob("host-*")
    copied = harness.directory / "copied" / "nodepass-orch"
    copied.mkdir(parents=True)
    file = harness.directory / "there" / first.file.name
    file.parent.mkdir()
    load_identity(file, copied)
    (its,) = copied.iterdir()
    its.write_text(kept.read_text())
    file.write_text(
        json.dumps({"version": 1, "supervisor": {"mqtt": {"url": broker.url, "host": "edge-1"}}, "tunnels": {}})
    )
    socket = harness.directory / "there.sock"
    second = harness.start_command(
        "up", str(file), "--no-tui", "--socket", str(socket), env={"XDG_STATE_HOME": str(copied.parent)}
    )
    wait_until(
        lambda: mqtt_of(first)["state"] == "duplicate", within=10, what="the host that was disconnected reports it"
    )
    assert "one of them was copied" in mqtt_of(first)["reason"]
    recorder = BrokerRecorder(harness, broker, topic=f"{TREE}/edge-1/status")
    recorder.wait_payload("edge-1/status", lambda word: word["online"])
    said = recorder.messages()
    time.sleep(COPY_RETURNS_WITHIN_S + 2)
    assert recorder.messages() == said, "neither host disconnects the other again"
    assert mqtt_of(first)["state"] == "duplicate"
    second.signal(signal.SIGTERM)
    second.wait_exit()
    connected(first, within=10)


# --- commands ---------------------------------------------------------------------------------------------------------


def answer_to(broker: Mosquitto, recorder: BrokerRecorder, order: Mapping[str, Any], *options: str) -> dict[str, Any]:
    publish(broker, "edge-1/cmd", dict(order), *options)
    return recorder.wait_payload(f"edge-1/rsp/{order['id']}")


@dataclass(frozen=True)
class CommandedHost:
    """A host whose tunnel ``web`` waits for its client, and what is published."""

    broker: Mosquitto
    recorder: BrokerRecorder
    daemon: Daemon

    def answer(self, number: str, op: str, *options: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401  of a command
        """The answer to a command with this id."""
        return answer_to(self.broker, self.recorder, {"v": 1, "id": number, "op": op, **fields}, *options)


@pytest.fixture(scope="module")
def commanded(tmp_path_factory: pytest.TempPathFactory) -> Generator[CommandedHost]:
    """One host for the tests of commands. A test that changes the tunnel or the file restores them."""
    with running_harness(tmp_path_factory.mktemp("commanded")) as harness:
        broker = harness.close_at_end(Mosquitto(harness.directory / "broker"))
        recorder, hosts = BrokerRecorder(harness, broker), Hosts(harness)
        daemon = hosts.up("edge-1", broker, hosts.server)
        recorder.wait_payload("edge-1/t/web/state", lambda word: word["state"] == "waiting", within=15)
        yield CommandedHost(broker, recorder, daemon)


def test_a_command_is_executed_and_answered(commanded: CommandedHost) -> None:
    boot = commanded.recorder.payloads("edge-1/status")[-1]["boot"]
    done = commanded.answer("stop-1", "stop", target="web", boot=boot, exp=time.time() + 300)
    assert (done["ok"], done["error"], done["result"]["name"]) == (True, None, "web")
    commanded.daemon.wait_state("stopped", name="web")
    commanded.recorder.wait_payload("edge-1/t/web/state", lambda word: word["state"] == "stopped")
    assert commanded.answer("start-1", "start", target="*")["ok"]
    commanded.daemon.wait_state("waiting", name="web")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"boot": "another"}, "another run"),
        ({"exp": 1_700_000_000}, "expired"),
        ({"op": "toggle"}, "unknown op"),
        ({"target": "nobody"}, "no tunnel is named 'nobody'"),
        ({"target": None}, "needs a target"),
    ],
)
def test_a_wrong_command_is_refused_with_the_reason(commanded: CommandedHost, change: dict[str, Any], why: str) -> None:
    order = {"op": "stop", "target": "web", **change}
    refused = commanded.answer(f"wrong-{abs(hash(why))}", **order)
    assert not refused["ok"]
    assert why in refused["error"]
    assert commanded.daemon.tunnel("web")["state"] == "waiting"


def test_a_command_that_came_before_is_refused(commanded: CommandedHost) -> None:
    assert commanded.answer("twice", "reload")["ok"]
    publish(commanded.broker, "edge-1/cmd", {"v": 1, "id": "twice", "op": "stop", "target": "web"})
    refused = commanded.recorder.wait_payload("edge-1/rsp/twice", lambda word: not word["ok"])
    assert "came before" in refused["error"]
    assert commanded.daemon.tunnel("web")["state"] == "waiting"


@pytest.mark.parametrize(("text", "why"), [("{ no json", "not a JSON object"), ('{"v": 1, "op": "stop"}', "id is not")])
def test_a_malformed_command_is_answered_without_an_id(commanded: CommandedHost, text: str, why: str) -> None:
    publish(commanded.broker, "edge-1/cmd", text)
    answer = commanded.recorder.wait_payload("edge-1/rsp/malformed", lambda word: why in word["error"])
    assert (answer["ok"], answer["id"]) == (False, None)


def test_a_retained_command_is_refused_and_cleared_once(commanded: CommandedHost) -> None:
    assert "retained" in commanded.answer("old", "stop", "-r", target="web")["error"]
    wait_until(lambda: "edge-1/cmd" not in retained(commanded.broker), within=5, what="the command is cleared")
    assert commanded.answer("next", "reload")["ok"]
    cleared = [text for _, topic, text in commanded.recorder.messages() if topic == f"{TREE}/edge-1/cmd" and not text]
    assert len(cleared) == 1, "the host does not answer the message that clears the topic"
    assert commanded.daemon.tunnel("web")["state"] == "waiting"


def test_a_reload_is_answered_with_its_results_or_with_the_fault(commanded: CommandedHost) -> None:
    valid = commanded.daemon.file.read_text()
    assert commanded.answer("re", "reload")["result"]["results"]["web"]["action"] == "unchanged"
    commanded.daemon.file.write_text("version: 2\n")
    wrong = commanded.answer("re2", "reload")
    assert not wrong["ok"]
    assert f"{commanded.daemon.file.name}:1:" in wrong["error"]
    commanded.daemon.file.write_text(valid)
    assert commanded.answer("re3", "reload")["ok"]


def test_a_command_retained_while_the_host_was_offline_is_refused(
    harness: ProcessHarness, broker: Mosquitto, hosts: Hosts
) -> None:
    publish(broker, "edge-1/cmd", {"v": 1, "id": "trap", "op": "stop", "target": "web"}, "-r")
    recorder = BrokerRecorder(harness, broker)
    daemon = hosts.up("edge-1", broker, hosts.server)
    assert "retained" in recorder.wait_payload("edge-1/rsp/trap", within=10)["error"]
    daemon.wait_state("waiting", name="web")


@pytest.mark.parametrize(
    ("options", "commands", "why"), [((), False, "off on this host"), (("--read-only",), True, "read-only")]
)
def test_commands_are_refused_unless_enabled_and_always_when_read_only(
    harness: ProcessHarness, broker: Mosquitto, hosts: Hosts, options: tuple[str, ...], why: str, *, commands: bool
) -> None:
    recorder = BrokerRecorder(harness, broker)
    daemon = hosts.up("edge-1", broker, hosts.server, commands=commands, options=options)
    connected(daemon)
    assert recorder.wait_payload("edge-1/info")["commands"] is False
    assert why in answer_to(broker, recorder, {"v": 1, "id": "x", "op": "stop", "target": "web"})["error"]
    assert daemon.tunnel("web")["state"] != "stopped"


# --- the fleet from scripts -------------------------------------------------------------------------------------------


def _still(tunnel: dict[str, Any]) -> dict[str, Any]:
    """The tunnels without fields that change even when idle."""
    links = [{**link, "rtt_ms": None} for link in tunnel["links"]]
    return {**tunnel, "rtt_ms": None, "links": links, "pool": {**tunnel["pool"], "dialing": None}}


def _still_of(hosts: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, list[dict[str, Any]]]]:
    return {name: (host["generation"], [_still(one) for one in host["tunnels"]]) for name, host in hosts.items()}


def test_fleet_ps_equals_the_ps_of_every_host(harness: ProcessHarness, broker: Mosquitto, hosts: Hosts) -> None:
    one, two = hosts.pair(broker)
    daemons = {"edge-1": one, "edge-2": two}

    def shows_present_state() -> bool:
        code, out, _ = fleet(harness, broker, "ps", "--json")
        told = {host["host"]: host for host in json.loads(out)["hosts"]}
        assert {name: host["presence"] for name, host in told.items()} == dict.fromkeys(daemons, "online")
        return code == 0 and _still_of(told) == _still_of({name: host.status() for name, host in daemons.items()})

    wait_until(shows_present_state, within=10, what="states are published once more when their numbers have settled")
    code, out, _ = fleet(harness, broker, "ps", "--routes")
    ends = f"127.0.0.1:{hosts.visitor_port} edge-1/web (up) ═ edge-2/web (up) → 127.0.0.1:{hosts.target.port}"
    assert out == f"visitors → {ends}\n"
    code, out, _ = fleet(harness, broker, "ps", "edge-2/w*")
    assert out.startswith("edge-2")
    assert "edge-1" not in out
    two.kill()
    wait_offline(broker, "edge-2")
    code, out, _ = fleet(harness, broker, "ps")
    assert code == 3
    assert re.search(r"^edge-2.*, gone, 1 tunnel, last message \d+ s ago$", out, re.MULTILINE)
    assert re.search(r"^web +client +reverse +◇ was up ", out, re.MULTILINE)


def test_fleet_commands_take_effect_within_a_second_or_say_why_not(
    harness: ProcessHarness, broker: Mosquitto, hosts: Hosts
) -> None:
    one, two = hosts.pair(broker)
    link = one.tunnel("web")["link"]
    code, out, _ = fleet(harness, broker, "restart", "edge-2/web", "--json")
    (result,) = json.loads(out)["results"]
    assert code == 0
    assert result["seconds"] < time_allowed(1)
    wait_until(lambda: two.tunnel("web")["link"] not in {link, None}, within=5, what="it is another link")
    code, out, said = fleet(harness, broker, "stop", "edge-*")
    assert (code, said) == (0, "")
    told = json.loads(fleet(harness, broker, "ps", "--json")[1])["hosts"]
    assert {tunnel["state"] for host in told for tunnel in host["tunnels"]} <= {"draining", "stopped"}, "no longer up"
    for daemon in (one, two):
        daemon.wait_state("stopped", name="web")
    assert fleet(harness, broker, "start", "edge-1/web", "edge-2/w*")[0] == 0
    one.wait_state("up", name="web")
    code, _, said = fleet(harness, broker, "stop", "edge-1/wob")
    assert (code, said) == (1, "nodepass-orch: no tunnel of edge-1 is named 'wob'; did you mean 'web'?\n")
    code, _, said = fleet(harness, broker, "stop", "edge-9")
    assert code == 1
    assert "edge-9" in said
    assert fleet(harness, broker, "reload", "edge-1", "edge-2")[0] == 0
    assert fleet(harness, broker, "reload", "edge-1/web")[0] == 2
    two.kill()
    wait_offline(broker, "edge-2")
    code, _, said = fleet(harness, broker, "start", "edge-2/web")
    assert code == 4
    assert "host 'edge-2' is gone" in said
    assert fleet(harness, broker, "ps", "--ca", "ca.crt")[::2] == (
        2,
        "nodepass-orch: --ca and --cert are for TLS: write --mqtt mqtts://…\n",
    )
    nobody = f"mqtt://me:{'geheim'}@127.0.0.1:{free_port()}"
    code, _, said = fleet(harness, broker, "ps", url=nobody)
    assert code == 4
    assert "refused the connection" in said
    assert "geheim" not in said


# --- the fleet on the screen ------------------------------------------------------------------------------------------


async def test_the_dashboard_controls_another_host_and_shows_it_go_and_return(
    harness: ProcessHarness, broker: Mosquitto, hosts: Hosts
) -> None:
    _, two = hosts.pair(broker)
    link = two.tunnel("web")["link"]
    app = Dashboard(FleetSource(Broker.from_url(broker.url)))
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        await seen(pilot, shows(app, "2 hosts", "● up 2"))
        assert app._main._table.move_to("edge-2/web")
        await pilot.press("r")
        await seen(pilot, shows(app, "Restart edge-2/web?", "on edge-2"))
        began = time.monotonic()
        await pilot.click("#yes")
        await seen(pilot, shows(app, "edge-2/web restarting"))
        assert time.monotonic() - began < time_allowed(2), "a second, and some time to draw"
        await seen(pilot, lambda: app.view.tunnels["edge-2/web"].data["link"] not in {link, None})
        await pilot.press("p")
        ends = (f"127.0.0.1:{hosts.visitor_port}", f"127.0.0.1:{hosts.target.port}", "edge-1", "edge-2")
        await seen(pilot, shows(app, "Visitors of", *ends))
        two.kill()
        await seen(pilot, shows(app, "Unknown: edge-2 is offline"))
        await pilot.press("escape")
        await seen(pilot, shows(app, "◇ gone 1", "◇ 1 gone"))
        hosts.up("edge-2", broker, hosts.client)
        await seen(pilot, shows(app, "● up 2", "◇ gone 0"))
        broker.stop(signal.SIGKILL)
        await seen(pilot, shows(app, "The broker has not answered", "stale"))
        broker.start()
        await seen(pilot, lambda: "stale" not in screen_text(app) and "● up 2" in screen_text(app))


async def test_a_restart_from_the_dashboard_is_answered_and_effective_within_a_second(
    harness: ProcessHarness, broker: Mosquitto, hosts: Hosts
) -> None:
    """Measured as users see it, from the key that confirms: the command on a terminal, for a tunnel of another host."""
    _, two = hosts.pair(broker)
    command, name = [*DASHBOARD, "top", "--mqtt", broker.url], "edge-2/web"
    async with run_on_terminal("top", command, directory=harness.directory, env=clean_environment()) as top:
        await top.wait_shown(lambda screen: any("● up 2" in row for row in screen), "both hosts", within=GUARD_S)
        if selected_tunnel(top.screen()) != name:
            await top.press_and_wait("j", lambda screen: selected_tunnel(screen) == name, name, within=GUARD_S)
        link = two.tunnel("web")["link"]
        asks = f"Restart {name}?"
        await top.press_and_wait("r", lambda screen: any(asks in row for row in screen), "a question", within=GUARD_S)
        confirm = "\x1b[C\r"  # from Cancel to the other button, then Enter
        says, began = f"{name} restarting", time.monotonic()
        await top.press_and_wait(
            confirm, lambda screen: any(says in row for row in screen), "an answer", within=GUARD_S
        )
        answered = time.monotonic() - began
        wait_until(lambda: two.tunnel("web")["link"] not in {link, None}, within=5, what="it runs on another link")
        two.wait_state("up", name="web")
        done = time.monotonic() - began
    assert max(answered, done) < time_allowed(1), f"answered after {answered:.2f} s, done after {done:.2f} s"


# --- users, rules, certificates ---------------------------------------------------------------------------------------


@pytest.fixture
def guarded(harness: ProcessHarness) -> Mosquitto:
    """A broker with the rules of our sample, and users edge-1, edge-2, operator."""
    directory = harness.directory / "guarded"
    directory.mkdir()
    passwords, rules = directory / "passwords", directory / "acl"
    passwords.touch(mode=0o600)
    shutil.copy(ROOT / "configs" / "fleet" / "acl", rules)
    rules.chmod(0o600)
    for user in ("edge-1", "edge-2", "operator"):
        subprocess.run(["mosquitto_passwd", "-b", str(passwords), user, PASSWORD], check=True, capture_output=True)
        (harness.directory / f"{user}.pw").write_text(f"{PASSWORD}\n")
    lines = f"allow_anonymous false\npassword_file {passwords}\nacl_file {rules}\n"
    return harness.close_at_end(Mosquitto(directory, lines))


def test_with_the_sample_access_rules_a_host_publishes_only_its_own_topics(
    harness: ProcessHarness, guarded: Mosquitto, hosts: Hosts
) -> None:
    def as_user(user: str) -> tuple[str, ...]:
        return ("-u", user, "-P", PASSWORD)

    recorder = BrokerRecorder(harness, guarded, *as_user("operator"))
    daemons = {}
    for name, tunnels in (("edge-1", hosts.server), ("edge-2", hosts.client)):
        file = str(harness.directory / f"{name}.pw")
        daemons[name] = hosts.up(name, guarded, tunnels, username=name, password_file=file)
        connected(daemons[name])
    lie = {"v": 1, "online": False, "boot": "lie", "ts": ""}
    assert "ot authorized" in publish(guarded, "edge-2/status", lie, "-r", *as_user("edge-1")).stderr
    publish(guarded, "edge-2/t/web/state", lie, "-r", *as_user("operator"))
    publish(guarded, "edge-2/cmd", {"v": 1, "id": "x", "op": "stop", "target": "web"}, *as_user("edge-1"))
    spy = BrokerRecorder(harness, guarded, *as_user("edge-1"))
    good = {"v": 1, "id": "y", "op": "restart", "target": "web"}
    publish(guarded, "edge-2/cmd", good, *as_user("operator"))
    assert recorder.wait_payload("edge-2/rsp/y")["ok"], (
        "the operator's command comes after the stranger's, and is the only answer"
    )
    assert not [topic for _, topic, _ in recorder.messages() if topic.endswith("rsp/x")]
    assert "lie" not in {
        word.get("boot") for word in recorder.payloads("edge-2/status") + recorder.payloads("edge-2/t/web/state")
    }
    assert {topic.split("/")[2] for _, topic, _ in spy.messages()} <= {"edge-1"}
    daemons["edge-2"].wait_state("up", name="web")
    everything = "".join(text for _, _, text in recorder.messages())
    assert PASSWORD not in everything
    assert KEY not in everything
    url = f"mqtt://operator:p%25s%3A%40rd%2B%2F%20of%20a%20broker@127.0.0.1:{guarded.port}"
    code, _, said = fleet(harness, guarded, "restart", "edge-1/web", url=url)
    assert (code, said) == (0, "")
    for daemon in daemons.values():
        assert PASSWORD not in daemon.log_text()


def test_the_sample_broker_configuration_works_beside_the_main_file_of_debian(
    harness: ProcessHarness, guarded: Mosquitto
) -> None:
    guarded.stop()
    authority = Authority(guarded.directory)
    authority.issue("broker")
    sample = (ROOT / "configs" / "fleet" / "mosquitto.conf").read_text()
    port = free_port()
    here = sample.replace("/etc/mosquitto/certs", str(guarded.directory)).replace(
        "/etc/mosquitto", str(guarded.directory)
    )
    included = guarded.directory / "conf.d"
    included.mkdir()
    (included / "fleet.conf").write_text(here.replace("listener 8883", f"listener {port} 127.0.0.1"))
    user = "user root\n" if os.geteuid() == 0 else ""
    guarded.config.write_text(
        f"{user}persistence true\npersistence_location {guarded.directory}/\nlog_dest stderr\ninclude_dir {included}\n"
    )
    guarded.port = port
    guarded.start()
    url = f"mqtts://operator@127.0.0.1:{port}"
    (harness.directory / "operator.pw").write_text(PASSWORD)
    files = ("--ca", str(authority.ca), "--password-file", str(harness.directory / "operator.pw"))
    code, _, said = fleet(harness, guarded, "ps", *files, url=url)
    assert (code, said) == (0, "nodepass-orch: no host has published to this broker\n")


def test_wrong_passwords_and_missing_rights_are_reported(
    harness: ProcessHarness, guarded: Mosquitto, hosts: Hosts
) -> None:
    wrong = hosts.up("edge-1", guarded, {}, username="edge-1", password="wrong")
    wrong.wait_for_log("refuses user 'edge-1': check user, password")
    other = hosts.up("edge-9", guarded, {}, username="edge-2", password=PASSWORD)
    other.wait_for_log(r"the broker .* (drops messages below|does not allow)", within=15)
    assert "wrong" not in wrong.log_text().replace("check user", "")
    for daemon in (wrong, other):
        shown = mqtt_of(daemon)
        assert shown["state"] == "refused"
        ps = harness.start_command("ps", "--socket", str(daemon.socket))
        assert ps.wait_exit() == 0, "tunnels are not affected"
        since, _, reason = ps.log_text().removeprefix("nodepass-orch: MQTT refused since ").partition(": ")
        assert dt.datetime.fromisoformat(since) == dt.datetime.fromisoformat(shown["since"]), (
            "local time on the terminal, UTC in JSON"
        )
        assert reason.startswith(f"{shown['reason']}\n")


class Authority:
    """Certificates for a test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self.ca = self._write("ca", self._key, self._sign("test authority", self._key.public_key(), is_ca=True))

    def issue(self, name: str) -> tuple[Path, Path]:
        """A certificate and its key, issued by this authority."""
        key = ec.generate_private_key(ec.SECP256R1())
        return self._write(name, key, self._sign(name, key.public_key(), is_ca=False)), self.directory / f"{name}.key"

    def _sign(self, name: str, public: ec.EllipticCurvePublicKey, *, is_ca: bool) -> x509.Certificate:
        loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([loopback]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=True, key_cert_sign=is_ca, crl_sign=is_ca, content_commitment=False,
                    key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
            .sign(self._key, hashes.SHA256())
        )  # fmt: skip

    def _write(self, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> Path:
        pem = serialization.Encoding.PEM
        secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (self.directory / f"{name}.key").write_bytes(secret)
        path = self.directory / f"{name}.crt"
        path.write_bytes(certificate.public_bytes(pem))
        return path


def test_tls_with_a_private_authority_and_a_client_certificate(harness: ProcessHarness, hosts: Hosts) -> None:
    authority = Authority(harness.directory)
    (crt, key), (own, own_key) = authority.issue("broker"), authority.issue("edge-1")
    lines = f"allow_anonymous true\ncafile {authority.ca}\ncertfile {crt}\nkeyfile {key}\nrequire_certificate true\n"
    broker = harness.close_at_end(Mosquitto(harness.directory / "tls", lines))
    url = f"mqtts://127.0.0.1:{broker.port}"
    both = {"url": url, "ca": str(authority.ca)}
    good = hosts.up("edge-1", broker, hosts.server, **both, cert=str(own), cert_key=str(own_key))
    connected(good)
    good.wait_state("waiting", name="web")
    files = ("--ca", str(authority.ca), "--cert", str(own), "--cert-key", str(own_key))
    code, out, _ = fleet(harness, broker, "ps", *files, url=url)
    assert code == 3
    assert "edge-1" in out
    distrusting = hosts.up("edge-2", broker, {}, url=url)
    distrusting.wait_for_log("TLS with the broker .* failed: certificate verify failed")
    nobody = hosts.up("edge-3", broker, {}, **both)
    nobody.wait_for_log(
        "the broker mqtts://.* does not answer as an MQTT broker; it may require a client certificate", within=15
    )
    plain = hosts.up("edge-4", broker, {}, ca=str(authority.ca))
    plain.wait_for_log("ca has no effect, because mqtt://.* is not encrypted; write mqtts://")
    plain.wait_for_log("does not answer as an MQTT broker", within=15)
    for daemon in (distrusting, nobody, plain):
        daemon.signal(signal.SIGTERM)
        assert daemon.wait_exit() == 0


async def test_a_broker_with_version_3_1_1_is_supported(broker: Mosquitto) -> None:
    client = BrokerClient(Broker.from_url(broker.url), is_v5_broker=False)
    async with client.session() as session:
        await session.subscribe(f"{TREE}/x/status", qos=1, retain_as_published=True)
        await session.publish(OutgoingMessage(f"{TREE}/x/status", b"{}", retain=True), expires_after_s=3)
        async for batch in session.receive_batches():
            assert [bytes(message.payload) for message in batch] == [b"{}"]
            break
