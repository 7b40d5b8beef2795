"""What was done to the tunnels and when, and which failures of visitors that explains. Pure but for the clock."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Visit:
    """A visit that failed. Moments in seconds of the monotonic clock."""

    tunnel: str
    manner: str
    began: float
    established: float | None
    """when its first byte came back, if one did"""
    ended: float
    why: str


@dataclass(slots=True)
class Window:
    """A moment in which visits of some tunnels may fail."""

    what: str
    tunnels: frozenset[str]
    cuts: bool
    """whether those that were established before it may be cut; else it may only refuse those that come meanwhile"""
    refuses: bool
    begin: float
    end: float = field(default=float("inf"))

    def explains(self, visit: Visit) -> bool:
        """Whether this visit may have failed because of it."""
        if visit.tunnel not in self.tunnels or visit.ended < self.begin or visit.began > self.end:
            return False
        was_there = visit.established is not None and visit.established < self.begin
        return self.cuts if was_there else self.refuses


class Chronicle:
    """The windows and troubles of a run; written by several threads."""

    def __init__(self) -> None:
        self.windows: list[Window] = []
        self.troubles: list[tuple[str, float, float]] = []
        """each trouble with its beginning and the moment when all was well again"""
        self.findings: list[str] = []
        """what is wrong beside visits"""
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def window(
        self, what: str, tunnels: Iterable[str], *, cuts: bool, refuses: bool, begin: float | None = None
    ) -> Iterator[None]:
        """Open from ``begin``, or now, until the block is left."""
        window = Window(what, frozenset(tunnels), cuts, refuses, time.monotonic() if begin is None else begin)
        with self._lock:
            self.windows.append(window)
        try:
            yield
        finally:
            window.end = time.monotonic()

    def took(self, what: str, began: float) -> None:
        """A trouble is over."""
        with self._lock:
            self.troubles.append((what, began, time.monotonic()))

    def found(self, what: str) -> None:
        """Something is wrong."""
        with self._lock:
            self.findings.append(what)

    def unexplained(self, failed: Iterable[Visit]) -> list[Visit]:
        """Those that no window explains."""
        return [visit for visit in failed if not any(window.explains(visit) for window in self.windows)]

    def spared(self, tunnels: Iterable[str], begin: float, end: float) -> float:
        """The share of that time in which no window was open, over all of these tunnels."""
        names = list(tunnels)
        covered = sum(_length(self._spans(name, begin, end)) for name in names)
        return 1 - covered / (len(names) * (end - begin))

    def _spans(self, tunnel: str, begin: float, end: float) -> list[tuple[float, float]]:
        return sorted(
            (max(begin, window.begin), min(end, window.end)) for window in self.windows if tunnel in window.tunnels
        )


def _length(spans: list[tuple[float, float]]) -> float:
    """How much is covered by spans that may overlap, given in the order of their beginnings."""
    total, reached = 0.0, float("-inf")
    for begin, end in spans:
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
