"""Tunnels between network namespaces: each end, its visitors and its targets on a host of its own."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Self

from tests.faults.wire import ImpairedWire, Impairment
from tests.support.namespaces import End, Host, Network
from tests.support.peers import SOCKET_TIMEOUT_S, Target, echo
from tests.support.ports import free_port
from tests.support.processes import Pair, ProcessHarness
from tests.support.waiting import wait_until

KEY = "npk_ZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXp7fH1-f4CBgoNtm-wx"  # made by keygen: a daemon computes nothing for it
SERVER, CLIENT = "10.1.0.1", "10.1.0.2"
ESTABLISHED = "01"
TARGET_TIMEOUT_S = 300.0
"""Seconds that a target waits for data: longer than any fault lasts."""
DIRECTIONS = ("reverse", "forward")


def patient_echo(sock: socket.socket) -> None:
    """Echo, however long the stream is silent in between."""
    sock.settimeout(TARGET_TIMEOUT_S)
    echo(sock)


@dataclass(frozen=True)
class NamespacePair(Pair):
    """A server and a client of one tunnel on two hosts; visitors connect on the ingress host."""

    ingress_host: Host
    target_host: Host

    def wait_up(self, *, within: float = 40.0) -> Self:
        """Wait until both ends are up. The default is long because a case starts several pairs at once."""
        return super().wait_up(within=within)

    def connect(self, *, timeout: float = SOCKET_TIMEOUT_S) -> socket.socket:
        """Connect as a visitor."""
        sock = self.ingress_host.connect(self.visitors, timeout=timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock


class NamespaceHosts(Network):
    """The network with methods that start tunnels on it and disturb it."""

    def pair(
        self,
        harness: ProcessHarness,
        serve: Callable[[socket.socket], None] | Target = patient_echo,
        *,
        direction: str = "reverse",
        both: str = "",
        server: str = "",
        client: str = "",
        behind: bool = False,
    ) -> NamespacePair:
        """Start a tunnel with a key, each end on its own host; the options are those of ``ProcessHarness.start_pair``.

        The target is on the egress host, or, for a forward tunnel with ``behind``, on the host behind the server.
        """
        target_host = self.backend if behind else self.client if direction == "reverse" else self.server
        target = serve if isinstance(serve, Target) else self.target(harness, target_host, serve)
        tunnel_port, visitor_port = free_port(), free_port()
        ingress, egress = f"127.0.0.1:{visitor_port}", f"{'10.2.0.2' if behind else '127.0.0.1'}:{target.port}"
        ends = (ingress, egress) if direction == "reverse" else (egress, ingress)
        server_options = "&".join(filter(None, [f"mode={direction}", both, server]))
        client_options = "&".join(filter(None, [both, client]))
        urls = {
            "server": f"server://{KEY}@{SERVER}:{tunnel_port}/{ends[0]}?{server_options}",
            "client": f"client://{KEY}@{SERVER}:{tunnel_port}/{ends[1]}?{client_options}",
        }
        return NamespacePair(
            harness.start_daemon({"t": urls["server"]}, name="server", prefix=self.server.prefix),
            harness.start_daemon({"t": urls["client"]}, name="client", prefix=self.client.prefix),
            ("127.0.0.1", visitor_port),
            tunnel_port,
            target,
            self.server if direction == "reverse" else self.client,
            target_host,
        )

    def target(
        self, harness: ProcessHarness, host: Host, serve: Callable[[socket.socket], None] = patient_echo, port: int = 0
    ) -> Target:
        """Start a target on a host, at all its addresses."""
        return harness.close_at_end(Target(serve, listener=host.listener(("0.0.0.0", port))))

    def silence(self, *ways: str) -> None:
        """Drop all packets between client and server: those to the server (``in``), from it (``out``), or both."""
        for way in ways:
            chain, flag = ("INPUT", "-i") if way == "in" else ("OUTPUT", "-o")
            self.server.run("iptables", "-A", chain, flag, "client0", "-j", "DROP")

    def block_udp(self) -> None:
        """Drop UDP between client and server, as a firewall that allows TCP alone."""
        for chain, flag in (("INPUT", "-i"), ("OUTPUT", "-o")):
            self.server.run("iptables", "-A", chain, flag, "client0", "-p", "udp", "-j", "DROP")

    def lose(self, share: float) -> None:
        """Lose this share of the packets between client and server, each way and at random."""
        for chain, flag in (("INPUT", "-i"), ("OUTPUT", "-o")):
            match = f"-m statistic --mode random --probability {share}"
            self.server.run("iptables", "-A", chain, flag, "client0", *match.split(), "-j", "DROP")

    @contextlib.contextmanager
    def mtu(self, size: int) -> Generator[None]:
        """Let the wire between client and server carry packets of this size at most."""
        ends = (self.server, "client0"), (self.client, "server0")
        for host, device in ends:
            host.run("ip", "link", "set", device, "mtu", str(size))
        try:
            yield
        finally:
            for host, device in ends:
                host.run("ip", "link", "set", device, "mtu", "1500")

    def forget(self, ports: Sequence[int]) -> None:
        """Drop the packets of connections from these ports of the client's host; new connections pass."""
        for start in range(0, len(ports), 15):  # one rule takes at most 15 ports
            group = ",".join(map(str, ports[start : start + 15]))
            # The address is matched too, because a visitor on the server's loopback may use one of these ports.
            for chain, side, which in (("INPUT", "-s", "--sports"), ("OUTPUT", "-d", "--dports")):
                rule = ("-A", chain, side, CLIENT, "-p", "tcp", "-m", "multiport", which, group, "-j", "DROP")
                self.server.run("iptables", *rule)

    def limit_new_connections(self, count: int, period_s: int) -> None:
        """Refuse new connections from the client's host once there were ``count`` in a period; each attempt counts."""
        match = "-p tcp --syn -i client0 -m recent --name attempts --rsource"
        refuse = f"--update --seconds {period_s} --hitcount {count} -j REJECT --reject-with tcp-reset"
        for rule in (f"-A INPUT {match} {refuse}", f"-A INPUT {match} --set -j ACCEPT"):
            self.server.run("iptables", *rule.split())

    @contextlib.contextmanager
    def translated(self, forgets: int) -> Generator[None]:
        """Make the server's host a NAT router between the client's host and the host behind the server.

        The router forgets a connection after ``forgets`` seconds of silence and silently drops unknown packets.
        """
        self.server.set("net/ipv4/ip_forward", 1)
        rules = ["-t nat -A POSTROUTING -o backend0 -j MASQUERADE", "-A FORWARD -m conntrack --ctstate INVALID -j DROP"]
        for rule in rules:
            self.server.run("iptables", *rule.split())
        self.server.set("net/netfilter/nf_conntrack_tcp_loose", 0)
        self.server.set("net/netfilter/nf_conntrack_tcp_timeout_established", forgets)
        self.client.run("ip", "route", "add", "default", "via", SERVER)
        try:
            yield
        finally:
            self.client.run("ip", "route", "del", "default")
            for rule in rules:
                self.server.run("iptables", *rule.replace("-A", "-D").split())

    @contextlib.contextmanager
    def server_address(self, address: str) -> Generator[None]:
        """Give the server's host another address on the wire to the client's host."""
        self.server.run("ip", "address", "add", f"{address}/24", "dev", "client0")
        try:
            yield
        finally:
            self.server.run("ip", "address", "del", f"{address}/24", "dev", "client0")

    def restore(self) -> None:
        """Remove all drop rules on all hosts."""
        for host in (self.client, self.server, self.backend):
            host.run("iptables", "-F")


