"""The faults of a run with their times, and which failures of visits they explain. Without I/O except the clock."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class FailedVisit:
    """A visit that failed. Times are seconds of the monotonic clock."""

    tunnel: str
    kind: str
    began: float
    established: float | None
    """time of the first byte from the target, or None"""
    ended: float
    reason: str


@dataclass(slots=True)
class FaultWindow:
    """A period in which visits of some tunnels may fail."""

    what: str
    tunnels: frozenset[str]
    cuts: bool
    """whether visits that were established before the period may be closed"""
    refuses: bool
    """whether visits that start in the period, or were not served before, may be refused"""
    begin: float
    end: float = field(default=float("inf"))

    def explains(self, visit: FailedVisit) -> bool:
        """Whether the visit may have failed because of this fault."""
        if not self.overlaps(visit.tunnel, visit.began, visit.ended):
            return False
        was_established = visit.established is not None and visit.established < self.begin
        return self.cuts if was_established else self.refuses

    def overlaps(self, tunnel: str, begin: float, end: float) -> bool:
        """Whether a tunnel may have failed at some time from ``begin`` to ``end``."""
        return tunnel in self.tunnels and begin <= self.end and end >= self.begin


class IncidentLog:
    """The fault windows, faults and findings of a run. Thread-safe."""

    def __init__(self) -> None:
        self.windows: list[FaultWindow] = []
        self.faults: list[tuple[str, float, float]] = []
        """each fault with its start and the time when all tunnels served again"""
        self.findings: list[str] = []
        """defects other than failed visits"""
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def open_window(
        self, what: str, tunnels: Iterable[str], *, cuts: bool, refuses: bool, begin: float | None = None
    ) -> Iterator[None]:
        """Expect failures from ``begin``, by default now, until the end of the block."""
        window = FaultWindow(what, frozenset(tunnels), cuts, refuses, time.monotonic() if begin is None else begin)
        with self._lock:
            self.windows.append(window)
        try:
            yield
        finally:
            window.end = time.monotonic()

    def record_fault(self, what: str, began: float) -> None:
        """Record that a fault is over."""
        with self._lock:
            self.faults.append((what, began, time.monotonic()))

    def record_finding(self, what: str) -> None:
        """Record a defect other than a failed visit."""
        with self._lock:
            self.findings.append(what)

    def unexplained(self, failed: Iterable[FailedVisit]) -> list[FailedVisit]:
        """Return the failed visits that no window explains."""
        return [visit for visit in failed if not any(window.explains(visit) for window in self.windows)]

    def fault_free_share(self, tunnels: Iterable[str], begin: float, end: float) -> float:
        """Return the share of the time from ``begin`` to ``end`` without an open window, averaged over the tunnels."""
        names = list(tunnels)
        covered = sum(_covered_length(self._window_spans(name, begin, end)) for name in names)
        return 1 - covered / (len(names) * (end - begin))

    def _window_spans(self, tunnel: str, begin: float, end: float) -> list[tuple[float, float]]:
        return sorted(
            (max(begin, window.begin), min(end, window.end)) for window in self.windows if tunnel in window.tunnels
        )


def _covered_length(spans: list[tuple[float, float]]) -> float:
    """Return the length covered by spans that may overlap, sorted by their start."""
    total, reached = 0.0, float("-inf")
    for begin, end in spans:
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
