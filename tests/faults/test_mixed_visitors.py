"""Visitors of every kind and size at once over a wire with loss and delay: every byte is compared.

The visitors are those of the soak. Both ends of a stream can compute each of its bytes from its seed, so a byte of
another visitor is noticed like a wrong one.
"""

from __future__ import annotations

import itertools
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.faults.conftest import FigureRecorder
from tests.faults.hosts import DIRECTIONS, ImpairedHosts, NamespacePair
from tests.faults.wire import Impairment
from tests.soak.streams import CorruptError, CutError, TargetReports, VerifiedStream, VisitKind, serve_streams, visit
from tests.support.processes import ProcessHarness
from tests.support.scale import IS_FULL_SCALE

VISITORS = 2_500 if IS_FULL_SCALE else 120
"""For each direction, with and without encryption, reuse and shared connections: 30,000 in all."""
BIG_STREAMS = (64 << 20, 12 << 20, 5 << 20) if IS_FULL_SCALE else (1 << 20,)
AT_ONCE = 24
VISIT_TIMEOUT_S = 100.0
"""More than the keepalive takes (30 s and three times 10 s): a reset that the wire loses is not repeated by TCP."""
WIRE = Impairment(loss=0.005, delay=0.005, reorder=0.02)
SIZES = (0, 1, 10, 300, 1_400, 16_384, 16_385, 40_000, 131_073, 250_000)
WEIGHTS = (6, 6, 20, 20, 20, 8, 8, 8, 2, 2)
KINDS = [kind for kind in VisitKind if kind not in {VisitKind.BULK, VisitKind.LONG_LIVED}]

CARRIERS = {
    "in the clear": "tls=0",
    "encrypted": "",
    "in the clear, with reuse": "tls=0&reuse=1",
    "encrypted, with reuse": "reuse=1",
    "in the clear, shared": "tls=0&mux=1",
    "encrypted, shared": "mux=1",
}
QUICK = ("in the clear, with reuse", "encrypted", "in the clear, shared", "encrypted, shared")


class MixedLoad:
    """Visits of random kinds and sizes at one tunnel, and what was wrong with any of them."""

    def __init__(self, pair: NamespacePair, target_reports: TargetReports, seed: int) -> None:
        self.faults: list[str] = []
        self.verified_bytes = 0
        self._pair = pair
        self._target_reports = target_reports
        self._random = random.Random(seed)
        self._seeds = itertools.count(2)
        self._lock = threading.Lock()

    def visit_any(self, _number: int) -> None:
        """Run one visit of any kind."""
        with self._lock:
            kind = self._random.choice(KINDS)
            up, down = self._random.choices(SIZES, WEIGHTS, k=2)
        if kind in {VisitKind.VISITOR_RESETS, VisitKind.TARGET_RESETS}:
            up, down = min(up, 1_400), max(1, min(down, 1_400))  # a reset may overtake the data before it
        self.visit(kind, up, down)

    def visit(self, kind: VisitKind, up: int, down: int) -> None:
        """Run one visit with so many bytes from and to the visitor."""
        with self._lock:
            seed = next(self._seeds)
        try:
            with self._pair.connect(timeout=VISIT_TIMEOUT_S) as sock:
                visit(VerifiedStream(sock), kind, seed, up, down, self._target_reports, VISIT_TIMEOUT_S)
        except (CorruptError, CutError, OSError) as error:
            self.faults.append(f"{kind.name}, {up} and {down} bytes: {error!r}")
        with self._lock:
            self.verified_bytes += up + down


@pytest.mark.slow
@pytest.mark.case("mixed visitors over loss and delay", deadline=600)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("carrier", CARRIERS if IS_FULL_SCALE else QUICK)
def test_every_byte_of_every_visitor_arrives_in_its_place_and_nowhere_else(
    harness: ProcessHarness, impaired_hosts: ImpairedHosts, record_figure: FigureRecorder, carrier: str, direction: str
) -> None:
    """Early ends, half-closes, resets and bulk at the same time, so that data connections change their visitors.

    Seen to fail: where an ingress uses a data connection again before FREED, a tenth of the visitors is cut off.
    """
    impaired_hosts.wire.set_impairment(Impairment())
    target_reports = TargetReports()
    options = f"max_pool_capacity=64&{CARRIERS[carrier]}"
    serve_verified = serve_streams(target_reports)

    def serve(sock: socket.socket) -> None:
        sock.settimeout(VISIT_TIMEOUT_S)
        serve_verified(sock)

    pair = impaired_hosts.pair(harness, serve, direction=direction, both=options).wait_up()
    impaired_hosts.wire.set_impairment(WIRE)
    load, began = MixedLoad(pair, target_reports, seed=len(carrier) + len(direction)), time.monotonic()
    try:
        with ThreadPoolExecutor(AT_ONCE) as threads:
            big = [threads.submit(load.visit, VisitKind.BULK, size, size // 4) for size in BIG_STREAMS]
            list(threads.map(load.visit_any, range(VISITORS - len(big))))
    finally:
        impaired_hosts.wire.set_impairment(Impairment())
    took = time.monotonic() - began
    assert not load.faults, f"{len(load.faults)} visits, for example {load.faults[:3]}"
    assert not target_reports.corruptions
    for end in (pair.server, pair.client):
        assert end.tunnel()["connections"]["failed"] == 0
        assert end.tunnel()["state"] == "up"
    record_figure(f"{VISITORS} visitors, {load.verified_bytes >> 20} MB compared, none wrong, in {took:.0f} s")
