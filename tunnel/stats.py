"""What a tunnel counts over its whole life, whatever becomes of its links."""

from __future__ import annotations

from dataclasses import dataclass, field

from tunnel.relay import Meter
from tunnel.state import BytesView, ConnectionsView, RefusedView


@dataclass(slots=True)
class Stats:
    """Counters of one tunnel; only ever grow, but for ``active``."""

    from_visitors: Meter = field(default_factory=Meter)
    to_visitors: Meter = field(default_factory=Meter)
    active: int = 0
    """visitors served just now"""
    total: int = 0
    """visitors for whom a data connection was launched"""
    failed: int = 0
    """visitors who were closed without having reached the target"""
    signals: int = 0
    refused_handshakes: int = 0
    refused_prefaces: int = 0
    silent: int = 0

    def connections(self, limit: int) -> ConnectionsView:
        """The visitors, of whom ``limit`` are served at once."""
        return ConnectionsView(active=self.active, total=self.total, failed=self.failed, limit=limit)

    def bytes(self) -> BytesView:
        """What was relayed."""
        return BytesView(from_visitors=self.from_visitors.total, to_visitors=self.to_visitors.total)

    def refused(self) -> RefusedView:
        """Who was not let in."""
        return RefusedView(handshakes=self.refused_handshakes, prefaces=self.refused_prefaces, silent=self.silent)
