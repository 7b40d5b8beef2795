"""The complete description of a tunnel: frozen, typed, with a key that does not print."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tunnel.model.balancer import Balance
from tunnel.model.networks import NO_NETWORKS, NetworkSet
from tunnel.model.servers import ServerShare
from tunnel.model.settings import Settings
from tunnel.model.targets import CHECK_OFF, CHECK_TCP, CheckKind, TargetSpec

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from tunnel.model.address import Address
    from tunnel.model.keys import Key, NamedKey
    from tunnel.model.publishing import PublishRule
    from tunnel.model.quota import Quota
    from tunnel.model.rate import Rate
    from tunnel.model.targets import TargetCheck

REUSE: Final = "reuse"
"""The feature of a link whose data connections serve one visitor after the other."""
MUX: Final = "mux"
"""The feature of a link whose visitors may share a data connection."""
SHARE: Final = "share"
"""The feature of a link whose client may change its weight, and whether it is a backup."""
PUBLISH: Final = "publish"
"""The feature of a link whose client has published its service."""
UDP: Final = "udp"
"""The feature of a link whose visitors are UDP flows."""
BOTH: Final = "both"
"""The feature of a link of ``UDP`` that has visitors of TCP as well."""
DATAGRAMS: Final = "datagrams"
"""The feature of a link whose UDP flows may travel in datagrams between client and server."""
MAX_CLIENTS: Final = 64
"""Clients that a server may have at once."""
_EGRESS_PATIENCE: Final = 1.5  # a limit is exceeded by a fifth at most
MAX_SERVICE_CHARS: Final = 64
"""Characters of the name of a service."""


class Role(enum.StrEnum):
    """Which end of a tunnel pair makes the link."""

    SERVER = "server"
    CLIENT = "client"


class Mode(enum.StrEnum):
    """Which direction the URL asks for."""

    AUTO = "auto"
    REVERSE = "reverse"
    FORWARD = "forward"


class Direction(enum.StrEnum):
    """Which end accepts visitors: the server in reverse, the client in forward."""

    REVERSE = "reverse"
    FORWARD = "forward"


class End(enum.StrEnum):
    """Where a part of a tunnel acts."""

    INGRESS = "ingress"
    """the end that accepts visitors"""
    EGRESS = "egress"
    """the end that dials targets"""

    @property
    def description(self) -> str:
        """What the end does, for messages."""
        return "accepts visitors" if self is End.INGRESS else "dials the target"


class ProxyVersion(enum.StrEnum):
    """Which header of the PROXY protocol an egress sends to its target."""

    OFF = "off"
    V1 = "v1"
    V2 = "v2"


class Proto(enum.StrEnum):
    """What the visitors of a tunnel speak."""

    TCP = "tcp"
    UDP = "udp"
    """each source address and port is a visitor, as long as datagrams go either way"""
    BOTH = "both"
    """of a tunnel: some visitors speak TCP and others UDP, on the same address and port"""

    @property
    def parts(self) -> tuple[Proto, ...]:
        """What a single visitor may speak."""
        return (Proto.TCP, Proto.UDP) if self is Proto.BOTH else (self,)

    @property
    def has_tcp(self) -> bool:
        """Whether visitors speak TCP, or some of them."""
        return self is not Proto.UDP

    @property
    def has_udp(self) -> bool:
        """Whether visitors speak UDP, or some of them."""
        return self is not Proto.TCP


class UdpCarrier(enum.StrEnum):
    """How the datagrams of UDP flows travel between client and server."""

    AUTO = "auto"
    """as datagrams where they get through, else over the data connections"""
    DATAGRAM = "datagram"
    """as datagrams alone: what does not get through is lost"""
    STREAM = "stream"
    """over the data connections"""


class Mux(enum.StrEnum):
    """Whether visitors share a data connection."""

    OFF = "0"
    """each has one of its own"""
    ON = "1"
    """they do, whatever the distance of the other end"""
    AUTO = "auto"
    """they do where the other end is near: a lost packet delays all that share, and there it is repaired at once"""


class LogLevel(enum.IntEnum):
    """The severity of an event, and the threshold of a tunnel's log."""

    DEBUG = 10
    INFO = 20
    WARN = 30
    ERROR = 40
    FATAL = 50


class DataTls(enum.IntEnum):
    """Encryption of data connections."""

    OFF = 0
    """only the control channel is encrypted"""
    ENCRYPTED = 1
    """everything is encrypted; a shared key proves that nobody is between the two ends"""
    VERIFIED = 2
    """everything is encrypted, and certificate files are verified against a CA on the control channel"""

    @property
    def carrier(self) -> Carrier:
        """The least protection of data connections that an end with this value accepts."""
        return Carrier.TCP if self is DataTls.OFF else Carrier.ENCRYPTED


