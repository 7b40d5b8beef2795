"""Visitors of the UDP tunnels: some that stay for the whole load, and many that ask once, as clients of DNS do."""

from __future__ import annotations

import collections
import itertools
import random
import select
import threading
import time
from typing import TYPE_CHECKING, Final

from tests.soak.datagrams import LOST_AFTER_S, MIN_BYTES, DatagramVisitor
from tests.soak.streams import CorruptError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.soak.harness import SoakHarness, Tunnel
    from tests.soak.losses import DatagramLoss

_LASTING: Final = 6  # visitors of a tunnel that stay
_MAX_UNANSWERED: Final = 48  # a visitor waits with so many on the way; 64 wait in a flow
_MAX_BURST: Final = 24
_MAX_PAUSE_S: Final = 0.4
_MAX_BRIEF_PAUSE_S: Final = 0.3
_SIZES: Final = (100, 300, 1200, 1350)
_LONG_SIZES: Final = (1400, 9_000, 40_000)  # too long for the path: over the data connection
_MAX_LONG_BURST: Final = 2
_STEP_S: Final = 0.02


class DatagramLoad:
    """Two threads for each UDP tunnel: lasting visitors, and brief ones."""

    def __init__(self, harness: SoakHarness, seed: int) -> None:
        self.sent: collections.Counter[str] = collections.Counter()
        """datagrams by tunnel"""
        self.answered: collections.Counter[str] = collections.Counter()
        """datagrams by tunnel whose answer has arrived in time"""
        self.losses: list[DatagramLoss] = []
        """datagrams without an answer in time"""
        self.late = self.bytes_verified = self.brief_visits = 0
        self._harness = harness
        self._random = random.Random(seed)
        self._idents = itertools.count(1)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads of visitors."""
        self._over.clear()
        self._threads = [
            threading.Thread(target=run, args=(tunnel, random.Random(self._random.random())), daemon=True)
            for tunnel in self._harness.tunnels.values()
            if tunnel.has_udp
            for run in (self._run_lasting, self._run_brief)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Wait for the last answers, and send no more."""
        self._over.set()
        for thread in self._threads:
            thread.join(4 * LOST_AFTER_S)

    def burst(self, tunnel: Tunnel, count: int) -> None:
        """Run ``count`` visits of one datagram at the same time."""
        self._visit(tunnel, count, lambda _visitor: (random.choice(_SIZES),))

    def create_visitor(self, tunnel: Tunnel) -> DatagramVisitor:
        """Return a new visitor of a tunnel, which the caller closes."""
        return DatagramVisitor(next(self._idents), tunnel.name, tunnel.visitor_address)

    # --- the threads --------------------------------------------------------------------------------------------------

    def _run_brief(self, tunnel: Tunnel, rng: random.Random) -> None:
        while not self._over.wait(rng.uniform(0, _MAX_BRIEF_PAUSE_S)):
            count = rng.randrange(1, 4)
            self._visit(tunnel, 1, lambda _visitor, count=count: rng.choices(_SIZES, k=count))  # type: ignore[misc]  # mypy does not infer defaults of lambdas

    def _visit(self, tunnel: Tunnel, count: int, sizes: Callable[[DatagramVisitor], Sequence[int]]) -> None:
        """Let new visitors send once, and wait until each has its answers, or has lost them."""
        visitors = [self.create_visitor(tunnel) for _ in range(count)]
        try:
            for visitor in visitors:
                visitor.send(sizes(visitor))
            while any(visitor.unanswered for visitor in visitors):
                self._receive(tunnel, visitors, _STEP_S)
        finally:
            self._close(tunnel, visitors)
        with self._lock:
            self.brief_visits += sum(visitor.answered == visitor.sent for visitor in visitors)

    def _run_lasting(self, tunnel: Tunnel, rng: random.Random) -> None:
        visitors = [self.create_visitor(tunnel) for _ in range(_LASTING)]
        due = dict.fromkeys(visitors, 0.0)
        try:
            while not self._over.is_set() or any(visitor.unanswered for visitor in visitors):
                now = time.monotonic()
                for visitor in visitors:
                    if now >= due[visitor] and visitor.unanswered < _MAX_UNANSWERED and not self._over.is_set():
                        due[visitor] = now + rng.uniform(0, _MAX_PAUSE_S)
                        visitor.send(_choose_sizes(tunnel, rng))
                self._receive(tunnel, visitors, _STEP_S)
        finally:
            self._close(tunnel, visitors)

    # --- what they have in common -------------------------------------------------------------------------------------

    def _receive(self, tunnel: Tunnel, visitors: Sequence[DatagramVisitor], seconds: float) -> None:
        """Verify what arrives, and record what is lost."""
        by_socket = {visitor.sock: visitor for visitor in visitors}
        for sock in select.select(list(by_socket), [], [], seconds)[0]:
            try:
                by_socket[sock].receive()
            except CorruptError as error:
                self._harness.target_reports.corruptions.append(f"at a UDP visitor of {tunnel.name}: {error}")
        now = time.monotonic()
        for visitor in visitors:
            if (loss := visitor.expire(now)) is not None:
                with self._lock:
                    self.losses.append(loss)

    def _close(self, tunnel: Tunnel, visitors: Sequence[DatagramVisitor]) -> None:
        for visitor in visitors:
            visitor.sock.close()
        with self._lock:
            self.sent[tunnel.name] += sum(visitor.sent for visitor in visitors)
            self.answered[tunnel.name] += sum(visitor.answered for visitor in visitors)
            self.late += sum(visitor.late for visitor in visitors)
            self.bytes_verified += sum(visitor.bytes_verified for visitor in visitors)


def _choose_sizes(tunnel: Tunnel, rng: random.Random) -> Sequence[int]:
    if tunnel.udp_carrier != "datagram" and rng.random() < 0.1:
        return [rng.choice(_LONG_SIZES) for _ in range(rng.randrange(1, _MAX_LONG_BURST + 1))]
    count = rng.randrange(1, _MAX_BURST)
    if rng.random() < 0.5:
        return [rng.choice(_SIZES)] * count
    return [rng.randrange(MIN_BYTES, max(_SIZES)) for _ in range(count)]
