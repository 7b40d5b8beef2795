"""A limit of the rate on a wire that loses and delays packets, with a live change, and another tunnel without one."""

from __future__ import annotations

import contextlib
import socket
import statistics
import threading
import time

import pytest

from tests.faults.conftest import FigureRecorder
from tests.faults.hosts import KEY, SERVER, ImpairedHosts
from tests.faults.wire import Impairment
from tests.support.peers import echo, round_trip
from tests.support.ports import free_ports
from tests.support.processes import ProcessHarness
from tests.support.waiting import wait_until

MBIT = 1_000_000
VISITORS = 4
WINDOW_S = 6.0


class CountingSink:
    """Serves visitors by discarding what they send, and counts it."""

    def __init__(self) -> None:
        self.received = 0

    def serve(self, sock: socket.socket) -> None:
        while part := sock.recv(1 << 16):
            self.received += len(part)

    def rate_over(self, seconds: float) -> float:
        """Return the bits per second that arrive from now on."""
        before, began = self.received, time.monotonic()
        time.sleep(seconds)
        return 8 * (self.received - before) / (time.monotonic() - began)


def send_until(stopped: threading.Event, sock: socket.socket) -> None:
    """Send as fast as the tunnel takes it."""
    with contextlib.suppress(OSError):
        while not stopped.is_set():
            sock.sendall(bytes(1 << 14))


def median_round_trip_s(visitor: socket.socket, count: int = 20) -> float:
    """Return the median time of some echoes."""
    found = []
    for _ in range(count):
        began = time.monotonic()
        assert round_trip(visitor, b"x" * 64) == b"x" * 64
        found.append(time.monotonic() - began)
    return statistics.median(found)


class TwoTunnels:
    """Two tunnels between the hosts in the same two daemons; the first one has a limit at its server."""

    def __init__(self, harness: ProcessHarness, hosts: ImpairedHosts, sink: CountingSink) -> None:
        self._ports = free_ports(4)
        targets = hosts.target(harness, hosts.client, sink.serve), hosts.target(harness, hosts.client, echo)
        clients = {
            name: f"client://{KEY}@{SERVER}:{port}/127.0.0.1:{target.port}"
            for name, port, target in zip(("t", "free"), self._ports[:2], targets, strict=True)
        }
        self.limited, self.free = (("127.0.0.1", port) for port in self._ports[2:])
        """where their visitors connect"""
        self.server = harness.start_daemon(self._servers(2), name="server", prefix=hosts.server.prefix)
        client = harness.start_daemon(clients, name="client", prefix=hosts.client.prefix)
        for name in clients:
            self.server.wait_state("up", within=20, name=name)
            client.wait_state("up", within=20, name=name)

    def _servers(self, mbit: int) -> dict[str, object]:
        ports = self._ports
        urls = [f"server://{KEY}@{SERVER}:{ports[n]}/127.0.0.1:{ports[n + 2]}?mode=reverse" for n in range(2)]
        return {"t": {"url": urls[0], "rate": f"{mbit}mbit"}, "free": urls[1]}

    def set_limit(self, mbit: int) -> None:
        """Change the file and wait until the limit is in force."""
        self.server.write(self._servers(mbit))
        wait_until(
            lambda: self.server.tunnel()["rate_limits"]["rate_bps"] == mbit * MBIT, within=20, what="the limit changes"
        )


@pytest.mark.slow
@pytest.mark.case("a limited tunnel on a wire with loss and delay", deadline=120)
def test_a_limit_holds_on_an_impaired_wire_changes_live_and_slows_no_other_tunnel(
    harness: ProcessHarness, impaired_hosts: ImpairedHosts, record_figure: FigureRecorder
) -> None:
    """Several visitors send all the time while the limit is doubled; another tunnel of the same daemons echoes.

    Seen to fail: with a limiter that keeps its rate when the limit changes, the second rate is that of the first limit.
    """
    hosts, sink = impaired_hosts, CountingSink()
    tunnels = TwoTunnels(harness, hosts, sink)
    hosts.wire.set_impairment(Impairment(loss=0.01, delay=0.01))
    stopped = threading.Event()
    with contextlib.ExitStack() as stack:
        stack.callback(hosts.wire.set_impairment, Impairment())
        other = stack.enter_context(hosts.server.connect(tunnels.free))
        alone_s = median_round_trip_s(other)
        for _ in range(VISITORS):
            visitor = stack.enter_context(hosts.server.connect(tunnels.limited))
            threading.Thread(target=send_until, args=(stopped, visitor), daemon=True).start()
        stack.callback(stopped.set)
        time.sleep(3)
        first = sink.rate_over(WINDOW_S)
        beside_s = median_round_trip_s(other)
        tunnels.set_limit(4)
        time.sleep(3)
        second = sink.rate_over(WINDOW_S)
        connections = tunnels.server.tunnel()["connections"]
    assert 0.7 * 2 * MBIT < first < 1.1 * 2 * MBIT
    assert 0.7 * 4 * MBIT < second < 1.1 * 4 * MBIT
    assert (connections["active"], connections["total"]) == (VISITORS, VISITORS), "a visitor was disconnected"
    assert beside_s < 2 * alone_s + 0.05
    record_figure(
        f"{first / MBIT:.2f} of 2, {second / MBIT:.2f} of 4 Mbit/s; "
        f"echo beside it {1000 * beside_s:.0f} ms, alone {1000 * alone_s:.0f} ms"
    )
