"""From the values that an engine reads to the snapshot that observers see."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from tunnel.model.links import LinkState
from tunnel.model.snapshot import (
    BytesView,
    ConnectionsView,
    CooldownView,
    LinkView,
    PoolView,
    ServerView,
    SignalsView,
    Snapshot,
)
from tunnel.model.spec import Carrier
from tunnel.model.times import format_timestamp

if TYPE_CHECKING:
    from tunnel.model.events import Event
    from tunnel.model.limits import Limits
    from tunnel.model.snapshot import CountersView, RateLimitsView, RefusedView, TargetView
    from tunnel.model.spec import Direction, TunnelSpec, UdpCarrier
    from tunnel.model.state import StateRecord


class LinkFacts(NamedTuple):
    """One link at one moment, as the engine reads it."""

    id: str
    client: str | None
    peer: str
    target_error: str | None
    is_usable: bool
    is_drained: bool
    weight: int
    backup: bool
    pool: int
    rtt: float | None
    visitors: int
    since: float
    udp_carrier: UdpCarrier | None = None
    udp_reason: str | None = None
    lanes: int | None = None


class ServerFacts(NamedTuple):
    """One of several servers of a client at one moment, as the engine reads it."""

    address: str
    link: str | None
    state: LinkState
    """what happens while there is no link"""
    reason: str | None
    weight: int = 1
    backup: bool = False


class SnapshotInput(NamedTuple):
    """A tunnel at one moment, as the engine reads it: cheap to collect and to compare.

    Hundreds are collected several times a second, and most equal the one before.
    """

    spec: TunnelSpec
    record: StateRecord
    direction: Direction | None
    tunnel_addr: str | None
    target_addr: str | None
    targets: tuple[TargetView, ...]
    data_addr: str | None
    peer: str | None
    link: str | None
    key_name: str | None
    carrier: Carrier | None
    limits: Limits
    idle: int
    capacity: int
    links: tuple[LinkFacts, ...]
    servers: tuple[ServerFacts, ...]
    dialing: int | None
    queued: int
    rtt: float | None
    signals: int
    active: int
    total: int
    failed: int
    from_visitors: int
    to_visitors: int
    refused_handshakes: int
    refused_prefaces: int
    silent: int
    refused_visitors: RefusedView
    counters: CountersView
    rate_limits: RateLimitsView | None
    attempt: int
    remaining: float
    error: Event | None


def _build_snapshot(name: str, values: SnapshotInput) -> Snapshot:
    """Build a snapshot. Addresses that are not known yet are those of the spec."""
    spec, record, limits, error = values.spec, values.record, values.limits, values.error
    links = tuple(map(_build_link, values.links))
    return Snapshot(
        name=name,
        role=spec.role.value,
        direction=values.direction.value if values.direction else None,
        state=record.state,
        reason=record.reason,
        since=format_timestamp(record.since),
        tunnel_addr=values.tunnel_addr or spec.tunnel_text,
        target_addr=values.target_addr or spec.target_text,
        targets=values.targets,
        data_addr=values.data_addr,
        peer=values.peer,
        link=values.link,
        auth=spec.auth,
        service=spec.service,
        proto=spec.proto.value,
        key_name=values.key_name,
        published_by=spec.published_by,
        data_tls=int(spec.data_tls) or int(values.carrier not in {None, Carrier.TCP}),
        carrier=values.carrier.value if values.carrier else None,
        clients=spec.max_links,
        links=links,
        servers=tuple(_build_server(server, links) for server in values.servers),
        pool=PoolView(
            idle=values.idle,
            capacity=max(values.capacity, limits.pool_min),
            dialing=values.dialing,
            min=limits.pool_min,
            max=limits.pool_max,
        ),
        signals=SignalsView(queued=values.queued, limit=spec.settings.signal_queue_limit, total=values.signals),
        connections=ConnectionsView(
            active=values.active, total=values.total, failed=values.failed, limit=limits.visitors
        ),
        bytes=BytesView(from_visitors=values.from_visitors, to_visitors=values.to_visitors),
        refused=_add_attempts(
            values.refused_visitors, values.refused_handshakes, values.refused_prefaces, values.silent
        ),
        counters=values.counters,
        rate_limits=values.rate_limits,
        rtt_ms=None if values.rtt is None else round(values.rtt * 1000, 3),
        cooldown=CooldownView(remaining_s=round(values.remaining, 3), attempt=values.attempt),
        last_error=error.text if error else None,
        last_error_at=format_timestamp(error.ts) if error else None,
    )


@lru_cache(maxsize=256)
def _add_attempts(visitors: RefusedView, handshakes: int, prefaces: int, silent: int) -> RefusedView:
    """Return the refused visitors with the refused connection attempts; rare changes, so the object is shared."""
    return replace(visitors, handshakes=handshakes, prefaces=prefaces, silent=silent)


def _build_link(link: LinkFacts) -> LinkView:
    if link.is_drained:
        state = LinkState.DRAINING if link.visitors else LinkState.DRAINED
    else:
        state = LinkState.COOLDOWN if link.target_error else LinkState.UP if link.is_usable else LinkState.CONNECTING
    return LinkView(
        id=link.id,
        client=link.client,
        peer=link.peer,
        state=state.value,
        reason=link.target_error,
        weight=link.weight,
        backup=link.backup,
        pool=link.pool,
        rtt_ms=None if link.rtt is None else round(link.rtt * 1000, 3),
        udp_carrier=link.udp_carrier.value if link.udp_carrier is not None else None,
        udp_reason=link.udp_reason,
        visitors=link.visitors,
        lanes=link.lanes,
        since=format_timestamp(link.since),
    )


def _build_server(server: ServerFacts, links: tuple[LinkView, ...]) -> ServerView:
    """Build the view of a server, which has the state of its link."""
    ident: str | None
    link = next((link for link in links if link.id == server.link), None)
    if link is not None:
        state, reason, ident = link.state, link.reason, link.id
    else:
        state, reason, ident = server.state.value, server.reason, None
    return ServerView(
        address=server.address, state=state, reason=reason, link=ident, weight=server.weight, backup=server.backup
    )


class SnapshotBuilder:
    """Builds the snapshots of one tunnel.

    It returns the same object while nothing changes, so that readers can compare snapshots with ``is``.
    """

    __slots__ = ("_last", "_name")

    def __init__(self, name: str) -> None:
        self._name = name
        self._last: tuple[SnapshotInput, Snapshot] | None = None

    def build(self, values: SnapshotInput) -> Snapshot:
        """Return the snapshot of these values."""
        if self._last is None or values != self._last[0]:
            self._last = (values, _build_snapshot(self._name, values))
        return self._last[1]
