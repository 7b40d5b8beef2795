"""Problems of the broker do not affect tunnels: throughput stays, and afterwards the broker has the present state."""

from __future__ import annotations

import contextlib
import math
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.faults.broker_proxy import BrokerProxy, OldBroker
from tests.faults.conftest import FigureRecorder
from tests.faults.hosts import CLIENT, SERVER, ImpairedHosts
from tests.faults.loads import send_bulk, serve_bulk
from tests.faults.wire import Impairment
from tests.integration.test_fleet import (
    LASTING,
    TREE,
    BrokerRecorder,
    Hosts,
    Mosquitto,
    connected,
    mqtt_of,
    publish,
    retained,
)
from tests.integration.test_programs import needs
from tests.support import namespaces
from tests.support.peers import Target, connect
from tests.support.ports import free_port
from tests.support.processes import Daemon, ProcessHarness
from tests.support.scale import IS_FULL_SCALE, time_allowed
from tests.support.waiting import wait_until

pytestmark = needs("mosquitto", "mosquitto_sub")

TROUBLE = 60.0 if IS_FULL_SCALE else 3.0
"""Seconds that the fault lasts."""
TRUTH = 5.0
"""Seconds after its end in which the broker has to hold the present state."""
KICKED = 12.0
"""The same for a broker that has closed every connection for a while: it must not be flooded."""
LOOK = 0.5
"""Seconds for one comparison of the retained messages with the status of the daemons."""
PORTION = (64 if IS_FULL_SCALE else 16) << 20
"""Bytes between two readings of the clock."""
MEANWHILE = 20.0
"""Seconds in which a slow broker has the present state."""
SLOW = Impairment(delay=0.3, loss=0.05)
"""Impairment of the network to a slow broker, each way."""
LOOKS = 9
"""Minimum number of ratios, of which the median counts."""
OBSERVED_S = 60.0 if IS_FULL_SCALE else 4.0
"""Seconds in which the connections with a broker that ends each of them are counted."""
SHARE = 0.97 if IS_FULL_SCALE else 0.25
"""Of the throughput without a broker; the quick run only checks that nothing stalls."""


@pytest.fixture
def broker(harness: ProcessHarness) -> Mosquitto:
    return harness.close_at_end(Mosquitto(harness.directory / "broker"))


class Ends:
    """Both ends of a tunnel, each in its own daemon; with a broker's URL, both publish there.

    With a ``home`` they, their target and their visitors are on that host.
    """

    def __init__(
        self, harness: ProcessHarness, broker: Mosquitto, name: str, url: str, home: namespaces.Host | None = None
    ) -> None:
        self.hosts = Hosts(harness, home)
        listener = home.listener(("127.0.0.1", 0)) if home else None
        self.hosts.target = harness.close_at_end(Target(serve_bulk, listener=listener))
        self.tunnels: list[dict[str, str]] = [self.hosts.server, self.hosts.client]
        self.names = [f"{name}-1", f"{name}-2"]
        self.daemons: list[Daemon] = []
        for host, tunnels in zip(self.names, self.tunnels, strict=True):
            if not url:
                self.daemons.append(harness.start_daemon(tunnels, name=host, prefix=self.hosts.prefix))
            else:
                self.daemons.append(self.hosts.up(host, broker, tunnels, url=url))
        for daemon in self.daemons:
            daemon.wait_state("up", name="web", within=15)
        visit = home.connect if home else connect
        self.visitor = harness.close_at_end(visit(("127.0.0.1", self.hosts.visitor_port), timeout=60))

    def rss(self) -> int:
        """Resident memory of both daemons, in bytes."""
        return sum(daemon.rss() for daemon in self.daemons)

    def change(self, number: int, *, is_awaited: bool = False) -> None:
        """Add and remove failing tunnels at the first daemon, so that there is always something to publish."""
        names = [f"passing-{number + n}" for n in range(3)]
        failing = {name: f"client://127.0.0.1:{free_port()}/127.0.0.1:1" for name in names}
        first = self.daemons[0]
        first.write({**self.tunnels[0], **failing})
        if is_awaited:
            wanted = {"web", *names}
            wait_until(
                lambda: {t["name"] for t in first.status()["tunnels"]} == wanted,
                within=10,
                what="the tunnels are these",
            )


