"""Many services on one tunnel port, which is the only port that a firewall leaves open."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import pytest

from orchestrator.client import ApiClient
from tests.faults.conftest import FigureRecorder
from tests.faults.hosts import CLIENT, KEY, SERVER, NamespaceHosts
from tests.support.peers import round_trip
from tests.support.ports import free_ports
from tests.support.processes import Daemon, ProcessHarness
from tests.support.scale import IS_FULL_SCALE
from tests.support.waiting import wait_until

SERVICES: Final = 500 if IS_FULL_SCALE else 20
START_LIMIT_S: Final = 10.0
RELOAD_LIMIT_S: Final = 0.5
POLL_INTERVAL_S: Final = 0.25


def all_up(*daemons: Daemon) -> bool:
    """Whether the daemons answer and every tunnel is up, after a pause: the answer costs a daemon of 500 much time."""
    time.sleep(POLL_INTERVAL_S)
    try:
        return all(tunnel["state"] == "up" for daemon in daemons for tunnel in daemon.status()["tunnels"])
    except OSError:
        return False


def links(daemon: Daemon) -> dict[str, str]:
    """Return the link of each tunnel."""
    return {tunnel["name"]: tunnel["link"] for tunnel in daemon.status()["tunnels"]}


def urls(port: int, visitors: Sequence[int], target: int) -> tuple[dict[str, str], dict[str, str]]:
    """Return the server entries of a shared tunnel port, one for each visitors' port, and their clients."""
    servers = {
        f"s{number}": f"server://{KEY}@{SERVER}:{port}/127.0.0.1:{visitor}?service=s{number}&data_port=tunnel"
        for number, visitor in enumerate(visitors)
    }
    clients = {
        f"c{number}": f"client://{KEY}@{SERVER}:{port}/127.0.0.1:{target}?service=s{number}"
        for number in range(len(visitors))
    }
    return servers, clients


@pytest.mark.case(f"{SERVICES} services behind a firewall with one open port", deadline=120)
def test_all_services_of_a_port_work_through_a_firewall_with_one_open_port(
    harness: ProcessHarness, hosts: NamespaceHosts, record_figure: FigureRecorder
) -> None:
    """All are up within ten seconds, and the reload of one touches no other.

    Seen to fail: with a listener for each server, only the first one binds. Without slots for handshakes in the client,
    the front door closes connections of a daemon with 500 clients, and they are up after several attempts.
    """
    port, *visitors = free_ports(SERVICES + 1)
    servers, clients = urls(port, visitors, hosts.target(harness, hosts.client).port)
    hosts.server.run("iptables", "-A", "INPUT", "-s", CLIENT, "-p", "tcp", "!", "--dport", str(port), "-j", "DROP")
    try:
        began = time.monotonic()
        server = harness.start_daemon(servers, name="server", prefix=hosts.server.prefix)
        client = harness.start_daemon(clients, name="client", prefix=hosts.client.prefix)
        wait_until(lambda: all_up(client, server), within=3 * START_LIMIT_S, what="all services are up")
        took = time.monotonic() - began
        before, changed = links(server), f"s{SERVICES // 2}"
        for visitor in (visitors[0], visitors[-1]):
            with hosts.server.connect(("127.0.0.1", visitor)) as sock:
                assert round_trip(sock, b"x" * 1000) == b"x" * 1000
        began = time.monotonic()
        server.write({**servers, changed: servers[changed] + "&tls=0"})
        ApiClient(server.socket).reload()
        reloaded = time.monotonic() - began
        wait_until(lambda: all_up(server, client), within=START_LIMIT_S, what="the changed service is up again")
        after = links(server)
        assert {name for name in before if before[name] != after[name]} == {changed}
        assert sum(tunnel["refused"]["silent"] for tunnel in server.status()["tunnels"]) == 0
    finally:
        hosts.restore()
    if IS_FULL_SCALE:
        assert took <= START_LIMIT_S
        assert reloaded <= RELOAD_LIMIT_S
    record_figure(f"all up after {took:.1f} s, one reloaded in {reloaded * 1000:.0f} ms")
