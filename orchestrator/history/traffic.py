"""Traffic as numbers: what is counted of a tunnel, and what was added since the last reading. Pure."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from tunnel.model.snapshot import REFUSED_VISITORS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from orchestrator.status.json_types import TrafficCountsJson
    from tunnel.model.snapshot import Snapshot

HOUR_S: Final = 3600

_read_refused: Final = attrgetter(*REFUSED_VISITORS)

RowKey = tuple[str, int]
"""The name of a tunnel and the hour, in hours since the epoch (UTC)."""


class Traffic(NamedTuple):
    """What a tunnel carried in some time."""

    from_visitors: int = 0
    """bytes"""
    to_visitors: int = 0
    """bytes"""
    visitors: int = 0
    failed: int = 0
    """visitors that could not be served"""
    refused: int = 0
    """visitors that were not admitted"""

    @property
    def bytes(self) -> int:
        """Bytes of both directions."""
        return self.from_visitors + self.to_visitors

    def plus(self, other: Traffic) -> Traffic:
        """Return the sum of both, field by field."""
        return Traffic._make(map(sum, zip(self, other, strict=True)))

    def as_json(self) -> TrafficCountsJson:
        """Return the counts as the local API shows them."""
        return {
            "in": self.from_visitors,
            "out": self.to_visitors,
            "visitors": self.visitors,
            "failed": self.failed,
            "refused": self.refused,
        }


NO_TRAFFIC: Final = Traffic()


class HostTraffic(NamedTuple):
    """The bytes of all tunnels of a host together, in both directions."""

    today: int
    """since midnight, in the host's time zone"""
    month: int
    """since the first of the month"""


def read_traffic(seen: Snapshot) -> Traffic:
    """Return the counters of a snapshot that the history records."""
    refused = sum(count for count in _read_refused(seen.refused) if count is not None)  # unknown at an egress
    sums = seen.connections
    return Traffic(seen.bytes.from_visitors, seen.bytes.to_visitors, sums.total, sums.failed, refused)


def sum_traffic(parts: Iterable[Traffic]) -> Traffic:
    """Return the sum of all parts."""
    return Traffic._make(map(sum, zip(NO_TRAFFIC, *parts, strict=True)))


def hour_of(moment: float) -> int:
    """Return the hour of a time in seconds since the epoch."""
    return int(moment // HOUR_S)


class Baselines:
    """The counters of each tunnel as they were last read.

    The supervisor adds up the engines of a tunnel, so its counters only grow while it has that name. A lower reading
    is a temporary gap, such as an engine that cannot be read; it must not count again what follows it.
    """

    def __init__(self) -> None:
        self._highest: dict[str, Traffic] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._highest

    def advance(self, name: str, counters: Traffic) -> Traffic:
        """Return what was added since the last reading, and remember this one."""
        before = self._highest.get(name, NO_TRAFFIC)
        if counters == before:
            self._highest.setdefault(name, counters)
            return NO_TRAFFIC
        highest = Traffic._make(map(max, zip(before, counters, strict=True)))
        self._highest[name] = highest
        return Traffic._make(now - then for now, then in zip(highest, before, strict=True))

    def forget(self, name: str) -> None:
        """Start from zero if a tunnel of that name is added again."""
        self._highest.pop(name, None)

    def retain(self, names: Collection[str]) -> None:
        """Forget every tunnel but these."""
        for name in [name for name in self._highest if name not in names]:
            del self._highest[name]


class PendingRows:
    """What was counted and is not in the file yet, by tunnel and hour; bounded for the case that the file fails."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._rows: dict[RowKey, Traffic] = {}
        self.lost = 0
        """rows that were dropped, the oldest first, because there was no room"""

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> Mapping[RowKey, Traffic]:
        """The rows as they are now."""
        return self._rows

    def add(self, key: RowKey, counted: Traffic) -> None:
        """Add traffic to the row of a tunnel and an hour; with too many rows the oldest is dropped."""
        before = self._rows.get(key)
        self._rows[key] = counted if before is None else before.plus(counted)
        if len(self._rows) > self._max_rows:
            del self._rows[next(iter(self._rows))]
            self.lost += 1

    def take_all(self) -> dict[RowKey, Traffic]:
        """Remove and return all rows."""
        rows, self._rows = self._rows, {}
        return rows

    def put_back(self, rows: Mapping[RowKey, Traffic]) -> None:
        """Keep rows that could not be written; they are older than those that came meanwhile."""
        newer, self._rows = self._rows, {}
        for source in (rows, newer):
            for key, counted in source.items():
                self.add(key, counted)
