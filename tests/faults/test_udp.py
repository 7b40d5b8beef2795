"""UDP tunnels between hosts whose network fails."""

from __future__ import annotations

import contextlib
import select
import socket
import statistics
import struct
import time

import pytest

from tests.faults.conftest import FigureRecorder
from tests.faults.hosts import KEY, SERVER, NamespaceHosts
from tests.support.namespaces import Host
from tests.support.peers import round_trip
from tests.support.ports import free_port
from tests.support.processes import Daemon, ProcessHarness
from tests.support.scale import time_allowed
from tests.support.waiting import wait_until
from tunnel.runtime.datagram_batches import DatagramSender
from tunnel.runtime.datagram_port import MAX_WAITING

INTERVAL_S = 0.005
SILENT_S = 1.5
LATE_S = 0.3
IN_FLIGHT = 30
"""Datagrams that TCP may have sent already: ten segments at first, and what was written together with them."""
LOST_SHARE = 0.02
COUNT = 800


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


def wait_ready(visitor: socket.socket, target: socket.socket) -> None:
    """Exchange datagrams until all arrive; what is older has arrived by then."""
    for number in range(20):
        visitor.send(struct.pack("!Q", number))
        while select.select([target], [], [], 1)[0] and target.recv(99) != struct.pack("!Q", number):
            pass


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


def wait_carrier(server: Daemon, visitor: socket.socket, carrier: str) -> None:
    """Send datagrams until those of the visitor travel in this way."""

    def travels() -> bool:
        visitor.send(bytes(12))
        return bool(server.tunnel()["links"][0]["udp_carrier"] == carrier)

    wait_until(travels, "datagrams travel in the other way")


@pytest.mark.case("TCP and UDP on one port: UDP blocked", deadline=60)
def test_connections_and_flows_of_one_port_survive_a_firewall_that_blocks_udp(
    hosts: NamespaceHosts, harness: ProcessHarness, record_figure: FigureRecorder
) -> None:
    """The stream of one visitor goes on, and the datagrams of another travel over its data connection.

    Seen to fail: with ``udp_carrier=datagram`` nothing of the flow arrives while UDP is blocked.
    """
    target = hosts.target(harness, hosts.client)
    pair = hosts.pair(harness, target, both="proto=both").wait_up()
    with (
        datagram_socket(hosts.client, target.port) as flows,
        datagram_socket(hosts.server) as flow,
        pair.connect() as stream,
    ):
        flow.connect(pair.visitors)
        wait_carrier(pair.server, flow, "datagram")
        wait_ready(flow, flows)
        hosts.block_udp()
        began, arrived, longest_s = time.monotonic(), 0, 0.0
        while arrived < 100 and (now := time.monotonic()) < began + 20:
            flow.send(struct.pack("!d", now))
            round_trip(stream, b"x" * 100)
            longest_s = max(longest_s, time.monotonic() - now)
            with contextlib.suppress(BlockingIOError):
                while flows.recv(99):
                    arrived += 1
            time.sleep(INTERVAL_S)
        took_s = time.monotonic() - began
        seen = pair.server.tunnel()
        hosts.restore()
        assert arrived >= 100, "datagrams arrive over the data connection"
        assert longest_s < time_allowed(1), "the stream does not wait for anything"
        assert (seen["connections"]["total"], seen["links"][0]["udp_carrier"]) == (2, "stream")
        record_figure(f"100 datagrams in {took_s:.1f} s; slowest round trip of TCP {longest_s * 1e3:.1f} ms")


@pytest.mark.case("UDP: 2 % loss between the ends", deadline=60)
def test_with_datagrams_a_lossy_wire_loses_its_share_and_delays_no_other(
    hosts: NamespaceHosts, harness: ProcessHarness, record_figure: FigureRecorder
) -> None:
    """What is not lost arrives at once: no datagram waits for another one.

    Seen to fail: with ``udp_carrier=stream`` nothing is lost, and some datagrams arrive 0.2 s late.
    """
    with datagram_socket(hosts.client) as target, datagram_socket(hosts.server) as visitor:
        server = start_tunnel(hosts, harness, target, visitor, carrier="datagram")
        wait_ready(visitor, target)
        hosts.lose(LOST_SHARE)
        delays = {}
        for number in range(COUNT):
            visitor.send(struct.pack("!Id", number, time.monotonic()))
            until = time.monotonic() + INTERVAL_S / 2
            while (left := until - time.monotonic()) > 0:
                if select.select([target], [], [], left)[0]:
                    one, sent_at = struct.unpack("!Id", target.recv(99))
                    delays[one] = time.monotonic() - sent_at
        hosts.restore()
        lost = 1 - len(delays) / COUNT
        assert 0 < lost < 4 * LOST_SHARE
        late = sum(delay > LATE_S / 2 for delay in delays.values())
        assert late <= COUNT / 100, "TCP repeats after 0.2 s at the earliest"
        assert server.tunnel()["links"][0]["udp_reason"] is None, "the path stays usable"
        cuts = statistics.quantiles(delays.values(), n=100)
        record_figure(f"{lost:.1%} lost; delay p50 {cuts[49] * 1e3:.2f}, p99 {cuts[98] * 1e3:.2f} ms")


@pytest.mark.case("UDP: MTU 1280 between the ends", deadline=60)
def test_on_a_wire_that_is_too_narrow_for_datagrams_bursts_arrive_over_data_connections(
    hosts: NamespaceHosts, harness: ProcessHarness, record_figure: FigureRecorder
) -> None:
    """A path whose probes do not pass is not used; one that becomes narrow is left."""
    with datagram_socket(hosts.client) as target, datagram_socket(hosts.server) as visitor:
        server = start_tunnel(hosts, harness, target, visitor, carrier="auto")
        wait_carrier(server, visitor, "datagram")
        wait_ready(visitor, target)
        burst = [bytes([n]) * 1300 for n in range(20)]
        with hosts.mtu(1280):
            found: set[bytes] = set()
            began, sender = time.monotonic(), DatagramSender(visitor)

            def all_arrive() -> bool:
                sender.send(burst)
                while select.select([target], [], [], 0.05)[0]:
                    found.add(target.recv(2000))
                return found.issuperset(burst)

            wait_until(all_arrive, "the datagrams arrive over the data connection")
            took_s = time.monotonic() - began
        record_figure(f"bursts arrive after {took_s:.2f} s")
