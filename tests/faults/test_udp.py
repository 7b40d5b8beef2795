"""UDP tunnels between hosts whose network fails."""

from __future__ import annotations

import contextlib
import socket
import struct
import time

import pytest

from tests.faults.conftest import FigureRecorder
from tests.faults.hosts import KEY, SERVER, NamespaceHosts
from tests.support.namespaces import Host
from tests.support.ports import free_port
from tests.support.processes import Daemon, ProcessHarness
from tunnel.runtime.datagram_port import MAX_WAITING

INTERVAL_S = 0.005
SILENT_S = 1.5
LATE_S = 0.3
IN_FLIGHT = 30
"""Datagrams that TCP may have sent already: ten segments at first, and what was written together with them."""


def datagram_socket(host: Host, port: int = 0) -> socket.socket:
    with host.entered():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.bind(("127.0.0.1", port))
    return sock


def start_tunnel(
    hosts: NamespaceHosts, harness: ProcessHarness, target: socket.socket, visitor: socket.socket, *, carrier: str
) -> Daemon:
    """Start both ends of a tunnel from a visitor at the server to a target at the client; return the server."""
    tunnel, visitors = free_port(), free_port()
    ends = f"{SERVER}:{tunnel}/127.0.0.1:{visitors}", f"{SERVER}:{tunnel}/127.0.0.1:{target.getsockname()[1]}"
    options = f"proto=udp&mode=reverse&udp_carrier={carrier}"
    server = harness.start_daemon({"t": f"server://{KEY}@{ends[0]}?{options}"}, name="s", prefix=hosts.server.prefix)
    client = harness.start_daemon({"t": f"client://{KEY}@{ends[1]}?{options}"}, name="c", prefix=hosts.client.prefix)
    for daemon in (server, client):
        daemon.wait_state("up", within=40)
    visitor.connect(("127.0.0.1", visitors))
    return server


@pytest.mark.case("UDP: silent wire", deadline=60)
def test_after_a_silent_wire_fresh_datagrams_arrive_and_few_old_ones(
    hosts: NamespaceHosts, harness: ProcessHarness, record_figure: FigureRecorder
) -> None:
    """While the wire is silent, old datagrams are dropped; what arrives afterwards is fresh.

    Seen to fail: without TCP_NOTSENT_LOWAT, and with 10,000 datagrams in the queue for 100 s, hundreds arrive late.
    """
    with datagram_socket(hosts.client) as target, datagram_socket(hosts.server) as visitor:
        server = start_tunnel(hosts, harness, target, visitor, carrier="stream")
        began = time.monotonic()
        is_silent, delays = False, []
        while (passed := time.monotonic() - began) < 1 + SILENT_S + 3:
            if is_silent is not (1 <= passed < 1 + SILENT_S):
                is_silent = not is_silent
                if is_silent:
                    hosts.silence("in", "out")
                else:
                    hosts.restore()
            visitor.send(struct.pack("!d", time.monotonic()))
            with contextlib.suppress(BlockingIOError):
                while True:
                    delays.append(time.monotonic() - struct.unpack("!d", target.recv(99))[0])
            time.sleep(INTERVAL_S)
        late = sum(delay > LATE_S for delay in delays)
        dropped = server.tunnel()["counters"]["dropped_datagrams"]
        assert late <= MAX_WAITING + IN_FLIGHT
        assert max(delays[-20:]) < LATE_S, "the last ones are fresh"
        assert dropped > SILENT_S / INTERVAL_S / 3
        record_figure(f"{late} late, {dropped} dropped, {len(delays)} arrived")


@pytest.mark.case("UDP: blocked between the ends", deadline=90)
def test_a_flow_survives_a_firewall_that_blocks_udp_and_uses_datagrams_again_without_it(
    hosts: NamespaceHosts, harness: ProcessHarness, record_figure: FigureRecorder
) -> None:
    """Datagrams travel over the data connection within 2 s, and as datagrams within 30 s without the block."""
    with datagram_socket(hosts.client) as target, datagram_socket(hosts.server) as visitor:
        server = start_tunnel(hosts, harness, target, visitor, carrier="auto")

        def pass_datagrams(seconds: float, *, until: str = "") -> tuple[float, int]:
            """Send datagrams; return the longest time without one that arrives, and how many arrived."""
            began = last = time.monotonic()
            longest, arrived = 0.0, 0
            while (now := time.monotonic()) < began + seconds:
                visitor.send(struct.pack("!d", now))
                with contextlib.suppress(BlockingIOError):
                    while target.recv(99):
                        arrived, longest, last = arrived + 1, max(longest, now - last), now
                if until and arrived % 50 == 1 and server.tunnel()["links"][0]["udp_carrier"] == until:
                    break
                time.sleep(INTERVAL_S)
            return max(longest, time.monotonic() - last), arrived

        pass_datagrams(20, until="datagram")
        hosts.block_udp()
        gap_s, arrived = pass_datagrams(4)
        assert gap_s < 2.0, "it falls back within two seconds"
        assert arrived > 100, "datagrams arrive over the data connection"
        assert server.tunnel()["links"][0]["udp_carrier"] == "stream"
        hosts.restore()
        began = time.monotonic()
        pass_datagrams(30, until="datagram")
        back_s = time.monotonic() - began
        assert server.tunnel()["links"][0]["udp_carrier"] == "datagram"
        assert server.tunnel()["connections"]["total"] == 1, "it is the same flow"
        record_figure(f"no datagram for {gap_s:.2f} s; datagrams again after {back_s:.1f} s")
