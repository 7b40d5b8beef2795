"""What can be seen of a tunnel: the facts, cheap to gather and to compare, and the snapshot made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tunnel.model.state import (
    BytesView,
    ConnectionsView,
    CooldownView,
    PoolView,
    RefusedView,
    SignalsView,
    Snapshot,
    timestamp,
)

if TYPE_CHECKING:
    from tunnel.model.limits import Limits
    from tunnel.model.spec import Direction, TunnelSpec
    from tunnel.model.state import Event, Standing


class Facts(NamedTuple):
    """A tunnel at one moment, as its parts have it. Hundreds are gathered several times a second, most as before."""

    spec: TunnelSpec
    standing: Standing
    direction: Direction | None
    tunnel_addr: str | None
    target_addr: str | None
    data_addr: str | None
    peer: str | None
    link: str | None
    data_tls: bool
    limits: Limits
    idle: int
    capacity: int
    dialing: int
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
    attempt: int
    remaining: float
    error: Event | None


def snapshot_of(name: str, facts: Facts) -> Snapshot:
    """The same for others to see. Addresses that are not known yet are those of the spec."""
    spec, standing, limits, error = facts.spec, facts.standing, facts.limits, facts.error
    return Snapshot(
        name=name,
        role=spec.role.value,
        direction=facts.direction.value if facts.direction else None,
        state=standing.state,
        reason=standing.reason,
        since=timestamp(standing.since),
        tunnel_addr=facts.tunnel_addr or str(spec.tunnel),
        target_addr=facts.target_addr or str(spec.target),
        data_addr=facts.data_addr,
        peer=facts.peer,
        link=facts.link,
        auth=spec.auth,
        data_tls=int(spec.data_tls) or int(facts.data_tls),
        pool=PoolView(
            idle=facts.idle,
            capacity=max(facts.capacity, limits.pool_min),
            dialing=facts.dialing,
            min=limits.pool_min,
            max=limits.pool_max,
        ),
        signals=SignalsView(queued=facts.queued, limit=spec.settings.signal_queue_limit, total=facts.signals),
        connections=ConnectionsView(active=facts.active, total=facts.total, failed=facts.failed, limit=limits.visitors),
        bytes=BytesView(from_visitors=facts.from_visitors, to_visitors=facts.to_visitors),
        refused=RefusedView(handshakes=facts.refused_handshakes, prefaces=facts.refused_prefaces, silent=facts.silent),
        rtt_ms=None if facts.rtt is None else round(facts.rtt * 1000, 3),
        cooldown=CooldownView(remaining_s=round(facts.remaining, 3), attempt=facts.attempt),
        last_error=error.text if error else None,
        last_error_at=timestamp(error.ts) if error else None,
    )