def disagreement(broker: Mosquitto, ends: Ends) -> str:
    """The first difference between the retained messages and the daemons; empty where there is none."""
    published = retained(broker)
    expected: set[str] = set()
    for name, daemon in zip(ends.names, ends.daemons, strict=True):
        truth = daemon.status()
        expected |= {f"{name}/status", f"{name}/info", *(f"{name}/t/{t['name']}/state" for t in truth["tunnels"])}
        if published.get(f"{name}/status", {}).get("online") is not True:
            return f"{name} is not online"
        if published.get(f"{name}/info", {}).get("generation") != truth["generation"]:
            return f"another generation of {name}"
        for tunnel in truth["tunnels"]:
            seen = published.get(f"{name}/t/{tunnel['name']}/state", {})
            if tunnel["name"] == "web" and _lasting(seen) != _lasting(tunnel):
                return f"{_lasting(seen)} is not {_lasting(tunnel)}"
    return "" if set(published) == expected else f"topics {set(published) ^ expected}"


def _lasting(seen: Mapping[str, Any]) -> dict[str, Any]:
    return {key: seen.get(key) for key in LASTING}


def settled(ours: Ends, others: Ends) -> int:
    """Wait until all is connected and warm; return how many bytes more the daemons with a broker use."""
    for daemon in ours.daemons:
        connected(daemon, within=15)
    for ends in (ours, others):
        send_bulk(ends.visitor, 4 * PORTION)
    return ours.rss() - others.rss()


def carry(ours: Ends, others: Ends) -> str:
    """Both pairs carry bulk in turns while states change and the fault lasts; return the share, in words."""
    ratios: list[float] = []
    began, number = time.monotonic(), 0
    while (now := time.monotonic()) < began + TROUBLE or len(ratios) < LOOKS:
        if now >= began + number * 2:
            number += 1
            ours.change(number)
            others.change(number)
        turns = [send_bulk(ends.visitor, PORTION) for ends in (others, ours, ours, others)]
        ratios.append((turns[0] + turns[3]) / (turns[1] + turns[2]))
    ratio = statistics.median(ratios)
    spread = statistics.median(abs(one - ratio) for one in ratios)
    unsure = 2 * 1.86 * spread / math.sqrt(len(ratios))  # two standard errors of a median: the machine is shared
    assert ratio >= SHARE - unsure, f"{ratio:.3f} ± {unsure:.3f} of the throughput without a broker"
    return f"{ratio:.2f} ± {unsure:.2f} of throughput without"


def truth_after(broker: Mosquitto, ours: Ends, within: float) -> float:
    """Seconds until the broker holds the present state."""
    began = time.monotonic()
    wrong = ["nobody has looked"]

    def agrees() -> bool:
        wrong.append(disagreement(broker, ours))
        return not wrong[-1]

    try:
        wait_until(agrees, within=within + LOOK, what="the broker holds the truth")
    except AssertionError as error:
        error.add_note(f"seen one after the other: {wrong[1:]}")
        raise
    return time.monotonic() - began


def unharmed(ours: Ends, others: Ends, before: int) -> int:
    """Check that neither memory nor log has grown; return how many KB more the daemons with a broker use."""
    said = [line for line in ours.daemons[1].log_text().splitlines() if "mqtt://" in line]
    assert len(said) <= 5, said
    grown = ours.rss() - others.rss() - before
    assert grown < 6 << 20, f"{grown >> 10} KB more than those without a broker"
    return grown >> 10


def resent(host: namespaces.Host) -> int:
    """TCP segments that a host retransmitted."""
    names, values = (line.split() for line in host.read("/proc/net/snmp").splitlines() if line.startswith("Tcp:"))
    return int(values[names.index("RetransSegs")])


# --- the troubles -----------------------------------------------------------------------------------------------------

