"""Visitors of all kinds at every tunnel, and a record of the visits that failed."""

from __future__ import annotations

import collections
import itertools
import random
import threading
import time
from collections.abc import Callable
from typing import Final

from tests.soak.harness import SoakHarness, Tunnel
from tests.soak.incident_log import FailedVisit
from tests.soak.streams import CorruptError, CutError, VerifiedStream, VisitKind, visit, visit_long
from tests.support.peers import connect

VISIT_TIMEOUT_S: Final = 30.0
"""Seconds of silence after which a visit fails."""
MAX_RECORDED_FAILURES: Final = 200_000
"""Limit for failed visits that are recorded individually."""

_MAX_BULK_BYTES: Final = 12 << 20  # maximum bytes of a bulk stream
_BRIEF_KINDS: Final = (VisitKind.VISITOR_CLOSES, VisitKind.TARGET_CLOSES)
_UNUSUAL_KINDS: Final = (
    VisitKind.VISITOR_HALF_CLOSES,
    VisitKind.TARGET_HALF_CLOSES,
    VisitKind.VISITOR_RESETS,
    VisitKind.TARGET_RESETS,
)


class SoakLoad:
    """Visitor threads: per tunnel one for long visits, one for brief visits and one for unusual ends of streams."""

    def __init__(self, harness: SoakHarness, seed: int) -> None:
        self.failed: list[FailedVisit] = []
        self.served: collections.Counter[str] = collections.Counter()
        self.bytes_verified = 0
        """bytes of all verified streams, both directions"""
        self._harness = harness
        self._random = random.Random(seed)
        self._seeds = itertools.count(2)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads of visitors."""
        self._over.clear()
        tunnels = [tunnel for tunnel in self._harness.tunnels.values() if tunnel.has_tcp]
        work = [
            (turn, tunnel)
            for tunnel in tunnels
            for turn in (self._visit_long, self._visit_briefly, self._visit_unusually)
        ]
        self._threads = [
            threading.Thread(target=self._repeat, args=(turn, (tunnel,), random.Random(self._random.random())))
            for turn, tunnel in work
        ]
        bulk = random.Random(self._random.random())
        self._threads.append(threading.Thread(target=self._repeat, args=(self._visit_bulk, tuple(tunnels), bulk)))
        for thread in self._threads:
            thread.daemon = True
            thread.start()

    def stop(self) -> None:
        """Finish the current visits and start no more."""
        self._over.set()
        for thread in self._threads:
            thread.join(2 * VISIT_TIMEOUT_S)

    def burst(self, tunnel: Tunnel, count: int) -> None:
        """Run ``count`` visits at the same time."""
        threads = [
            threading.Thread(target=self.visit, args=(tunnel, VisitKind.TARGET_CLOSES, 100, 2_000), daemon=True)
            for _ in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * VISIT_TIMEOUT_S)

    def visit(self, tunnel: Tunnel, kind: VisitKind, up: int, down: int) -> bool:
        """Run one visit; return whether it succeeded."""
        seed = next(self._seeds)

        def run(stream: VerifiedStream) -> int:
            visit(stream, kind, seed, up, down, self._harness.target_reports, VISIT_TIMEOUT_S)
            return up + down

        return self._record_visit(tunnel, kind, run)

    def _repeat(
        self, turn: Callable[[Tunnel, random.Random], bool], tunnels: tuple[Tunnel, ...], rng: random.Random
    ) -> None:
        while not self._over.is_set():
            if not turn(rng.choice(tunnels), rng):
                self._over.wait(0.25)

    def _visit_briefly(self, tunnel: Tunnel, rng: random.Random) -> bool:
        self._over.wait(rng.uniform(0, 0.1))
        sizes = rng.choice(((10, 100), (500, 20_000), (8_000, 300)))
        return self.visit(tunnel, rng.choice(_BRIEF_KINDS), *sizes)

    def _visit_unusually(self, tunnel: Tunnel, rng: random.Random) -> bool:
        self._over.wait(rng.uniform(0, 0.4))
        kind = rng.choice(_UNUSUAL_KINDS)
        down = rng.randrange(
            1, 1_000 if kind is VisitKind.TARGET_RESETS else 300_000
        )  # a reset may overtake the data before it
        return self.visit(tunnel, kind, rng.randrange(1, 60_000 if kind is VisitKind.VISITOR_RESETS else 300_000), down)

    def _visit_bulk(self, tunnel: Tunnel, rng: random.Random) -> bool:
        self._over.wait(rng.uniform(0, 1))
        return self.visit(tunnel, VisitKind.BULK, rng.randrange(1, _MAX_BULK_BYTES), rng.randrange(1, _MAX_BULK_BYTES))

    def _visit_long(self, tunnel: Tunnel, rng: random.Random) -> bool:
        seed = next(self._seeds)
        bytes_verified = 0

        def sizes() -> tuple[int, int]:
            nonlocal bytes_verified
            up, down = rng.randrange(1, 5_000), rng.randrange(1, 20_000)
            bytes_verified += up + down
            return up, down

        def run(stream: VerifiedStream) -> int:
            visit_long(stream, seed, sizes, lambda: not self._over.wait(rng.uniform(0.02, 0.2)))
            return bytes_verified

        return self._record_visit(tunnel, VisitKind.LONG_LIVED, run)

    def _record_visit(self, tunnel: Tunnel, kind: VisitKind, run: Callable[[VerifiedStream], int]) -> bool:
        began = time.monotonic()
        stream: VerifiedStream | None = None
        try:
            with connect(tunnel.visitor_address, timeout=VISIT_TIMEOUT_S) as sock:
                stream = VerifiedStream(sock)
                bytes_verified = run(stream)
        except CorruptError as error:
            self._harness.target_reports.corruptions.append(
                f"at a visitor of {tunnel.name} ({kind.name.lower()}): {error}"
            )
            return False
        except (CutError, OSError) as error:
            established = stream.established if stream else None
            failed = FailedVisit(
                tunnel.name, kind.name.lower(), began, established, time.monotonic(), str(error) or repr(error)
            )
            with self._lock:
                if len(self.failed) < MAX_RECORDED_FAILURES:
                    self.failed.append(failed)
            return False
        with self._lock:
            self.served[kind.name.lower()] += 1
            self.bytes_verified += bytes_verified
        return True
