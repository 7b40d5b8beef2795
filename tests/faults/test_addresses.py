"""Addresses that come, go or change while the daemons run, and hosts of a name that only accept connections."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Generator

import pytest

from tests.faults.conftest import FigureRecorder
from tests.faults.hosts import KEY, SERVER, NamespaceHosts, patient_echo
from tests.faults.test_names import first_byte_s, start_pair
from tests.support.namespaces import Host
from tests.support.peers import Target, time_to_first_byte
from tests.support.ports import free_port
from tests.support.processes import ProcessHarness
from tests.support.scale import time_allowed
from tests.support.waiting import wait_until

OTHER = "10.1.0.3"
"""A second address of the server's host; RFC 6724 sorts it before the first."""
LATE = "10.1.0.77"
"""An address that the server's host receives after its daemon has started."""
SILENCE_S = 15.0
"""After which an end with the default REPORT_INTERVAL closes its link."""


def add_interface(hosts: NamespaceHosts) -> None:
    """Connect both hosts by another cable with link-local addresses, as a VPN that is started."""
    ends = ((hosts.server, "vpn0", "fe80::11"), (hosts.client, "vpn1", "fe80::12"))
    names = [hosts.server.name, "type", "veth", "peer", "name", "vpn1", "netns", hosts.client.name]
    subprocess.run(["ip", "link", "add", "vpn0", "netns", *names], check=True, capture_output=True)
    for host, device, address in ends:
        host.run("ip", "address", "add", f"{address}/64", "dev", device, "nodad")
        host.run("ip", "link", "set", device, "up")


@pytest.fixture
def interface(hosts: NamespaceHosts) -> Generator[None]:
    """Both hosts have the other cable."""
    add_interface(hosts)
    try:
        yield
    finally:
        hosts.server.run("ip", "link", "del", "vpn0")


@pytest.mark.usefixtures("interface")
@pytest.mark.slow
@pytest.mark.case("the interface of link-local addresses is created again", deadline=90)
def test_link_local_addresses_work_after_their_interface_was_created_again(
    harness: ProcessHarness, hosts: NamespaceHosts, record_figure: FigureRecorder
) -> None:
    """A server that listens on it, and a target that is dialled through it.

    Seen to fail: the kernel knows the interface under another number, so listener and target are dead for ever.
    """
    target = harness.close_at_end(Target(patient_echo, listener=_listener_on_every_family(hosts.client)))
    listening = start_pair(
        harness, hosts, target, listens_on="[fe80::11%vpn0]", server_host="[fe80::11%vpn1]"
    ).wait_up()
    port, visitors = free_port(), free_port()
    server = f"server://{KEY}@{SERVER}:{port}/[fe80::12%vpn0]:{target.port}?mode=forward"
    harness.start_daemon({"t": server}, name="server", prefix=hosts.server.prefix)
    client = f"client://{KEY}@{SERVER}:{port}/127.0.0.1:{visitors}"
    harness.start_daemon({"t": client}, name="client", prefix=hosts.client.prefix)

    def dialling_s(within: float) -> float:
        return time_to_first_byte(
            lambda timeout: hosts.client.connect(("127.0.0.1", visitors), timeout=timeout), within=within
        )

    dialling_s(within=10)
    hosts.server.run("ip", "link", "del", "vpn0")
    add_interface(hosts)
    began = time.monotonic()
    dialled = dialling_s(within=5)
    listening.time_to_first_byte(within=SILENCE_S + 8)
    record_figure(f"the target after {dialled:.1f} s, the listener after {time.monotonic() - began:.1f} s")


def _listener_on_every_family(host: Host) -> socket.socket:
    with host.entered():
        return socket.create_server(("::", 0), family=socket.AF_INET6, backlog=64, dualstack_ipv6=True)