Trouble = Callable[[Mosquitto, BrokerProxy], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def stopped(broker: Mosquitto, road: BrokerProxy) -> Generator[None]:
    broker.stop()
    try:
        yield
    finally:
        broker.start()


@contextlib.contextmanager
def blackholed(broker: Mosquitto, road: BrokerProxy) -> Generator[None]:
    road.is_flowing.clear()
    try:
        yield
    finally:
        road.is_flowing.set()


@contextlib.contextmanager
def _again_and_again(work: Callable[[], None], pause: float) -> Generator[None]:
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(pause):
            work()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(20)


@contextlib.contextmanager
def killed(broker: Mosquitto, road: BrokerProxy) -> Generator[None]:
    def kill_and_start() -> None:
        broker.stop(signal.SIGKILL)
        broker.start()

    with _again_and_again(kill_and_start, 3.0):
        yield
    broker.stop(signal.SIGKILL)
    broker.start()


@contextlib.contextmanager
def kicking(broker: Mosquitto, road: BrokerProxy) -> Generator[None]:
    with _again_and_again(road.break_connections, 0.2):
        yield
    road.break_connections()


# --- the cases --------------------------------------------------------------------------------------------------------


@pytest.mark.case("broker in trouble, throughput and truth", deadline=TROUBLE + 60)
@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(stopped, marks=pytest.mark.slow, id="stopped"),
        pytest.param(blackholed, marks=pytest.mark.slow, id="blackholed"),
        pytest.param(killed, marks=pytest.mark.slow, id="killed and restarted"),
        pytest.param(kicking, marks=pytest.mark.slow, id="kicking"),
    ],
)
def test_trouble(harness: ProcessHarness, broker: Mosquitto, record_figure: FigureRecorder, trouble: Trouble) -> None:
    """Two tunnels, one that is published and one that is not, carry bulk in turns while the fault lasts.

    With a publisher that blocks the loop while it waits for the broker (``time.sleep(0.3)`` in
    ``BrokerSession.publish``) a blackholed broker does not get the present state in time. Without
    ``Publications.restart`` neither does one that was killed and started at once; with
    ``connection_report._MAX_DELAY_S`` a minute, one that was stopped. Without ``ConnectionReporter._reported`` a
    minute of kicks fills the log with forty lines.
    """
    road = harness.close_at_end(BrokerProxy(("127.0.0.1", broker.port)))
    ours, others = Ends(harness, broker, "edge", road.url), Ends(harness, broker, "plain", "")
    before, attempts, began = settled(ours, others), road.accepted, time.monotonic()
    with trouble(broker, road):
        share = carry(ours, others)
        ours.change(1_000, is_awaited=True)
    lasted = time.monotonic() - began
    truth = truth_after(broker, ours, KICKED if trouble is kicking else TRUTH)
    assert road.accepted - attempts <= 2 * (20 + 3 * lasted), "attempts of two hosts come too often"
    record_figure(f"{share}, {unharmed(ours, others, before)} KB more, truth after {truth:.1f} s")


