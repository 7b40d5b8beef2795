"""Datagrams that were lost, and what explains that: a fault, or a tunnel that has counted as many. Without I/O."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.soak.incident_log import FaultWindow

_COUNTED_WITHIN_S: Final = 6.0
"""Seconds after which the status has what was dropped: quiet tunnels are scanned every few seconds."""


@dataclass(slots=True)
class DatagramLoss:
    """Datagrams of one tunnel without an answer, or dropped by one end. Times are seconds of the monotonic clock."""

    tunnel: str
    count: int
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class LossFigures:
    """How many datagrams were lost, by what explains it."""

    in_faults: int = 0
    counted: int = 0
    unexplained: tuple[DatagramLoss, ...] = ()


def explain_losses(
    losses: Iterable[DatagramLoss], windows: Iterable[FaultWindow], drops: Iterable[DatagramLoss]
) -> LossFigures:
    """Find an explanation for each loss: a fault window of that time, or datagrams that an end has counted then."""
    windows = list(windows)
    left: dict[str, list[DatagramLoss]] = defaultdict(list)
    for drop in drops:
        left[drop.tunnel].append(DatagramLoss(drop.tunnel, drop.count, drop.began, drop.ended))
    in_faults = counted = 0
    unexplained = []
    for loss in sorted(losses, key=lambda each: each.began):
        if any(window.overlaps(loss.tunnel, loss.began, loss.ended) for window in windows):
            in_faults += loss.count
            continue
        found = _take_drops(left[loss.tunnel], loss)
        counted += found
        if found < loss.count:
            unexplained.append(DatagramLoss(loss.tunnel, loss.count - found, loss.began, loss.ended))
    return LossFigures(in_faults, counted, tuple(unexplained))


def _take_drops(drops: list[DatagramLoss], loss: DatagramLoss) -> int:
    """Take from the drops of the time of a loss as many as it has; return how many there were."""
    missing = loss.count
    for drop in drops:
        if drop.ended >= loss.began and drop.began <= loss.ended + _COUNTED_WITHIN_S:
            taken = min(missing, drop.count)
            drop.count -= taken
            missing -= taken
    return loss.count - missing


class DropLog:
    """When the ends of tunnels have counted dropped datagrams, from their counters. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._before: dict[tuple[str, str], tuple[int, float]] = {}
        self._drops: list[DatagramLoss] = []

    def note(self, daemon: str, tunnels: Mapping[str, Mapping[str, Any]], at: float) -> None:
        """Note the counters of the tunnels of a daemon; a counter that is lower than before has begun again."""
        with self._lock:
            for name, tunnel in tunnels.items():
                now = int(tunnel["counters"].get("dropped_datagrams", 0))
                before, since = self._before.get((daemon, name), (0, at))
                self._before[daemon, name] = now, at
                if grown := now - before if now >= before else now:
                    self._drops.append(DatagramLoss(name.removesuffix("-second"), grown, since, at))

    def drops(self) -> list[DatagramLoss]:
        """Return what was noted."""
        with self._lock:
            return list(self._drops)
