"""NAT routers between the ends that forget connections silently, and a firewall that limits new ones."""

from __future__ import annotations

import contextlib
import time

import pytest

from tests.faults.conftest import FigureRecorder
from tests.faults.hosts import DIRECTIONS, KEY, NamespaceHosts, NamespacePair, established
from tests.support.peers import round_trip
from tests.support.ports import free_port
from tests.support.processes import ProcessHarness
from tests.support.scale import IS_FULL_SCALE
from tests.support.waiting import wait_until

NAT_TIMEOUT_S = 45
"""Seconds after which the NAT router forgets a silent connection."""
SILENCE_S = 3 * NAT_TIMEOUT_S
KEEPALIVE_S = 30 + 3 * 10
"""Seconds within which the kernel's keepalive detects a dead connection."""
INTERVAL_S = 1.0
"""REPORT_INTERVAL of these tunnels in seconds: after one interval keepalive is set on a pooled connection."""
POOL_SIZE = 8
FIREWALL_COUNT, FIREWALL_PERIOD_S = 6, 5


def data_ports(hosts: NamespaceHosts, pair: NamespacePair) -> list[int]:
    """Return the client's ports of the pooled data connections."""
    return established(hosts.server, int(pair.server.tunnel()["data_addr"].rpartition(":")[2]))


def longest_wait(pair: NamespacePair, visitors: int) -> float:
    """Serve several visitors at once; return the longest wait for an echo in seconds."""
    worst = 0.0
    with contextlib.ExitStack() as here:
        for visitor in [here.enter_context(pair.connect()) for _ in range(visitors)]:
            began = time.monotonic()
            assert round_trip(visitor, b"here") == b"here"
            worst = max(worst, time.monotonic() - began)
    return worst


@pytest.mark.case("a NAT router that forgets everything at once", deadline=60)
@pytest.mark.parametrize("direction", DIRECTIONS if IS_FULL_SCALE else DIRECTIONS[:1])
def test_a_router_that_forgets_everything_costs_one_link(
    harness: ProcessHarness, hosts: NamespaceHosts, record_figure: FigureRecorder, direction: str
) -> None:
    """Like a router that was restarted: nothing passes on existing connections, new ones work.

    Seen to fail: without the deadlines of the pings and of the client's kernel (TCP_USER_TIMEOUT) the link stays, with
    a pool of dead connections. If the pool is not closed with its link, the dead connections stay open for ever.
    """
    pair = hosts.pair(harness, direction=direction, both=f"report_interval={round(INTERVAL_S * 1000)}ms").wait_up()
    wait_until(lambda: len(data_ports(hosts, pair)) >= POOL_SIZE, within=5, what="the pool is full")
    link = pair.client.tunnel()["link"]
    old = data_ports(hosts, pair)
    began = time.monotonic()
    try:
        hosts.forget(old + established(hosts.server, pair.tunnel_port))
        wait_until(
            lambda: pair.client.tunnel()["link"] == pair.server.tunnel()["link"] not in {link, None},
            within=4 * INTERVAL_S + 5,
            what="there is a new link",
        )
        pair.wait_up()
        took = time.monotonic() - began
        worst = longest_wait(pair, 3 * POOL_SIZE)
        assert not set(old) & set(data_ports(hosts, pair))
    finally:
        hosts.restore()
    record_figure(f"a new link after {took:.1f} s, then visitors wait {worst * 1000:.0f} ms at most")


