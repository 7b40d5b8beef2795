"""A limit of the rate on a wire that loses and delays packets, with a live change, beside a tunnel without one."""

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


@pytest.mark.slow
@pytest.mark.case("a limited tunnel on a wire with loss and delay", deadline=120)
def test_a_limit_holds_on_an_impaired_wire_changes_live_and_slows_no_other_tunnel(
    harness: ProcessHarness, impaired_hosts: ImpairedHosts, record_figure: FigureRecorder
) -> None:
    """Several visitors send all the time while the limit is doubled; another tunnel of the same daemons echoes."""
    hosts, sink = impaired_hosts, CountingSink()
    limited, free = hosts.target(harness, hosts.client, sink.serve), hosts.target(harness, hosts.client, echo)
    ports = free_ports(4)

    def servers(mbit: int) -> dict[str, object]:
        urls = [f"server://{KEY}@{SERVER}:{ports[n]}/127.0.0.1:{ports[n + 2]}?mode=reverse" for n in range(2)]
        return {"t": {"url": urls[0], "rate": f"{mbit}mbit"}, "free": urls[1]}

    clients = {
        name: f"client://{KEY}@{SERVER}:{port}/127.0.0.1:{target.port}"
        for name, port, target in zip(("t", "free"), ports[:2], (limited, free), strict=True)
    }
    server = harness.start_daemon(servers(2), name="server", prefix=hosts.server.prefix)
    client = harness.start_daemon(clients, name="client", prefix=hosts.client.prefix)
    for name in clients:
        server.wait_state("up", within=20, name=name)
        client.wait_state("up", within=20, name=name)
    hosts.wire.set_impairment(Impairment(loss=0.01, delay=0.01))
    stopped = threading.Event()
    with contextlib.ExitStack() as stack:
        stack.callback(hosts.wire.set_impairment, Impairment())
        other = stack.enter_context(hosts.server.connect(("127.0.0.1", ports[3])))
        alone_s = median_round_trip_s(other)
        for _ in range(VISITORS):
            visitor = stack.enter_context(hosts.server.connect(("127.0.0.1", ports[2])))
            threading.Thread(target=send_until, args=(stopped, visitor), daemon=True).start()
        stack.callback(stopped.set)
        time.sleep(3)
        first = sink.rate_over(WINDOW_S)
        beside_s = median_round_trip_s(other)
        server.write(servers(4))
        wait_until(lambda: server.tunnel()["rate_limits"]["rate_bps"] == 4 * MBIT, within=20, what="the limit changes")
        time.sleep(3)
        second = sink.rate_over(WINDOW_S)
        connections = server.tunnel()["connections"]
    assert 0.7 * 2 * MBIT < first < 1.1 * 2 * MBIT
    assert 0.7 * 4 * MBIT < second < 1.1 * 4 * MBIT
    assert (connections["active"], connections["total"]) == (VISITORS, VISITORS), "a visitor was disconnected"
    assert beside_s < 2 * alone_s + 0.05
    record_figure(
        f"{first / MBIT:.2f} of 2, {second / MBIT:.2f} of 4 Mbit/s; "
        f"echo beside it {1000 * beside_s:.0f} ms, alone {1000 * alone_s:.0f} ms"
    )
