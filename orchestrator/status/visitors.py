"""Visitors as JSON objects, and their rates from two lists."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from tunnel.model.times import format_timestamp

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.status.json_types import TrafficRatesJson, VisitorJson
    from tunnel.model.visitors import VisitorView

_Key = tuple[str, str | None, str | None]
_MIN_SPAN_S: Final = 0.05  # a shorter one says nothing about a rate


def encode_visitor(tunnel: str, seen: VisitorView, now: float) -> VisitorJson:
    """Return a visitor of a tunnel as the API shows it; ``now`` is the wall clock at which it was seen."""
    return {
        "id": seen.id,
        "tunnel": tunnel,
        "address": seen.address,
        "proto": seen.proto.value,
        "since": None if seen.since is None else format_timestamp(seen.since),
        "age_s": None if seen.since is None else round(max(0.0, now - seen.since), 3),
        "bytes": {"in": seen.from_visitor, "out": seen.to_visitor},
        "rates": None,
        "target": seen.target,
        "link": seen.link,
        "state": seen.state,
        "paused_s": None if seen.paused_s is None else round(seen.paused_s, 3),
    }


class RateMeter:
    """Fills in the rates of visitors from the list before, slice by slice. One for each reader."""

    def __init__(self) -> None:
        self._before: dict[_Key, tuple[int, int, float]] = {}
        self._present: dict[_Key, tuple[int, int, float]] = {}

    def start_list(self) -> None:
        """Start the next list: rates are computed from the one that ends here."""
        self._before, self._present = self._present, {}

    def measure(self, visitors: Iterable[VisitorJson], now: float | None = None) -> None:
        """Set the rates of those that were in the list before; ``now`` is the monotonic clock."""
        now = time.monotonic() if now is None else now
        for visitor in visitors:
            key = (visitor["tunnel"], visitor["id"], visitor["address"])
            present = visitor["bytes"]["in"], visitor["bytes"]["out"], now
            self._present[key] = present
            visitor["rates"] = _rates(self._before.get(key), present)


def _rates(before: tuple[int, int, float] | None, present: tuple[int, int, float]) -> TrafficRatesJson | None:
    if before is None or (span_s := present[2] - before[2]) < _MIN_SPAN_S:
        return None
    received, sent = (max(0, round(8 * (new - old) / span_s)) for old, new in zip(before[:2], present[:2], strict=True))
    return {"in_bps": received, "out_bps": sent}