@pytest.mark.slow
@pytest.mark.case(
    "broker in trouble, throughput and truth, slow: 300 ms and 5 % of loss each way", deadline=TROUBLE + 90
)
def test_slow(harness: ProcessHarness, impaired_hosts: ImpairedHosts, record_figure: FigureRecorder) -> None:
    """The same with the broker on its own host, behind a network that loses every twentieth packet.

    300 ms and 5 % each way are what netem at both ends would make: a round trip takes 0.6 s. Changes during the fault
    are published during the fault, over the connections that exist.

    With ``time.sleep(0.3)`` in ``BrokerSession.publish`` the relays stall. With half a second for each confirmation
    there, not ten, one connection after the other is abandoned, and the broker never has the present state.
    """
    broker = harness.close_at_end(Mosquitto(harness.directory / "broker", host=impaired_hosts.server))
    url = f"mqtt://{SERVER}:{broker.port}"
    ours, others = (
        Ends(harness, broker, name, there, impaired_hosts.client) for name, there in (("edge", url), ("plain", ""))
    )
    before, attempts = settled(ours, others), broker.count_logins(CLIENT)
    recorder = BrokerRecorder(harness, broker, topic=f"{TREE}/{ours.names[0]}/info")
    lost = resent(impaired_hosts.server)
    impaired_hosts.wire.set_impairment(SLOW)
    share = carry(ours, others)
    ours.change(1_000, is_awaited=True)
    truth_after(broker, ours, MEANWHILE)
    ages = sorted(moment - datetime.fromisoformat(word["ts"]).timestamp() for moment, word in recorder.timed_payloads())
    lost = resent(impaired_hosts.server) - lost
    ours.change(2_000, is_awaited=True)
    impaired_hosts.wire.set_impairment(Impairment())
    truth = truth_after(broker, ours, TRUTH)
    assert len(ages) > TROUBLE / 4, ages
    assert ages[-1] <= time_allowed(MEANWHILE), ages
    assert broker.count_logins(CLIENT) - attempts <= 2, "connections do not last"
    assert lost > 0 or not IS_FULL_SCALE, "the wire lost nothing"
    news = f"news {ages[len(ages) // 2]:.1f} s on their way, {ages[-1]:.1f} s at most, {lost} segments resent to us"
    record_figure(f"{share}, {unharmed(ours, others, before)} KB more, {news}, truth after {truth:.1f} s")


@pytest.mark.slow
@pytest.mark.case("duplicate host name", deadline=60)
def test_duplicate(harness: ProcessHarness, broker: Mosquitto, record_figure: FigureRecorder) -> None:
    """The second host reports it and publishes nothing; its tunnels serve. It takes over the name after the first.

    Without ``HostOwnership.check_free`` both publish, and each overwrites the states of the other. (Its quick half
    is in ``tests/integration/test_fleet.py``.)
    """
    hosts = Hosts(harness)
    first = hosts.up("edge-1", broker, hosts.server)
    connected(first)
    second = hosts.up("edge-1", broker, {"other": hosts.client["web"]})
    second.wait_state("up", name="other", within=15)
    wait_until(
        lambda: "another host is online as 'edge-1'" in str(mqtt_of(second)["reason"]), within=10, what="it is reported"
    )
    boot = retained(broker)["edge-1/status"]["boot"]
    harness.wait_serving(("127.0.0.1", hosts.visitor_port))
    for _ in range(5):
        published = retained(broker)
        assert published["edge-1/status"]["boot"] == boot
        assert {topic for topic in published if "/t/" in topic} == {"edge-1/t/web/state"}
    assert mqtt_of(first)["state"] == "online"
    began = time.monotonic()
    first.kill()
    connected(second, within=TRUTH)
    took = time.monotonic() - began
    wait_until(
        lambda: {t for t in retained(broker) if "/t/" in t} == {"edge-1/t/other/state"}, within=TRUTH, what="truth"
    )
    record_figure(f"reported, not fought; took over {took:.1f} s after the first was killed")


# --- brokers that refuse ----------------------------------------------------------------------------------------------


@pytest.mark.case("broker refuses states", deadline=40)
def test_topics_that_may_not_be_written_are_named(harness: ProcessHarness, record_figure: FigureRecorder) -> None:
    """The host may write its status and info, but not its states: `ps` and the log name the topic and the reason code.

    With ``publish_all`` that ignores the reason codes `ps` shows ``online`` and the log has no word about it.
    """
    directory = harness.directory / "broker"
    directory.mkdir()
    rules = directory / "acl"
    rules.write_text(f"topic read {TREE}/#\n" + "".join(f"topic write {TREE}/edge-1/{t}\n" for t in ("status", "info")))
    rules.chmod(0o644)
    broker = harness.close_at_end(Mosquitto(directory, f"allow_anonymous true\nacl_file {rules}\n"))
    hosts = Hosts(harness)
    began = time.monotonic()
    daemon = hosts.up("edge-1", broker, hosts.server)
    wait_until(lambda: mqtt_of(daemon)["state"] == "refused", within=10, what="it is shown")
    took = time.monotonic() - began
    reason = str(mqtt_of(daemon)["reason"])
    assert f"does not allow a client without a user to write {TREE}/edge-1/t/web/state (reason code 135)" in reason
    assert daemon.log_text().count("/t/web/state (reason code 135)") == 1
    rules.write_text(f"topic readwrite {TREE}/#\n")
    broker.process.send_signal(signal.SIGHUP)
    daemon.write({**hosts.server, "more": hosts.client["web"]})
    wait_until(lambda: mqtt_of(daemon)["state"] == "online", within=35, what="the rules are corrected")
    record_figure(f"reason code shown {took:.1f} s after the start")


