"""The snapshot of a tunnel: what ``ps``, the API, the broker and the dashboard see of it.

Snapshots are immutable and can be pickled, because they cross process boundaries (worker, local API, broker).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tunnel.model.state import State
from tunnel.model.targets import TargetState

if TYPE_CHECKING:
    from collections.abc import Iterable


HELP: Final = "help"
"""Key of a counter's metadata: the help text of its metric."""


@dataclass(frozen=True, slots=True)
class _View:
    """A group of values of a snapshot."""

    def as_json(self) -> dict[str, Any]:
        """Return this part of the object that ``ps --json`` shows."""
        names, read = _READERS[type(self)]
        return dict(zip(names, map(encode_value, read(self)), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolView(_View):
    """The pool of data connections, in numbers."""

    idle: int = 0
    capacity: int = 0
    """idle data connections wanted at the moment"""
    dialing: int | None = 0
    """None at the server's end: only the client, which dials, knows"""
    min: int
    max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalsView(_View):
    """Visitors that wait for a data connection, and all signals sent or received so far."""

    queued: int = 0
    limit: int
    total: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionsView(_View):
    """Visitors: served now, served so far, failed, and the limit of those served at once."""

    active: int = 0
    total: int = 0
    failed: int = 0
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BytesView(_View):
    """Bytes relayed: ``in`` came from visitors, ``out`` went to them."""

    from_visitors: int = field(default=0, metadata={"json": "in"})
    to_visitors: int = field(default=0, metadata={"json": "out"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficRatesView(_View):
    """Bits per second from all visitors together and to them: means over the last one to five seconds."""

    in_bps: int
    out_bps: int


class TrafficReading(NamedTuple):
    """What rates are measured by: much less than a snapshot, because busy tunnels are read for it all the time."""

    from_visitors: int
    """bytes so far"""
    to_visitors: int
    """bytes so far"""
    active: int
    """visitors present"""


EMPTY_READING: Final = TrafficReading(0, 0, 0)
"""The reading of a tunnel without an engine."""


def _counter(help_text: str) -> int:
    count: int = field(default=0, metadata={HELP: help_text})
    return count


def _reason(help_text: str) -> int | None:
    """Return a field that counts visitors; None: this end does not know."""
    count: int | None = field(default=None, metadata={HELP: help_text})
    return count


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedView(_View):
    """Connection attempts and visitors that were refused since the start. Only an ingress knows the visitors."""

    handshakes: int = _counter("Control channels with a wrong proof or an invalid handshake.")
    prefaces: int = _counter("Data connections with a forged, replayed or late preface.")
    silent: int = _counter("Connections that sent nothing before the deadline, or were closed to make room for others.")
    allow: int | None = _reason("Visitors whose address is in deny, or not in allow.")
    per_address: int | None = _reason("Visitors whose address had max_per_address visitors already.")
    rate: int | None = _reason("Visitors whose address had more than rate_new new visitors per second.")
    proxy: int | None = _reason("Connections from proxy_from without a valid PROXY header.")
    quota: int | None = _reason("Visitors that came after the quota was used up.")
    limit: int | None = _reason("Visitors of UDP beyond semaphore_limit; those of TCP wait.")

    def plus(self, other: RefusedView) -> RefusedView:
        """Return the counts of both, field by field; unknown is what neither of them knows."""
        names, read = _READERS[RefusedView]
        sums = (a if b is None else b if a is None else a + b for a, b in zip(read(self), read(other), strict=True))
        return RefusedView(**dict(zip(names, sums, strict=True)))


REFUSED_VISITORS: Final = tuple(part.name for part in fields(RefusedView) if part.default is None)
"""The fields of RefusedView that count visitors, by reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CountersView(_View):
    """What else is counted. Each row is a field of the engine's ``Stats.counters``, a JSON key and a metric."""

    links: int = _counter("Links that were established.")
    vanished: int = _counter("Visitors disconnected because a peer no longer acknowledged data.")
    kicked: int = _counter("Visitors disconnected by command.")
    idle_timeouts: int = _counter(
        "Visitors that idle_timeout or udp_timeout ended, and idle ones of UDP that gave way."
    )
    max_ages: int = _counter("Visitors disconnected because of max_age.")
    redispatched: int = _counter("Visitors given to another link before anything of them was forwarded.")
    dropped_datagrams: int = _counter("UDP datagrams dropped: of refused visitors, late, or taken by no socket.")

    def plus(self, other: CountersView) -> CountersView:
        """Return the counts of both, field by field."""
        names, read = _READERS[CountersView]
        return CountersView(**dict(zip(names, map(sum, zip(read(self), read(other), strict=True)), strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class CooldownView(_View):
    """The wait before the next attempt."""

    remaining_s: float = 0.0
    attempt: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetChecksView(_View):
    """The checks of a target of a group."""

    kind: str
    """as the option ``check`` has it"""
    failed: int = 0
    """failed checks so far"""
    in_a_row: int = 0
    """outcomes towards the next change: failures while the target is up, passed checks while it is down"""
    changes: int = 0
    """of the state so far"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetView(_View):
    """A target, as the end that dials it sees it."""

    address: str
    state: TargetState
    reason: str | None = None
    """why it is not up, or that visitors of UDP avoid it"""
    weight: int = 1
    backup: bool = False
    visitors: int = 0
    """present ones"""
    checks: TargetChecksView | None = None
    """None: the only target of a tunnel is not checked"""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaView(_View):
    """How much of its quota a tunnel has used, in bytes of both directions."""

    used: int | None = None
    """None until the traffic of the period has been read"""
    limit: int
    until: str | None = None
    """when the present month ends; of rolling days, when a quota that is used up has room again"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkView(_View):
    """One link of a tunnel. A server has one with each of its clients, a client one with each of its servers."""

    id: str
    client: str | None = None
    """the name of the client's key, where keys have names"""
    peer: str
    state: str
    """``up``, ``connecting`` (no data connection yet), ``cooldown`` (its target cannot be reached), ``draining`` or
    ``drained`` (no new visitors, by command)"""
    reason: str | None = None
    weight: int = 1
    backup: bool = False
    pool: int = 0
    """idle data connections"""
    rtt_ms: float | None = None
    udp_carrier: str | None = None
    """how datagrams of visitors travel at this moment, ``datagram`` or ``stream``; None: there are none of UDP"""
    udp_reason: str | None = None
    """why they do not travel as datagrams, unless ``udp_carrier`` says so at an end"""
    visitors: int = 0
    lanes: int | None = None
    """visitors that share a data connection now; None unless both ends allow that (``mux``)"""
    since: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerView(_View):
    """One of several servers of a client."""

    address: str
    """as it is configured"""
    state: str
    """that of its link; without one ``connecting``, or ``cooldown`` until the next attempt"""
    reason: str | None = None
    """why it is not up"""
    link: str | None = None
    """id of the present link"""
    weight: int = 1
    """its share of the visitors that the client accepts"""
    backup: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimitsView(_View):
    """The limits of the rate at this end, each for both directions, and how long they have held visitors back."""

    rate_bps: int | None = None
    """bits per second of all visitors together; None: no limit"""
    visitor_rate_bps: int | None = None
    """bits per second of each visitor; None: no limit"""
    paused_in_s: float = 0.0
    """seconds so far in which bytes from at least one visitor waited"""
    paused_out_s: float = 0.0
    """seconds so far in which bytes to at least one visitor waited"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A tunnel at one moment. An unknown value is None, never an estimate. Timestamps are RFC 3339."""

    name: str
    role: str
    direction: str | None = None
    state: State
    reason: str | None = None
    since: str
    tunnel_addr: str
    target_addr: str
    """where visitors are accepted, or what is dialled for them: several targets with commas between them"""
    targets: tuple[TargetView, ...] = ()
    """at the end that dials"""
    data_addr: str | None = None
    peer: str | None = None
    link: str | None = None
    """public random id of the link, the same at both ends"""
    auth: str
    service: str = ""
    proto: str = "tcp"
    """what visitors and target speak"""
    key_name: str | None = None
    """which of a server's named keys the present client has; None without a link, or without names"""
    published_by: str | None = None
    """the named key whose client has published the tunnel; None: the tunnel is one of the file"""
    data_tls: int
    carrier: str | None = None
    """how data connections travel; None without a link"""
    tags: tuple[str, ...] = ()
    enabled: bool = True
    """False: the file says ``enabled: false``, so the tunnel runs on command only"""
    worker: int = 0
    clients: int | None = None
    """of a server: how many clients may have the tunnel at once; None at a client, or if clients publish services"""
    links: tuple[LinkView, ...] = ()
    """the present links, in the order of their start"""
    servers: tuple[ServerView, ...] = ()
    """at a client with several servers: all of them, in the order of the URL"""
    pool: PoolView
    signals: SignalsView
    connections: ConnectionsView
    bytes: BytesView
    rates: TrafficRatesView | None = None
    """None until the counters have been read twice; an engine does not know its own"""
    refused: RefusedView
    counters: CountersView = CountersView()
    rtt_ms: float | None = None
    cooldown: CooldownView
    rate_limits: RateLimitsView | None = None
    """None without a limit at this end"""
    quota: QuotaView | None = None
    """None without a quota"""
    restarts: int = 0
    last_error: str | None = None
    last_error_at: str | None = None

    @property
    def traffic(self) -> TrafficReading:
        """What an engine's ``read_traffic`` returned when this was read."""
        return TrafficReading(self.bytes.from_visitors, self.bytes.to_visitors, self.connections.active)

    def as_json(self, names: Iterable[str] | None = None) -> dict[str, Any]:
        """Return the object that ``ps --json`` shows for this tunnel, or only the named fields of it."""
        if names is not None:
            return {name: encode_value(_FIELD_READERS[name](self)) for name in names}
        every_name, read = _READERS[Snapshot]
        return dict(zip(every_name, map(encode_value, read(self)), strict=True))


_PLAIN: Final = frozenset({int, float, str, bool, type(None)})  # types of which a value is its own JSON value


def encode_value(value: object) -> object:
    """Return the JSON value of a field."""
    if type(value) in _PLAIN:  # most fields
        return value
    if isinstance(value, _View):
        return value.as_json()
    if isinstance(value, enum.Enum):
        return value.value
    return [encode_value(each) for each in value] if isinstance(value, tuple) else value


_VIEWS: Final = (
    PoolView,
    SignalsView,
    ConnectionsView,
    BytesView,
    TrafficRatesView,
    RefusedView,
    CountersView,
    CooldownView,
    TargetChecksView,
    TargetView,
    RateLimitsView,
    QuotaView,
    LinkView,
    ServerView,
    Snapshot,
)
_READERS: Final[dict[type, tuple[tuple[str, ...], attrgetter[tuple[Any, ...]]]]] = {
    view: (
        tuple(part.metadata.get("json", part.name) for part in fields(view)),
        attrgetter(*(part.name for part in fields(view))),
    )
    for view in _VIEWS
}
"""The JSON names of each class, and what reads all its fields at once."""
_FIELD_READERS: Final = {part.name: attrgetter(part.name) for part in fields(Snapshot)}
