"""The wall clock of one daemon jumps forward or back by hours; libfaketime provides the changed clock."""

from __future__ import annotations

import json
import random
import re
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import FigureRecorder
from tests.integration.test_fleet import BrokerRecorder, Hosts, Mosquitto, connected, fleet, mqtt_of, publish
from tests.integration.test_programs import needs
from tests.support.peers import connect, exchange, round_trip
from tests.support.ports import free_port
from tests.support.processes import ProcessHarness
from tests.support.scale import IS_FULL_SCALE
from tests.support.waiting import wait_until

pytestmark = needs("mosquitto", "mosquitto_sub", "mosquitto_pub")

HOUR_S = 3600.0
JUMPS = 6
INTERVAL_S = 1.0
"""REPORT_INTERVAL in seconds: a busy machine alone does not cause a silence of three intervals."""
OBSERVATION_S = 10.0 if IS_FULL_SCALE else 4.0
"""Seconds of observation after the jumps: more than three intervals."""
DRAIN_S = 2.0 if IS_FULL_SCALE else 6.0
"""Seconds that a visitor has to finish during a drain."""
LIBRARY = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)


def parse_timestamp(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.slow
@pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed (Debian: faketime)")
@pytest.mark.case("wall clock jumps an hour", deadline=90)
@pytest.mark.parametrize("hours", [pytest.param(1, id="forward"), pytest.param(-1, marks=pytest.mark.slow, id="back")])
def test_a_jump_of_the_wall_clock_disturbs_nothing(
    harness: ProcessHarness, record_figure: FigureRecorder, hours: int
) -> None:
    """Relay, link, cooldown, drain, watcher and broker continue undisturbed; timestamps follow the new clock.

    Seen to fail: with the silence of a link measured by ``time.time``, a jump forward loses the link. With the end of
    a drain measured by it, a jump back makes the drain last an hour, and a jump forward closes the visitor at once.
    """
    rig = ClockRig(harness)
    links, attempts = rig.links(), rig.attempts()
    with connect(rig.visitors) as visitor:
        assert round_trip(visitor, b"before") == b"before"
        for hour in range(1, JUMPS + 1):  # enough jumps that one of them falls between two pings
            rig.set_offset(f"{hour * hours:+d}h")
            assert round_trip(visitor, b"during") == b"during"
            time.sleep(random.uniform(INTERVAL_S / 3, INTERVAL_S * 4 / 3))
        exchanged = rig.observe(visitor)
        assert rig.links() == links
        wait_until(lambda: rig.attempts() > attempts + 1, within=5, what="attempts continue")
        check_expiry(rig.broker, rig.recorder, JUMPS * hours)
        rig.change_file()
        took = rig.drain_across_a_jump_back(visitor)
    record_figure(
        f"{exchanged} exchanges, no link lost, a drain of {DRAIN_S:g} s took {took:.1f} s across the jump back"
    )


class ClockRig:
    """A daemon with a changed clock, a daemon without, the tunnel between them, and a broker."""

    def __init__(self, harness: ProcessHarness) -> None:
        self._clock = harness.directory / "clock"
        self.set_offset("+0")
        self.broker = harness.close_at_end(Mosquitto(harness.directory / "broker"))
        hosts = Hosts(harness)
        interval = f"report_interval={round(INTERVAL_S * 1000)}ms"
        self._servers = {
            "web": f"{hosts.server['web']}&{interval}",
            "leaving": f"server://127.0.0.1:{free_port()}/127.0.0.1:{free_port()}",
        }
        unreachable = {"unreachable": f"client://127.0.0.1:{free_port()}/127.0.0.1:1?client_cooldown=1s"}
        env = {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._clock),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "XDG_STATE_HOME": str(harness.directory / "state"),
        }
        section = {"mqtt": {"url": self.broker.url, "host": "edge-1", "commands": True}}
        self.host = harness.start_daemon({**self._servers, **unreachable}, name="edge-1", env=env, supervisor=section)
        self._other = harness.start_daemon({"web": f"{hosts.client['web']}?{interval}"}, name="edge-2")
        for daemon in (self.host, self._other):
            daemon.wait_state("up", name="web", within=15)
        connected(self.host)
        self.recorder = BrokerRecorder(harness, self.broker)
        self.visitors = ("127.0.0.1", hosts.visitor_port)

    def set_offset(self, text: str) -> None:
        """Set the offset of the clock. The rename makes sure that no reader finds an empty file."""
        replacement = self._clock.with_suffix(".new")
        replacement.write_text(text)
        replacement.rename(self._clock)

    def links(self) -> tuple[str, str]:
        """Return the links that both ends show."""
        return self.host.tunnel("web")["link"], self._other.tunnel("web")["link"]

    def attempts(self) -> int:
        """Return the number of attempts of the tunnel without a server."""
        return int(self.host.tunnel("unreachable")["cooldown"]["attempt"])

    def observe(self, visitor: socket.socket) -> int:
        """Check for some seconds that visitors, broker and cooldown continue; return the number of exchanges."""
        began, exchanged = time.monotonic(), 0
        while time.monotonic() < began + OBSERVATION_S:
            assert round_trip(visitor, b"during") == b"during"
            assert exchange(self.visitors, b"new") == b"new"
            assert mqtt_of(self.host)["state"] == "online"
            assert 0 <= self.host.tunnel("unreachable")["cooldown"]["remaining_s"] <= 1
            exchanged += 1
            time.sleep(0.05)  # visits are spread over the whole observation
        return exchanged

    def change_file(self) -> None:
        """Remove an entry and wait until the change is applied."""
        before = self.host.status()["generation"]
        self.host.write(self._servers)
        wait_until(lambda: self.host.status()["generation"] == before + 1, within=5, what="the change is applied")

    def drain_across_a_jump_back(self, visitor: socket.socket) -> float:
        """Stop the tunnel and set the clock back; return the duration of the drain, which must not be cut short."""
        send_command(self.broker, self.recorder, id="drain", op="stop", target="web", timeout=DRAIN_S)
        self.set_offset("+0")
        began = time.monotonic()
        assert round_trip(visitor, b"drain") == b"drain"
        self.host.wait_state("stopped", name="web", within=DRAIN_S + 6)
        took = time.monotonic() - began
        assert took > DRAIN_S / 2, f"the visitor did not have {DRAIN_S:g} seconds to finish"
        return took