@pytest.mark.slow
@pytest.mark.case("a server's first address accepts connections and is silent", deadline=60)
def test_a_client_reaches_a_server_behind_an_address_that_only_accepts_connections(
    harness: ProcessHarness, hosts: NamespaceHosts, record_figure: FigureRecorder
) -> None:
    """As a replica whose process is frozen.

    Seen to fail: the address that accepts counts as the one that answers, and is tried first for ever.
    """
    hosts.client.set_names([("replicas", OTHER), ("replicas", SERVER)])
    try:
        with hosts.server_address(OTHER):
            target = hosts.target(harness, hosts.client)
            pair = start_pair(harness, hosts, target, server_host="replicas", listens_on=SERVER)
            with hosts.server.listener((OTHER, pair.tunnel_port)):
                began = time.monotonic()
                pair.wait_up(within=20)
            took = time.monotonic() - began
            assert first_byte_s(pair.connect) < time_allowed(1.0)
    finally:
        hosts.client.set_names([])
    record_figure(f"up after {took:.1f} s")


@pytest.mark.slow
@pytest.mark.case("the address for visitors comes after the start", deadline=60)
def test_visitors_are_accepted_on_an_address_that_came_after_the_start(
    harness: ProcessHarness, hosts: NamespaceHosts, record_figure: FigureRecorder
) -> None:
    """With ``mode=auto``, on a second address of the interface, as VRRP adds it.

    Seen to fail: the direction is decided before there is the address, and a second address is not recognised. The
    server is ``forward`` for ever, and the client tries to listen on the address of its service.
    """
    target = hosts.target(harness, hosts.client)
    port, visitors = free_port(), free_port()
    url = f"server://{KEY}@0.0.0.0:{port}/{LATE}:{visitors}"
    server = harness.start_daemon({"t": url}, name="server", prefix=hosts.server.prefix)
    server.wait_state("waiting", within=20)
    assert server.tunnel()["direction"] == "forward"
    with hosts.server_address(LATE):
        url = f"client://{KEY}@{SERVER}:{port}/127.0.0.1:{target.port}"
        client = harness.start_daemon({"t": url}, name="client", prefix=hosts.client.prefix)
        client.wait_state("up", within=20)
        first = time_to_first_byte(lambda timeout: hosts.client.connect((LATE, visitors), timeout=timeout), within=10)
        assert server.tunnel()["direction"] == "reverse"
    record_figure(f"first byte after {first * 1000:.0f} ms")


@pytest.mark.slow
@pytest.mark.case("a firewall closes the data port later", deadline=60)
def test_the_tunnel_port_replaces_a_data_port_that_is_closed_later(
    harness: ProcessHarness, hosts: NamespaceHosts, record_figure: FigureRecorder
) -> None:
    """No visitor is lost: the one that finds the pool empty waits until the other port is tried.

    Seen to fail: visitors are disconnected for 80 s, until the third dial and the third pause are over.
    """
    pair = hosts.pair(harness).wait_up()
    wait_until(lambda: pair.server.tunnel()["pool"]["idle"] >= 8, within=5, what="the pool is full")
    port = pair.server.tunnel()["data_addr"].rpartition(":")[2]
    rule = f"-A INPUT -i client0 -p tcp --dport {port} --syn -j DROP"
    try:
        hosts.server.run("iptables", *rule.split())
        waits = [first_byte_s(pair.connect) for _ in range(24)]
    finally:
        hosts.restore()
    assert max(waits) < time_allowed(5.0)
    record_figure(f"the longest of {len(waits)} waits is {max(waits):.1f} s")


@pytest.mark.slow
@pytest.mark.case("the client's host gets another address", deadline=60)
def test_a_client_whose_address_is_gone_connects_again_soon(
    harness: ProcessHarness, hosts: NamespaceHosts, record_figure: FigureRecorder
) -> None:
    """As a laptop that changes its network.

    Seen to fail: the client waits for three intervals of silence, 15.6 s, before it uses the new address.
    """
    pair = hosts.pair(harness).wait_up()
    link = pair.client.tunnel()["link"]
    hosts.client.run("ip", "address", "add", "10.1.0.20/25", "dev", "server0")
    try:
        hosts.client.run("ip", "address", "del", "10.1.0.2/24", "dev", "server0")
        began = time.monotonic()
        wait_until(lambda: pair.client.tunnel()["link"] not in {link, None}, within=12, what="there is a new link")
        took = time.monotonic() - began
        pair.time_to_first_byte(within=2)
    finally:
        hosts.client.run("ip", "address", "flush", "dev", "server0", "scope", "global")
        hosts.client.run("ip", "address", "add", "10.1.0.2/24", "dev", "server0")
    record_figure(f"a new link after {took:.1f} s")
