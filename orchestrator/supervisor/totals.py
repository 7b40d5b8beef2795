"""Counters of a tunnel over all its engines: a restart or a reload must not take back what was counted."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from tunnel.model.snapshot import BytesView, CountersView, RefusedView

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tunnel.model.snapshot import Snapshot


class Totals(NamedTuple):
    """Everything of a snapshot that only grows."""

    from_visitors: int = 0
    to_visitors: int = 0
    visitors: int = 0
    failed: int = 0
    signals: int = 0
    refused: RefusedView = RefusedView()
    counters: CountersView = CountersView()

    def plus(self, other: Totals) -> Totals:
        """Return the totals of both, field by field."""
        sums = map(sum, zip(self[:-2], other[:-2], strict=True))
        return Totals._make([*sums, self.refused.plus(other.refused), self.counters.plus(other.counters)])


NO_TOTALS: Final = Totals()


def read_totals(seen: Snapshot) -> Totals:
    """Return the counters of a snapshot."""
    return Totals(
        seen.bytes.from_visitors,
        seen.bytes.to_visitors,
        seen.connections.total,
        seen.connections.failed,
        seen.signals.total,
        seen.refused,
        seen.counters,
    )


def replace_totals(seen: Snapshot, totals: Totals) -> Snapshot:
    """Return the snapshot with these counters."""
    return replace(
        seen,
        bytes=BytesView(from_visitors=totals.from_visitors, to_visitors=totals.to_visitors),
        connections=replace(seen.connections, total=totals.visitors, failed=totals.failed),
        signals=replace(seen.signals, total=totals.signals),
        refused=totals.refused,
        counters=totals.counters,
    )


def add_totals(seen: Snapshot, totals: Totals) -> Snapshot:
    """Return the snapshot with its counters raised."""
    return replace_totals(seen, read_totals(seen).plus(totals)) if totals != NO_TOTALS else seen


def count_visitors(snapshots: Iterable[Snapshot]) -> int:
    """Return how many visitors are connected; one whose link has both ends among the tunnels is counted once."""
    seen = list(snapshots)
    ingress_links = {one.link for one in seen if one.link and _is_ingress(one)}
    ingress_links.update(link.id for one in seen if _is_ingress(one) for link in one.links)
    return sum(one.connections.active for one in seen if _is_ingress(one) or one.link not in ingress_links)


def _is_ingress(seen: Snapshot) -> bool:
    return (seen.role == "server") == (seen.direction == "reverse")
