"""Address translators between the ends, which forget connections and tell nobody."""

from __future__ import annotations

import contextlib
import time

import pytest

from tests.faults.conftest import Figure
from tests.faults.hosts import DIRECTIONS, KEY, FarPair, Hosts, established
from tests.integration.harness import Stage, until
from tests.integration.peers import ask
from tests.ports import free_port
from tests.scale import FULL

FORGETS = 45
"""Seconds after which the translator forgets a silent connection."""
IDLE = 3 * FORGETS
WATCHED = 30 + 3 * 10
"""Seconds in which the kernel notices that nobody answers on a silent connection."""
SWEPT = 1.0
"""REPORT_INTERVAL of these tunnels in seconds: after one the kernel watches over a pooled connection."""
POOL = 8


def data_ports(hosts: Hosts, pair: FarPair) -> list[int]:
    """The client's ports of the pooled data connections."""
    return established(hosts.server, int(pair.server.tunnel()["data_addr"].rpartition(":")[2]))


def all_served(pair: FarPair, visitors: int) -> float:
    """The longest that one of several visitors at once waited for an echo."""
    worst = 0.0
    with contextlib.ExitStack() as here:
        for visitor in [here.enter_context(pair.connect()) for _ in range(visitors)]:
            began = time.monotonic()
            assert ask(visitor, b"here") == b"here"
            worst = max(worst, time.monotonic() - began)
    return worst


@pytest.mark.case("a NAT that forgets everything at once", deadline=60)
@pytest.mark.parametrize("direction", DIRECTIONS if FULL else DIRECTIONS[:1])
def test_forgets_everything(stage: Stage, hosts: Hosts, figure: Figure, direction: str) -> None:
    """As one that was started anew: nothing passes on the connections there are, new ones work.

    Without the deadlines of the pings (``link._SILENT_INTERVALS`` enormous) and of the client's kernel
    (``net.limit_silence`` empty) the link stays, and with it a pool of connections on which nothing arrives; without
    the end of the pool with its link (``Link.lost`` does not close it) they stay open for ever.
    """
    pair = hosts.pair(stage, direction=direction, both=f"report_interval={round(SWEPT * 1000)}ms").up()
    until(lambda: len(data_ports(hosts, pair)) >= POOL, within=5, what="the pool is full")
    link = pair.client.tunnel()["link"]
    old = data_ports(hosts, pair)
    began = time.monotonic()
    try:
        hosts.forget(old + established(hosts.server, pair.tunnel_port))
        until(
            lambda: pair.client.tunnel()["link"] == pair.server.tunnel()["link"] not in {link, None},
            within=4 * SWEPT + 5,
            what="there is a new link",
        )
        pair.up()
        took = time.monotonic() - began
        worst = all_served(pair, 3 * POOL)
        assert not set(old) & set(data_ports(hosts, pair))
    finally:
        hosts.restore()
    figure(f"a new link after {took:.1f} s, then visitors wait {worst * 1000:.0f} ms at most")


@pytest.mark.slow
@pytest.mark.case("idle pool connections dropped in silence, the link stands", deadline=WATCHED + 60)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_forgets_the_pool(stage: Stage, hosts: Hosts, figure: Figure, direction: str) -> None:
    """Within a minute the kernel has noticed at both ends, and the pool consists of others.

    Without keepalive (``net.keep_alive`` empty) the dead ones stay in the pool
    for up to four minutes, and visitors who get one wait in vain.
    """
    pair = hosts.pair(stage, direction=direction, both=f"report_interval={round(SWEPT * 1000)}ms").up()
    time.sleep(2 * SWEPT)  # from now on the kernel watches
    link = pair.client.tunnel()["link"]
    old = data_ports(hosts, pair)
    began = time.monotonic()
    try:
        hosts.forget(old)
        until(
            lambda: not set(old) & set(data_ports(hosts, pair)) and pair.server.tunnel()["pool"]["idle"] >= POOL,
            within=WATCHED + 10,
            what="the pool consists of others",
        )
        took = time.monotonic() - began
        worst = all_served(pair, 3 * POOL)
        assert pair.client.tunnel()["link"] == link
    finally:
        hosts.restore()
    figure(f"the pool is sound again after {took:.0f} s, then visitors wait {worst * 1000:.0f} ms at most")


@pytest.mark.slow
@pytest.mark.case(f"a NAT that forgets what was silent for {FORGETS} s", deadline=IDLE + 60)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_forgets_the_silent(stage: Stage, hosts: Hosts, figure: Figure, direction: str) -> None:
    """A real one, between a client and the server behind it. The pool is silent for three times as long.

    Without keepalive (``net.keep_alive`` empty) the translator forgets them, and
    the visitors who get one wait in vain.
    """
    port, visitor_port = free_port(), free_port()
    reverse = direction == "reverse"
    target_host, entrance_host = (hosts.client, hosts.backend) if reverse else (hosts.backend, hosts.client)
    target = hosts.target(stage, target_host)
    ends = f"127.0.0.1:{visitor_port}", f"127.0.0.1:{target.port}"
    inner, outer = ends if reverse else ends[::-1]
    with hosts.translated(FORGETS):
        server = stage.up(
            {"t": f"server://{KEY}@10.2.0.2:{port}/{inner}?mode={direction}"},
            name="server",
            prefix=hosts.backend.prefix,
        )
        client = stage.up({"t": f"client://{KEY}@10.2.0.2:{port}/{outer}"}, name="client", prefix=hosts.client.prefix)
        pair = FarPair(server, client, ("127.0.0.1", visitor_port), port, target, entrance_host, target_host).up()
        assert server.tunnel()["peer"].startswith("10.2.0.1:"), "nobody translates"
        link = client.tunnel()["link"]
        time.sleep(IDLE)  # the silence itself
        worst = all_served(pair, 3 * POOL)
        assert client.tunnel()["link"] == link
    figure(f"{3 * POOL} visitors after {IDLE} s of silence wait {worst * 1000:.0f} ms at most")
