"""Several servers of one client: one is black-holed, and all are restarted in turn, while visitors come."""

from __future__ import annotations

import functools
import signal
import socket
from collections import Counter
from collections.abc import Generator

import pytest

from tests.faults.conftest import FigureRecorder
from tests.faults.hosts import CLIENT, KEY, SERVER, NamespaceHosts
from tests.faults.test_several_clients import SILENCE_LIMIT_S, VISITORS_AT_ONCE, Visitors, named
from tests.support.peers import connect
from tests.support.ports import free_port
from tests.support.processes import Daemon, ProcessHarness
from tests.support.scale import IS_FULL_SCALE
from tests.support.waiting import wait_until

VISITORS = 10_000 if IS_FULL_SCALE else 600


def count_up(client: Daemon) -> int:
    return sum(server["state"] == "up" for server in client.tunnel().get("servers", ()))


@pytest.fixture
def restored(hosts: NamespaceHosts) -> Generator[NamespaceHosts]:
    yield hosts
    hosts.restore()


@pytest.mark.slow
@pytest.mark.case("one server of three is black-holed", deadline=300)
def test_a_silent_server_costs_no_visitor_and_leaves_those_of_others_untouched(
    harness: ProcessHarness, restored: NamespaceHosts, record_figure: FigureRecorder
) -> None:
    """Seen to fail: without another launch, visitors of the silent server wait until their own limit, and then fail."""
    hosts = restored
    visitor_port, addresses = free_port(), []
    for name, host, address in (("a", hosts.client, CLIENT), ("b", hosts.client, CLIENT), ("c", hosts.server, SERVER)):
        target = hosts.target(harness, host, named(name.encode()))
        addresses.append(f"{address}:{free_port()}")
        url = f"server://{KEY}@{addresses[-1]}/127.0.0.1:{target.port}?mode=forward&report_interval=1s"
        harness.start_daemon({"t": url}, name=name, prefix=host.prefix)
    url = f"client://{KEY}@{','.join(addresses)}/127.0.0.1:{visitor_port}?mode=forward&report_interval=1s"
    client = harness.start_daemon({"t": url}, name="client", prefix=hosts.client.prefix)
    wait_until(lambda: count_up(client) == 3, within=40, what="all servers serve")

    def visit() -> socket.socket:
        return hosts.client.connect(("127.0.0.1", visitor_port), timeout=SILENCE_LIMIT_S)

    with Visitors(visit) as visitors:
        visitors.wait_served(VISITORS // 3)
        staying = [visit() for _ in range(9)]
        greetings = [sock.recv(1) for sock in staying]
        hosts.silence("in", "out")
        wait_until(lambda: count_up(client) == 2, within=30, what="the silent server is given up")
        visitors.wait_served(VISITORS // 3)
    counts = {name: visitors.served.count(name) for name in sorted(set(visitors.served))}
    assert set(counts) == {"a", "b", "c"}, counts
    seen = client.tunnel()
    assert seen["connections"]["failed"] == 0
    assert seen["state"] == "up"
    for sock, greeting in zip(staying, greetings, strict=True):
        if greeting != b"c":
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""
        sock.close()
    record_figure(
        f"{sum(counts.values())} visitors, 0 failed, {seen['counters']['redispatched']} served by another server, "
        f"the slowest after {visitors.slowest_s:.1f} s"
    )


@pytest.mark.slow
@pytest.mark.case("rolling restart of three servers", deadline=300)
def test_a_rolling_restart_of_the_servers_costs_no_visitor(
    harness: ProcessHarness, record_figure: FigureRecorder
) -> None:
    """Seen to fail: with a server that is killed instead, visitors that have been forwarded are disconnected."""
    visitor_port, tunnels, daemons = free_port(), {}, {}
    for name in "abc":
        target = harness.start_target(named(name.encode()))
        address = f"127.0.0.1:{free_port()}"
        tunnels[name] = (address, f"server://{KEY}@{address}/127.0.0.1:{target.port}?mode=forward")
        daemons[name] = harness.start_daemon({"t": tunnels[name][1]}, name=name)
    addresses = ",".join(address for address, _ in tunnels.values())
    client = harness.start_daemon({"t": f"client://{KEY}@{addresses}/127.0.0.1:{visitor_port}?mode=forward"}, name="d")
    wait_until(lambda: count_up(client) == 3, within=40, what="all servers serve")
    with Visitors(functools.partial(connect, ("127.0.0.1", visitor_port))) as visitors:
        for name, daemon in daemons.items():
            visitors.wait_served(VISITORS // 3)
            daemon.signal(signal.SIGTERM)
            assert daemon.wait_exit() == 0
            visitors.wait_served(10)
            harness.start_daemon({"t": tunnels[name][1]}, name=f"{name}-again")
            wait_until(lambda: count_up(client) == 3, within=40, what="all servers serve again")
        visitors.wait_served(VISITORS // 3)
    counts = {name: visitors.served.count(name) for name in sorted(set(visitors.served))}
    assert set(counts) == {"a", "b", "c"}, counts
    assert client.tunnel()["connections"]["failed"] == 0
    record_figure(f"{sum(counts.values())} visitors, 0 failed, the slowest after {visitors.slowest_s:.1f} s")


@pytest.mark.slow
@pytest.mark.case("weights of two servers and a backup; both are killed", deadline=300)
def test_visitors_are_shared_by_weight_and_the_backup_serves_while_the_rest_is_down(
    harness: ProcessHarness, record_figure: FigureRecorder
) -> None:
    """Seen to fail: without the shares of the file, the backup gets a third of the visitors from the start."""
    visitor_port, tunnels, daemons = free_port(), {}, {}
    for name in "abc":
        target = harness.start_target(named(name.encode()))
        address = f"127.0.0.1:{free_port()}"
        tunnels[name] = (address, f"server://{KEY}@{address}/127.0.0.1:{target.port}?mode=forward")
        daemons[name] = harness.start_daemon({"t": tunnels[name][1]}, name=name)
    (first, _), (second, _), (backup, _) = tunnels.values()
    servers = [{"address": first, "weight": 3}, second, {"address": backup, "backup": True}]
    url = f"client://{KEY}@{first}/127.0.0.1:{visitor_port}?mode=forward"
    client = harness.start_daemon({"t": {"url": url, "servers": servers}}, name="d")
    wait_until(lambda: count_up(client) == 3, within=40, what="all servers serve")
    with Visitors(functools.partial(connect, ("127.0.0.1", visitor_port))) as visitors:
        visitors.wait_served(VISITORS)
        shared = Counter(visitors.served)
        for name in "ab":
            daemons[name].signal(signal.SIGKILL)
        wait_until(lambda: count_up(client) == 1, within=40, what="only the backup serves")
        before = len(visitors.served)
        visitors.wait_served(VISITORS // 10)
        alone = Counter(visitors.served[before + 4 :])
        harness.start_daemon({"t": tunnels["b"][1]}, name="b-again")
        wait_until(lambda: count_up(client) == 2, within=40, what="the second server serves again")
        visitors.wait_served(8)
        before = len(visitors.served)
        visitors.wait_served(VISITORS // 10)
        back = Counter(visitors.served[before + 4 :])
    share = shared["a"] / shared.total()
    assert set(shared) == {"a", "b"}
    assert abs(share / 0.75 - 1) < 0.05
    assert (set(alone), set(back)) == ({"c"}, {"b"})
    resets = visitors.served.count("ConnectionResetError")  # of a killed server, with the greeting on its way
    assert set(visitors.served) <= {"a", "b", "c", "ConnectionResetError"}
    assert resets <= 2 * VISITORS_AT_ONCE
    text = f"{len(visitors.served)} visitors, {resets} of a killed server reset during their greeting"
    record_figure(f"{text}; of weights 3 and 1 the first got {share:.3f}; the slowest after {visitors.slowest_s:.1f} s")
