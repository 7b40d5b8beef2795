"""Tunnels between hosts of our own: their ends in two namespaces, visitors and targets beside them."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Self

from tests.faults.wire import Manners, Wire
from tests.integration.harness import Pair, Stage, until
from tests.integration.namespaces import End, Host, Network
from tests.integration.peers import PATIENCE, Target, echo
from tests.ports import free_port

KEY = "Zq7Wm2Rk9xTv4Lp8"
SERVER, CLIENT = "10.1.0.1", "10.1.0.2"
ESTABLISHED = "01"
LONG = 300.0
"""Seconds that a target waits for more: longer than any fault lasts."""
DIRECTIONS = ("reverse", "forward")


def lasting_echo(sock: socket.socket) -> None:
    """Send back what comes, however long it is silent in between."""
    sock.settimeout(LONG)
    echo(sock)


@dataclass(frozen=True)
class FarPair(Pair):
    """A server and a client of one tunnel on two hosts; visitors come from the entrance's own host."""

    entrance_host: Host
    target_host: Host

    def up(self, *, within: float = 40.0) -> Self:
        """Wait until both ends are: a case starts several at once."""
        return super().up(within=within)

    def connect(self, *, timeout: float = PATIENCE) -> socket.socket:
        """A visitor."""
        sock = self.entrance_host.connect(self.visitors, timeout=timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock


class Hosts(Network):
    """The network, and how to put tunnels on it and to disturb it."""

    def pair(
        self,
        stage: Stage,
        serve: Callable[[socket.socket], None] | Target = lasting_echo,
        *,
        direction: str = "reverse",
        both: str = "",
        server: str = "",
        client: str = "",
        behind: bool = False,
    ) -> FarPair:
        """A tunnel with a key: server on the server's host, client on the client's; options as in ``Stage.pair``.

        The target is on the exit's own host, or, of a forward tunnel with ``behind``, on the host behind the server.
        """
        target_host = self.backend if behind else self.client if direction == "reverse" else self.server
        target = serve if isinstance(serve, Target) else self.target(stage, target_host, serve)
        tunnel_port, visitor_port = free_port(), free_port()
        entrance, exit_ = f"127.0.0.1:{visitor_port}", f"{'10.2.0.2' if behind else '127.0.0.1'}:{target.port}"
        ends = (entrance, exit_) if direction == "reverse" else (exit_, entrance)
        server_options = "&".join(filter(None, [f"mode={direction}", both, server]))
        client_options = "&".join(filter(None, [both, client]))
        urls = {
            "server": f"server://{KEY}@{SERVER}:{tunnel_port}/{ends[0]}?{server_options}",
            "client": f"client://{KEY}@{SERVER}:{tunnel_port}/{ends[1]}?{client_options}",
        }
        return FarPair(
            stage.up({"t": urls["server"]}, name="server", prefix=self.server.prefix),
            stage.up({"t": urls["client"]}, name="client", prefix=self.client.prefix),
            ("127.0.0.1", visitor_port),
            tunnel_port,
            target,
            self.server if direction == "reverse" else self.client,
            target_host,
        )

    def target(
        self, stage: Stage, host: Host, serve: Callable[[socket.socket], None] = lasting_echo, port: int = 0
    ) -> Target:
        """A target on a host, at every address of it."""
        return stage.keep(Target(serve, listener=host.listener(("0.0.0.0", port))))

    def silence(self, *ways: str) -> None:
        """Drop every packet that leaves (``out``) or reaches (``in``) the server's host on the client's side."""
        for way in ways:
            chain, flag = ("INPUT", "-i") if way == "in" else ("OUTPUT", "-o")
            self.server.run("iptables", "-A", chain, flag, "client0", "-j", "DROP")

    def forget(self, ports: Sequence[int]) -> None:
        """Drop what belongs to the connections from these ports of the client's host; new ones pass."""
        for start in range(0, len(ports), 15):  # as many as one rule takes
            some = ",".join(map(str, ports[start : start + 15]))
            # A visitor on the server's own loopback may have one of these ports as well, and is none of theirs.
            for chain, side, which in (("INPUT", "-s", "--sports"), ("OUTPUT", "-d", "--dports")):
                rule = ("-A", chain, side, CLIENT, "-p", "tcp", "-m", "multiport", which, some, "-j", "DROP")
                self.server.run("iptables", *rule)

    @contextlib.contextmanager
    def translated(self, forgets: int) -> Generator[None]:
        """Make the server's host a router that hides the client's behind its address, for the host behind it.

        It forgets a connection after so many seconds of silence, and drops without a word what it does not know.
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

    def restore(self) -> None:
        """Drop nothing any more, on any host."""
        for host in (self.client, self.server, self.backend):
            host.run("iptables", "-F")


class FarHosts(Hosts):
    """The same with a bad wire between the server's host and the client's."""

    wire: Wire

    def join(self, server: End, client: End, undo: contextlib.ExitStack) -> None:
        """Put it between them; it is good until told otherwise."""
        self.wire = Wire(server, client, Manners())
        undo.callback(self.wire.close)


def established(host: Host, port: int) -> list[int]:
    """The remote ports of a host's established connections on a local port of its."""
    found = re.findall(rf":{port:04X} [0-9A-F]+:([0-9A-F]{{4}}) {ESTABLISHED} ", host.read("/proc/net/tcp"))
    return [int(remote, 16) for remote in found]


def peers(host: Host, port: int) -> set[str]:
    """The addresses at the other ends of them."""
    found = re.findall(rf":{port:04X} ([0-9A-F]{{8}}):[0-9A-F]{{4}} {ESTABLISHED} ", host.read("/proc/net/tcp"))
    return {socket.inet_ntoa(bytes.fromhex(address)[::-1]) for address in found}


def one_link(hosts: Hosts, pair: Pair, *, unlike: str | None, within: float) -> None:
    """Wait until both ends are on one link, another than before, and one control channel is all there is."""

    def settled() -> bool:
        ours, theirs = pair.server.tunnel().get("link"), pair.client.tunnel().get("link")
        return ours == theirs != unlike and ours is not None and len(established(hosts.server, pair.tunnel_port)) == 1

    until(settled, within=within, what="both ends are on one new link, with one control channel")
