"""Reads the tunnels into the store, a few at a time, the busy ones first.

Hundreds of tunnels are read several times a second, and visitors must not wait meanwhile. A scan is spread over turns
of the event loop that lie some milliseconds apart, so that hardly any visitor meets two of them. It reads new and busy
tunnels, those that were marked because of an event or of a first visitor, and a share of the others. Reading all of
them would cost visitors more than the time it takes: it empties the processor's caches.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Hashable, Sequence

    from orchestrator.status.store import StatusStore
    from tunnel.model.snapshot import Snapshot

Key = TypeVar("Key", bound="Hashable")
Facts = TypeVar("Facts")

SCAN_BATCH_SIZE: Final = 12
"""Tunnels that are read without a pause: up to a fifth of a millisecond, where processor caches are cold."""

QUIET_ROUND_S: Final = 4.0
"""Seconds in which every tunnel is read at least once, however quiet it is, while anything asks for scans."""

MIN_QUIET: Final = 32
"""Quiet tunnels that each scan reads at least."""

_MAX_PAUSE_S: Final = 0.006  # visitors that are served at once are gone by then


class ScanSchedule(Generic[Key]):
    """Which keys a scan reads."""

    def __init__(self, round_s: float = QUIET_ROUND_S, min_quiet: int = MIN_QUIET) -> None:
        self._round_s = round_s
        self._min_quiet = min_quiet
        self._marked: Final[set[Key]] = set()
        self._next_quiet = 0
        self.mark: Final[Callable[[Key], None]] = self._marked.add  # a call less for each visitor
        """Makes the next scan read a key."""

    def due(self, keys: Sequence[Key], known: Container[Key], elapsed_s: float) -> list[Key]:
        """The keys to read now, in their order: new and marked ones, and the share of ``elapsed_s`` of the others."""
        marked = frozenset(self._marked)
        self._marked.clear()
        count = max(self._min_quiet, math.ceil(len(keys) * min(1.0, elapsed_s / self._round_s)))
        if count >= len(keys):
            return list(keys)
        start = self._next_quiet % len(keys)
        self._next_quiet = (start + count) % len(keys)
        quiet = {*keys[start : start + count], *keys[: max(0, start + count - len(keys))]}
        return [key for key in keys if key in quiet or key in marked or key not in known]


class TunnelSource(Protocol[Facts]):
    """Where a scanner finds the tunnels."""

    def names(self) -> Collection[str]:
        """All tunnels, in order."""

    def facts(self, name: str) -> Facts | None:
        """What the tunnel's snapshot would be made from, cheap to compare; None where there is no such tunnel."""

    def build_snapshot(self, name: str, facts: Facts) -> Snapshot:
        """Return the tunnel as it was when these facts were read, in this turn of the loop."""


class StatusScanner(Generic[Facts]):
    """Keeps a store up to date while readers ask for scans; costs nothing otherwise."""

    def __init__(self, store: StatusStore[str, Snapshot], source: TunnelSource[Facts]) -> None:
        self.schedule = ScanSchedule[str]()
        self._store = store
        self._source = source
        self._turn = asyncio.Lock()
        self._waiting: asyncio.Task[None] | None = None
        self._scanned_at = -math.inf

    async def scan(self, within_s: float = 0.0) -> None:
        """Read what may have changed since the last scan; the scan may take ``within_s`` seconds.

        Callers that come while a scan runs share the next one.
        """
        if self._waiting is None:
            self._waiting = asyncio.create_task(self._scan_due(within_s))
        await asyncio.shield(self._waiting)

    async def scan_all(self, within_s: float = 0.0) -> None:
        """Read every tunnel, also the quiet ones."""
        async with self._turn:
            self._scanned_at = time.monotonic()
            await self._read(list(self._source.names()), within_s)

    async def _scan_due(self, within_s: float) -> None:
        async with self._turn:
            self._waiting = None
            now = time.monotonic()
            elapsed_s, self._scanned_at = now - self._scanned_at, now
            names = list(self._source.names())
            await self._read(self.schedule.due(names, self._store, elapsed_s), within_s)

    async def _read(self, names: Sequence[str], within_s: float) -> None:
        pause_s = min(_MAX_PAUSE_S, within_s * SCAN_BATCH_SIZE / max(1, len(names)))
        for number, name in enumerate(names, 1):
            self._observe(name)
            if number % SCAN_BATCH_SIZE == 0:
                await asyncio.sleep(pause_s)
        self._store.retain(self._source.names())

    def _observe(self, name: str) -> None:
        facts = self._source.facts(name)
        if facts is None:  # it went while the scan was under way
            return
        is_changed = self._store.observe(name, facts, lambda: self._source.build_snapshot(name, facts))
        seen = self._store.get(name)
        if is_changed or (seen is not None and (seen.connections.active or seen.signals.queued)):
            self.schedule.mark(name)