class ImpairedHosts(NamespaceHosts):
    """The same hosts with an impaired wire between the server's host and the client's."""

    wire: ImpairedWire

    def join(self, server: End, client: End, undo: contextlib.ExitStack) -> None:
        """Connect the two hosts with a wire that is unimpaired at first."""
        self.wire = ImpairedWire(server, client, Impairment())
        undo.callback(self.wire.close)


def established(host: Host, port: int) -> list[int]:
    """Return the remote ports of the established connections on a local port of a host."""
    found = re.findall(rf":{port:04X} [0-9A-F]+:([0-9A-F]{{4}}) {ESTABLISHED} ", host.read("/proc/net/tcp"))
    return [int(remote, 16) for remote in found]


def peers(host: Host, port: int) -> set[str]:
    """Return the remote addresses of the established connections on a local port of a host."""
    found = re.findall(rf":{port:04X} ([0-9A-F]{{8}}):[0-9A-F]{{4}} {ESTABLISHED} ", host.read("/proc/net/tcp"))
    return {socket.inet_ntoa(bytes.fromhex(address)[::-1]) for address in found}


def wait_one_link(hosts: NamespaceHosts, pair: Pair, *, unlike: str | None, within: float) -> None:
    """Wait until both ends share one link other than ``unlike`` and exactly one control channel exists."""

    def is_settled() -> bool:
        ours, theirs = pair.server.tunnel().get("link"), pair.client.tunnel().get("link")
        return ours == theirs != unlike and ours is not None and len(established(hosts.server, pair.tunnel_port)) == 1

    wait_until(is_settled, within=within, what="both ends share one new link with one control channel")