@pytest.mark.case("broker ends connections for one reason", deadline=OBSERVED_S + 30)
def test_a_message_that_ends_each_connection_is_sent_ever_more_seldom(
    harness: ProcessHarness, record_figure: FigureRecorder
) -> None:
    """Every state is longer than the broker accepts: it ends the connection with DISCONNECT and reason code 149.

    Without ``RetryPolicy._repeated`` the host comes and goes once a second.
    """
    lines = "allow_anonymous true\nmax_packet_size 600\n"
    broker = harness.close_at_end(Mosquitto(harness.directory / "broker", lines))
    hosts = Hosts(harness)
    daemon = hosts.up("edge-1", broker, hosts.server)
    wait_until(lambda: "reason code 149" in str(mqtt_of(daemon)["reason"]), within=10, what="the reason is shown")
    before = broker.count_logins("127.0.0.1")
    time.sleep(OBSERVED_S)
    logins = broker.count_logins("127.0.0.1") - before
    assert logins <= (7 if IS_FULL_SCALE else 4)
    record_figure(f"{logins} connections in {OBSERVED_S:g} s, with the reason in ps")


@pytest.mark.case("a command of 20 MB", deadline=40)
@pytest.mark.parametrize("is_old", [pytest.param(False, id="version 5"), pytest.param(True, id="version 3.1.1")])
def test_a_huge_command_costs_no_memory(
    harness: ProcessHarness, broker: Mosquitto, record_figure: FigureRecorder, *, is_old: bool
) -> None:
    """A client publishes 20 MB on the command topic: the host does not read them.

    Without MaximumPacketSize in CONNECT, and without ``PacketSplitter.excess``, the daemon grows by 60 MB.
    """
    hosts = Hosts(harness)
    address = ("127.0.0.1", broker.port)
    way = harness.close_at_end(OldBroker(address, b"\x20\x02\x00\x01") if is_old else BrokerProxy(address))
    daemon = hosts.up("edge-1", broker, hosts.server, url=way.url)
    connected(daemon)
    wait_until(lambda: "listening on" in daemon.log_text(), within=10, what="the tunnel has loaded its cipher")
    before = peak_rss(daemon)
    huge = harness.directory / "huge"
    huge.write_bytes(b"x" * (20 << 20))
    publish_file(broker, f"{TREE}/edge-1/cmd", huge)
    if is_old:
        wait_until(lambda: "sent a packet of 209" in daemon.log_text(), within=10, what="it is logged")
    recorder = BrokerRecorder(harness, broker)
    recorder.wait_payload("edge-1/status")  # which is retained: from now on the answer is recorded
    connected(daemon)
    publish(broker, "edge-1/cmd", {"v": 1, "id": "after", "op": "ping"})
    assert recorder.wait_payload("edge-1/rsp/after")["ok"]
    grown = peak_rss(daemon) - before
    assert grown < 10 << 20
    record_figure(f"{grown >> 10} KB more")


def peak_rss(daemon: Daemon) -> int:
    """The most memory that a daemon has used so far, in bytes."""
    (line,) = (line for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def publish_file(broker: Mosquitto, topic: str, file: Path) -> None:
    """Publish the bytes of a file."""
    command = ["mosquitto_pub", "-p", str(broker.port), "-q", "1", "-t", topic, "-f", str(file)]
    subprocess.run(command, check=True, timeout=20)