@pytest.mark.slow
@pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed (Debian: faketime)")
@pytest.mark.case("wall clock of a host differs", deadline=40)
@pytest.mark.parametrize("offset", [pytest.param("-90", id="90 s behind"), pytest.param("+90", id="90 s ahead")])
def test_a_host_whose_clock_differs_is_read_and_controlled(
    harness: ProcessHarness, record_figure: FigureRecorder, offset: str
) -> None:
    """`fleet ps` shows the host as online and says how the clocks differ; its commands are accepted.

    Without ``FleetReader.ask_silent_hosts`` a host that is behind is silent. Without ``Host.clock_lead_s`` a host that
    is ahead refuses the command as expired.
    """
    broker = harness.close_at_end(Mosquitto(harness.directory / "broker"))
    env = {"LD_PRELOAD": str(LIBRARY), "FAKETIME": offset, "DONT_FAKE_MONOTONIC": "1"}
    env["XDG_STATE_HOME"] = str(harness.directory / "state")
    section = {"mqtt": {"url": broker.url, "host": "edge-1", "commands": True}}
    host = harness.start_daemon(Hosts(harness).server, name="edge-1", env=env, supervisor=section)
    connected(host)
    BrokerRecorder(harness, broker).wait_payload("edge-1/t/web/state")
    _, out, _ = fleet(harness, broker, "ps")
    shown, difference = out.splitlines()[0], "ahead" if offset.startswith("+") else "behind"
    assert re.fullmatch(rf"edge-1 \(.*\), online, 1 tunnel(, 0B .*)?, its clock is (89|90|91) s {difference}", shown)
    began = time.monotonic()
    code, out, messages = fleet(harness, broker, "restart", "edge-1/web")
    assert (code, messages) == (0, "")
    record_figure(f"{shown.rpartition(', ')[2]}; restarted in {time.monotonic() - began:.1f} s")


def check_expiry(broker: Mosquitto, recorder: BrokerRecorder, hours: int) -> None:
    """Check that commands expire, and that messages are stamped, by the clock of the host."""
    now = time.time()
    late = send_command(broker, recorder, id="late", op="start", target="web", exp=now + hours * HOUR_S - 10)
    assert not late["ok"]
    assert "expired" in late["error"]
    assert "by this host's clock" in late["error"]
    assert send_command(broker, recorder, id="timely", op="start", target="web", exp=now + hours * HOUR_S + 300)["ok"]
    state = recorder.wait_payload(
        "edge-1/t/unreachable/state", lambda word: abs(parse_timestamp(word["ts"]) - now - hours * HOUR_S) < 60
    )
    assert datetime.fromisoformat(state["ts"]).tzinfo == UTC


def send_command(broker: Mosquitto, recorder: BrokerRecorder, **fields: Any) -> dict[str, Any]:  # noqa: ANN401  the fields of a command
    """Send a command through the broker and return its answer."""
    publish(broker, "edge-1/cmd", json.dumps({"v": 1, **fields}))
    return recorder.wait_payload(f"edge-1/rsp/{fields['id']}")
