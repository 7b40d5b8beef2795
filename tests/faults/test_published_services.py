"""Published services when their client vanishes, when two clients want the same, and when a client wants everything."""

from __future__ import annotations

import time
from typing import Final

import pytest

from tests.faults.conftest import FigureRecorder
from tests.faults.hosts import CLIENT, KEY, SERVER, NamespaceHosts
from tests.support.peers import round_trip
from tests.support.ports import free_ports
from tests.support.processes import Daemon, ProcessHarness
from tests.support.waiting import wait_until

OTHER: Final = "a key of another client that is long"
GRACE_S: Final = 1.0
REMOVAL_LIMIT_S: Final = 30.0
"""The server misses three answers of the ping interval, then waits for the grace, then drains."""
POLL_INTERVAL_S: Final = 0.1


class Gateway:
    """A gateway that lets two keys publish one service each, and what its clients are written as."""

    def __init__(self, harness: ProcessHarness, hosts: NamespaceHosts) -> None:
        self.port, *self.visitors = sorted(free_ports(5))
        self._target = hosts.target(harness, hosts.client).port
        rule = {
            "address": "0.0.0.0", "ports": ",".join(map(str, self.visitors)), "services": "s*",
            "grace": f"{GRACE_S:g}s", "max_services": 1,
        }  # fmt: skip
        entry = {
            "url": f"server://{SERVER}:{self.port}?report_interval=300ms", "data_port": "tunnel",
            "keys": {"one": KEY, "two": OTHER}, "publish": rule,
        }  # fmt: skip
        self.daemon = harness.start_daemon({"gw": entry}, name="server", prefix=hosts.server.prefix)

    def client(self, key: str, service: str, number: int) -> dict[str, str]:
        """Return the entry of a client that publishes a service on one of the ports."""
        options = f"service={service}&publish={self.visitors[number]}&client_cooldown=200ms"
        return {"url": f"client://{SERVER}:{self.port}/127.0.0.1:{self._target}?{options}", "key": key}

    def publishes(self, name: str, key_name: str) -> bool:
        """Return whether a tunnel is up and published by a key, after a pause."""
        time.sleep(POLL_INTERVAL_S)
        tunnel = self.daemon.tunnel(name)
        return (tunnel["state"], tunnel.get("published_by")) == ("up", key_name)


def wait_refused(client: Daemon, name: str, reason: str) -> None:
    """Wait until a client shows why it is refused."""

    def is_refused() -> bool:
        time.sleep(POLL_INTERVAL_S)
        return reason in str(client.tunnel(name).get("reason"))

    wait_until(is_refused, within=REMOVAL_LIMIT_S, what=f"{name} is refused")


@pytest.mark.case("a client that publishes vanishes; others claim its name, and more than they may", deadline=90)
def test_a_service_outlives_its_client_by_the_grace_and_yields_to_none_before(
    harness: ProcessHarness, hosts: NamespaceHosts, record_figure: FigureRecorder
) -> None:
    """A black hole swallows the link. Another key gets neither name nor port meanwhile, and both afterwards.

    Seen to fail: without the timer the tunnel stays for ever, and the other client is refused for ever.
    """
    gateway = Gateway(harness, hosts)
    first = harness.start_daemon({"c": gateway.client(KEY, "s1", 0)}, name="first", prefix=hosts.client.prefix)
    wait_until(lambda: gateway.publishes("gw/s1", "one"), within=REMOVAL_LIMIT_S, what="the service is published")
    others = {
        "name": gateway.client(OTHER, "s1", 0),
        "more": gateway.client(KEY, "s2", 1),
        "alien": gateway.client("a key that the gateway does not know", "s3", 2),
    }
    second = harness.start_daemon(others, name="second", prefix=hosts.server.prefix)
    wait_refused(second, "name", "published by the client with another key")
    wait_refused(second, "more", "1 service of the key one is published, and 1 may be")
    wait_refused(second, "alien", "most likely the keys or the service names differ")
    assert {tunnel["name"] for tunnel in gateway.daemon.status()["tunnels"]} == {"gw", "gw/s1"}
    with hosts.server.connect(("127.0.0.1", gateway.visitors[0])) as sock:
        assert round_trip(sock, b"x" * 1000) == b"x" * 1000
    hosts.server.run("iptables", "-A", "INPUT", "-s", CLIENT, "-j", "DROP")
    began = time.monotonic()
    try:
        wait_until(lambda: gateway.publishes("gw/s1", "two"), within=REMOVAL_LIMIT_S, what="the other key has the name")
        took = time.monotonic() - began
    finally:
        hosts.restore()
    assert took >= GRACE_S
    wait_refused(first, "c", "published")
    record_figure(f"the name was free {took:.1f} s after the black hole")