class Carrier(enum.StrEnum):
    """How the data connections of a link travel, from the weakest protection to the strongest."""

    TCP = "tcp"
    ENCRYPTED = "encrypted"
    """every byte after the preface in an authenticated record"""

    def or_stricter(self, other: Carrier) -> Carrier:
        """Return the one of two that protects more: what both ends use if each wants one of them."""
        return max(self, other, key=list(Carrier).index)

    def is_weaker_than(self, other: Carrier) -> bool:
        """Return whether this one protects less."""
        return self.or_stricter(other) is not self


class AuthPolicy(enum.StrEnum):
    """Whether a tunnel may work without a key; a single URL may in any case, with a warning."""

    KEY = "key"
    """in a file, an entry without a key that other hosts can reach is a fault"""
    OPEN = "open"
    """the tunnel has no key: every peer that finds it is accepted"""


def proto_of(features: Collection[str]) -> Proto:
    """Return what the visitors of an end with these features speak."""
    if UDP not in features:
        return Proto.TCP
    return Proto.BOTH if BOTH in features else Proto.UDP


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelSpec:
    """Everything an engine has to know about its tunnel, from the URL and the option layers around it."""

    role: Role
    tunnel: Address
    """server: where it listens; client: where the server is, the first of several"""
    target: Address
    """egress: dialled for every visitor, the first of several; ingress: where visitors are accepted"""
    targets: tuple[TargetSpec, ...] = ()
    """the targets of an egress that has several, in the order of the configuration; empty for one"""
    other_servers: tuple[Address, ...] = ()
    """client: further servers of the same tunnel, with each of which it has a link"""
    server_shares: tuple[ServerShare, ...] = ()
    """client: all servers with their shares of the visitors that it accepts; empty: all are equal"""
    key: Key | None = None
    """shared by both ends; None leaves the tunnel open to every peer that finds the port"""
    named_keys: tuple[NamedKey, ...] = ()
    """of a server, in place of ``key``: the keys that it accepts, sorted by their names"""
    auth_policy: AuthPolicy = AuthPolicy.KEY
    reuse: bool = False
    """whether a data connection serves one visitor after the other, if both ends want it"""
    mux: Mux = Mux.AUTO
    """whether visitors share a data connection, if the other end lets them, too"""
    proto: Proto = Proto.TCP
    """what visitors and target speak"""
    service: str = ""
    """the name that both ends have agreed on; tells tunnels apart that share a key"""
    publish: Address | None = None
    """client: where the server is asked to accept visitors for the service; an empty host: where its rule says"""
    publish_rules: tuple[PublishRule, ...] = ()
    """server: what its clients may publish; such a server has no target of its own"""
    published_by: str | None = None
    """server: the name of the key whose client has published the tunnel; None: the tunnel is configured"""
    clients: int = 1
    """server: how many clients may have the tunnel at once"""
    weight: int = 1
    """client: its share of a server's visitors in relation to other clients; 0: no new ones"""
    backup: bool = False
    """client: whether a server uses it only while no other client can serve"""
    mode: Mode = Mode.AUTO
    data_port: int | None = 0
    """port of the data listener; 0: a random one; None: data connections use the tunnel port"""
    data_tls: DataTls = DataTls.ENCRYPTED
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    balance: Balance = Balance.ROUNDROBIN
    slowstart: float = 0.0
    """seconds in which the weight of a target or client that returns grows to its value"""
    check: TargetCheck | None = None
    """how the health of targets is checked; None: over TCP if there are several and they speak it, else not at all"""
    inter: float = 2.0
    """seconds between two checks of a target"""
    fall: int = 3
    rise: int = 2
    check_timeout: float = 1.0
    dial_timeout: float = 10.0
    """at the egress: seconds in which a target accepts a visitor's connection, or counts as unreachable"""
    idle_timeout: float = 0.0
    """seconds without a byte after which a visitor is disconnected; 0: never"""
    udp_carrier: UdpCarrier = UdpCarrier.AUTO
    """how the datagrams of UDP flows travel between client and server"""
    udp_timeout: float = 60.0
    """seconds without a datagram after which a UDP flow ends"""
    max_age: float = 0.0
    """seconds after which a visitor is disconnected; 0: never"""
    rate: Rate | None = None
    """of all visitors together, each direction by itself; None: no limit"""
    visitor_rate: Rate | None = None
    """of each visitor, each direction by itself; None: no limit"""
    log: LogLevel = LogLevel.INFO
    allow: NetworkSet = NO_NETWORKS
    """ingress: the networks whose visitors are accepted; none: all"""
    deny: NetworkSet = NO_NETWORKS
    """ingress: the networks whose visitors are refused, also if ``allow`` has them"""
    max_per_address: int = 0
    """ingress: visitors of one address at once; 0: no limit"""
    rate_new: float = 0.0
    """ingress: new visitors of one address per second; 0: no limit"""
    proxy_from: NetworkSet = NO_NETWORKS
    """ingress: the balancers whose connections start with a PROXY header of their visitor"""
    proxy: ProxyVersion = ProxyVersion.OFF
    """egress: the PROXY header with the visitor's address that the target is sent"""
    quota: Quota | None = None
    """ingress: bytes that the tunnel may carry in a period; then new visitors are refused"""
    settings: Settings = field(default_factory=Settings)

    @property
    def auth(self) -> str:
        """How a peer authenticates: ``key``, or ``open`` for not at all."""
        return "key" if self.key or self.named_keys else "open"

    @property
    def features(self) -> tuple[str, ...]:
        """The optional parts of the protocol that this end wants to use."""
        has_udp = self.proto.has_udp
        wanted = {
            SHARE: True,
            REUSE: self.reuse,
            MUX: self.mux is not Mux.OFF and self.proto.has_tcp,
            UDP: has_udp,
            BOTH: self.proto is Proto.BOTH,
            DATAGRAMS: has_udp and self.udp_carrier is not UdpCarrier.STREAM,
            PUBLISH: self.publish is not None or self.published_by is not None or bool(self.publish_rules),
        }
        return tuple(name for name, is_wanted in wanted.items() if is_wanted)

    def idle_limits(self, end: End) -> dict[Proto, float]:
        """Seconds without a byte or datagram after which an end disconnects a visitor of TCP or UDP; 0: never.

        An egress lets the ingress forget a UDP flow first: a datagram on its way to a flow that has just ended is lost.
        """
        of_flow = min(self.udp_timeout, self.idle_timeout or self.udp_timeout)
        limits = {
            Proto.TCP: self.idle_timeout,
            Proto.UDP: of_flow if end is End.INGRESS else _EGRESS_PATIENCE * of_flow,
        }
        return {proto: limits[proto] for proto in self.proto.parts}

    @property
    def carrier(self) -> Carrier:
        """The least that this end accepts for data connections."""
        return self.data_tls.carrier

    @property
    def max_links(self) -> int | None:
        """Links that a server may have at once, one for each client; None at a client, or if clients publish."""
        return self.clients if self.role is Role.SERVER and not self.publish_rules else None

    @property
    def tunnels(self) -> tuple[Address, ...]:
        """All tunnel addresses, in the order of preference: of a client with several servers one for each."""
        return (self.tunnel, *self.other_servers)

    @property
    def servers(self) -> tuple[ServerShare, ...]:
        """The servers of a client with their shares, in the order of preference, also if there is only one."""
        return self.server_shares or tuple(map(ServerShare, self.tunnels))

    @property
    def tunnel_text(self) -> str:
        """The tunnel address, or all of several, as the URL has them."""
        return ",".join(map(str, self.tunnels))

    @property
    def members(self) -> tuple[TargetSpec, ...]:
        """All targets, also if there is only one."""
        return self.targets or (TargetSpec(self.target),)

    @property
    def target_text(self) -> str:
        """The target, or all of several, as the URL has them; of a server that lets clients publish, what they may."""
        if self.publish_rules:
            return ",".join(dict.fromkeys(rule.address_text for rule in self.publish_rules))
        return ",".join(str(each.address) for each in self.members)

    @property
    def effective_check(self) -> TargetCheck:
        """How the health of targets is checked."""
        return self.check or (CHECK_TCP if self.targets and self.proto.has_tcp else CHECK_OFF)

    @property
    def shows_health_when_connected(self) -> bool:
        """Whether a target of a group is in order if a visitor's connection of TCP to it is made."""
        return self.effective_check.kind is not CheckKind.HTTP

    @property
    def is_target_group(self) -> bool:
        """Whether an egress chooses and checks its targets, instead of dialling the only one."""
        return bool(self.targets) or self.effective_check.kind is not CheckKind.OFF

    @property
    def is_exposed(self) -> bool:
        """Whether the tunnel has no key, reaches beyond this host, and nothing says that this is intended."""
        is_local = all(each.is_loopback for each in self.tunnels) and all(
            each.address.is_loopback for each in self.members
        )
        return self.auth == "open" and self.auth_policy is AuthPolicy.KEY and not is_local

    @property
    def end(self) -> End | None:
        """Which end of the tunnel this is, as far as the spec shows it: in ``auto`` the server decides."""
        return None if self.mode is Mode.AUTO else self.end_in(Direction(self.mode.value))

    def end_in(self, direction: Direction) -> End:
        """Return which end of the tunnel this is in a direction."""
        return End.INGRESS if (self.role is Role.SERVER) is (direction is Direction.REVERSE) else End.EGRESS

    @property
    def cooldown(self) -> float:
        """The longest wait between two attempts, in seconds."""
        return self.settings.server_cooldown if self.role is Role.SERVER else self.settings.client_cooldown
