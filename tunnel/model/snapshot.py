"""The snapshot of a tunnel: what ``ps``, the API, the broker and the dashboard see of it.

Snapshots are immutable and can be pickled, because they cross process boundaries (worker, local API, broker).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from tunnel.model.state import State
from tunnel.model.times import format_timestamp

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tunnel.model.events import Event
    from tunnel.model.limits import Limits
    from tunnel.model.spec import Direction, TunnelSpec
    from tunnel.model.state import StateRecord


class _View:
    """A group of values of a snapshot."""

    __slots__: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return this part of the object that ``ps --json`` shows."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolView(_View):
    """The pool of data connections, in numbers."""

    idle: int = 0
    capacity: int = 0
    """idle data connections wanted at the moment"""
    dialing: int = 0
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

    def as_json(self) -> dict[str, Any]:
        """Return this part of the object that ``ps --json`` shows."""
        return {"in": self.from_visitors, "out": self.to_visitors}


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedView(_View):
    """Connection attempts that were refused since the start."""

    handshakes: int = 0
    """control channels with a wrong proof or an invalid handshake"""
    prefaces: int = 0
    """data connections with a forged, replayed or late preface"""
    silent: int = 0
    """connections that sent nothing before the deadline, or were closed to make room for others"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CooldownView(_View):
    """The wait before the next attempt."""

    remaining_s: float = 0.0
    attempt: int = 0


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
    data_addr: str | None = None
    peer: str | None = None
    link: str | None = None
    """public random id of the link, the same at both ends"""
    auth: str
    data_tls: int
    tags: tuple[str, ...] = ()
    worker: int = 0
    pool: PoolView
    signals: SignalsView
    connections: ConnectionsView
    bytes: BytesView
    refused: RefusedView
    rtt_ms: float | None = None
    cooldown: CooldownView
    restarts: int = 0
    last_error: str | None = None
    last_error_at: str | None = None

    def as_json(self, names: Iterable[str] | None = None) -> dict[str, Any]:
        """Return the object that ``ps --json`` shows for this tunnel, or only the named fields of it."""
        return {name: _plain(getattr(self, name)) for name in names or self.__slots__}


def _plain(value: object) -> object:
    if isinstance(value, _View):
        return value.as_json()
    if isinstance(value, State):
        return value.value
    return list(value) if isinstance(value, tuple) else value


class Facts(NamedTuple):
    """A tunnel at one moment, as the engine reads it: cheap to collect and to compare.

    Hundreds are collected several times a second, and most equal the one before.
    """

    spec: TunnelSpec
    standing: StateRecord
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
    """Build the snapshot of these facts. Addresses that are not known yet are those of the spec."""
    spec, standing, limits, error = facts.spec, facts.standing, facts.limits, facts.error
    return Snapshot(
        name=name,
        role=spec.role.value,
        direction=facts.direction.value if facts.direction else None,
        state=standing.state,
        reason=standing.reason,
        since=format_timestamp(standing.since),
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
        last_error_at=format_timestamp(error.ts) if error else None,
    )