@pytest.mark.slow
@pytest.mark.case("idle pool connections dropped silently, the link stays", deadline=KEEPALIVE_S + 60)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_dead_pool_connections_are_replaced(
    harness: ProcessHarness, hosts: NamespaceHosts, record_figure: FigureRecorder, direction: str
) -> None:
    """Within a minute the kernels of both ends have noticed, and the pool consists of new connections.

    Seen to fail: without keepalive the dead connections stay in the pool for up to four minutes, and visitors that
    get one are not served.
    """
    pair = hosts.pair(harness, direction=direction, both=f"report_interval={round(INTERVAL_S * 1000)}ms").wait_up()
    time.sleep(2 * INTERVAL_S)  # keepalive is set from now on
    link = pair.client.tunnel()["link"]
    old = data_ports(hosts, pair)
    began = time.monotonic()
    try:
        hosts.forget(old)
        wait_until(
            lambda: not set(old) & set(data_ports(hosts, pair)) and pair.server.tunnel()["pool"]["idle"] >= POOL_SIZE,
            within=KEEPALIVE_S + 10,
            what="the pool consists of new connections",
        )
        took = time.monotonic() - began
        worst = longest_wait(pair, 3 * POOL_SIZE)
        assert pair.client.tunnel()["link"] == link
    finally:
        hosts.restore()
    record_figure(f"the pool is replaced after {took:.0f} s, then visitors wait {worst * 1000:.0f} ms at most")


@pytest.mark.slow
@pytest.mark.case(
    f"a NAT router that forgets connections after a silence of {NAT_TIMEOUT_S} s", deadline=SILENCE_S + 60
)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_keepalive_prevents_that_a_router_forgets_the_pool(
    harness: ProcessHarness, hosts: NamespaceHosts, record_figure: FigureRecorder, direction: str
) -> None:
    """A real NAT router between client and server. The pool is silent for three times its timeout.

    Seen to fail: without keepalive the router forgets the connections, and visitors that get one are not served.
    """
    port, visitor_port = free_port(), free_port()
    reverse = direction == "reverse"
    target_host, ingress_host = (hosts.client, hosts.backend) if reverse else (hosts.backend, hosts.client)
    target = hosts.target(harness, target_host)
    ends = f"127.0.0.1:{visitor_port}", f"127.0.0.1:{target.port}"
    inner, outer = ends if reverse else ends[::-1]
    with hosts.translated(NAT_TIMEOUT_S):
        server = harness.start_daemon(
            {"t": f"server://{KEY}@10.2.0.2:{port}/{inner}?mode={direction}"},
            name="server",
            prefix=hosts.backend.prefix,
        )
        client = harness.start_daemon(
            {"t": f"client://{KEY}@10.2.0.2:{port}/{outer}"}, name="client", prefix=hosts.client.prefix
        )
        pair = NamespacePair(
            server, client, ("127.0.0.1", visitor_port), port, target, ingress_host, target_host
        ).wait_up()
        assert server.tunnel()["peer"].startswith("10.2.0.1:"), "the router does not translate addresses"
        link = client.tunnel()["link"]
        time.sleep(SILENCE_S)  # the silence under test
        worst = longest_wait(pair, 3 * POOL_SIZE)
        assert client.tunnel()["link"] == link
    record_figure(f"{3 * POOL_SIZE} visitors after {SILENCE_S} s of silence wait {worst * 1000:.0f} ms at most")


@pytest.mark.slow
@pytest.mark.case(f"a firewall that allows {FIREWALL_COUNT} new connections in {FIREWALL_PERIOD_S} s", deadline=120)
def test_a_firewall_with_a_limit_on_new_connections_lets_the_pool_fill(
    harness: ProcessHarness, hosts: NamespaceHosts, record_figure: FigureRecorder
) -> None:
    """It counts refused attempts too, so only a pause ends the block.

    Seen to fail: with pauses of 1.5 seconds at most, each attempt renews the block.
    """
    hosts.limit_new_connections(FIREWALL_COUNT, FIREWALL_PERIOD_S)
    try:
        began = time.monotonic()
        pair = hosts.pair(harness).wait_up()
        wait_until(lambda: "refused" in pair.client.log_text(), within=10, what="the firewall refuses")
        # not by their port: if the first data connection is refused, they go to the tunnel port
        wait_until(lambda: pair.server.tunnel()["pool"]["idle"] >= POOL_SIZE, within=60, what="the pool is full")
        took = time.monotonic() - began
        assert pair.client.log_text().count("data connections to") <= 12
    finally:
        hosts.restore()
    record_figure(f"the pool is full after {took:.0f} s")
