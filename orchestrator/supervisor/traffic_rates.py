"""The rates of tunnels: the means between two readings of their counters.

The meter is used where snapshots are made, so that everything that reads a tunnel also measures it. The sampler reads
the counters of busy tunnels while nothing else does, so that a single ``ps`` has rates, too. It makes no snapshots:
they cost ten times as much, and a host with many busy tunnels would make them all the time for no reader.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from orchestrator.status.scanner import SCAN_BATCH_SIZE
from tunnel.model.snapshot import TrafficRatesView

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from tunnel.model.snapshot import Snapshot, TrafficReading

SAMPLE_INTERVAL_S: Final = 2.0
"""Seconds between two readings of a busy tunnel by the sampler."""

MIN_SPAN_S: Final = 1.0
"""Rates are computed no more often: the counters of workers are up to a quarter of a second old."""

MAX_SPAN_S: Final = 15.0
"""A mean over a longer time says nothing about the present, unless nothing was carried."""

NO_RATES: Final = TrafficRatesView(in_bps=0, out_bps=0)
"""The only object with rates of zero: a byte within ``MAX_SPAN_S`` is rounded to one bit per second."""

_PAUSE_S: Final = 0.004  # between two groups of tunnels, so that no visitor waits for the reading of all


class _Measured(NamedTuple):
    at: float
    """when the counters were read, on the monotonic clock"""
    reading: TrafficReading
    rates: TrafficRatesView | None
    """up to ``at``"""


class TrafficMeter:
    """Remembers one reading of each tunnel; used where snapshots of tunnels are made."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._measured: dict[str, _Measured] = {}
        self._rated: dict[str, tuple[Snapshot, Snapshot]] = {}
        """the last snapshot of each tunnel without its rates, and the same with them"""
        self._watched: Collection[str] = ()
        self._watched_since = -math.inf

    def add_rates(self, name: str, seen: Snapshot) -> Snapshot:
        """Return a snapshot made now with the rates; the same object as before as long as nothing differs."""
        rates = self.measure(name, seen.traffic)
        known = self._rated.get(name)
        if known is not None and known[0] is seen and known[1].rates == rates:
            return known[1]
        rated = seen if rates is None else replace(seen, rates=rates)
        self._rated[name] = seen, rated
        return rated

    def measure(self, name: str, reading: TrafficReading) -> TrafficRatesView | None:
        """Return the rates of a tunnel whose counters were read now; None if they are not known yet."""
        now, last = self._clock(), self._measured.get(name)
        if last is None:  # only of a tunnel that has carried nothing so far the rates are known
            rates = None if reading.from_visitors or reading.to_visitors else NO_RATES
        else:
            start = last.at if name in self._watched else max(last.at, self._watched_since)
            if now - start < MIN_SPAN_S:
                return last.rates
            rates = _mean(last.reading, reading, now - start)
        self._measured[name] = _Measured(now, reading, rates)
        return rates

    def is_current(self, name: str) -> bool:
        """Return whether another reader of this tunnel has measured its rates within half a sampling interval."""
        last = self._measured.get(name)
        return last is not None and self._clock() - last.at < SAMPLE_INTERVAL_S / 2

    def version(self, name: str) -> int:
        """Return a number that changes when the rates may have changed though the counters have not."""
        last = self._measured.get(name)
        return 0 if last is not None and last.rates is NO_RATES else int(self._clock() / MIN_SPAN_S)

    def watch(self, names: Collection[str]) -> None:
        """Remember which tunnels can carry something at this moment.

        What another tunnel carries later came after this moment, however long ago its counters were read.
        """
        self._watched, self._watched_since = names, self._clock()

    def forget(self, name: str) -> None:
        """Drop what is remembered of a tunnel that was removed."""
        self._measured.pop(name, None)
        self._rated.pop(name, None)


def _mean(before: TrafficReading, now: TrafficReading, span_s: float) -> TrafficRatesView | None:
    carried_in = now.from_visitors - before.from_visitors
    carried_out = now.to_visitors - before.to_visitors
    if not carried_in and not carried_out:
        return NO_RATES
    if carried_in < 0 or carried_out < 0 or span_s > MAX_SPAN_S:
        return None
    return TrafficRatesView(in_bps=round(8 * carried_in / span_s), out_bps=round(8 * carried_out / span_s))


class SampledTunnels(Protocol):
    """What the sampler uses of the registry."""

    def read_traffic(self, name: str) -> TrafficReading:
        """Return the bytes and the visitors of a tunnel now. Raises LookupError."""


class TrafficSampler:
    """Reads every tunnel that carries something, or has visitors, once in ``SAMPLE_INTERVAL_S``."""

    def __init__(self, tunnels: SampledTunnels, meter: TrafficMeter) -> None:
        self._tunnels = tunnels
        self._meter = meter
        self._busy: Final[set[str]] = set()
        self.mark: Final[Callable[[str], None]] = self._busy.add  # a call less for each visitor
        """Makes the next sample include a tunnel: a visitor has come."""

    async def run(self, interval_s: float = SAMPLE_INTERVAL_S) -> None:
        """Read in each interval until cancelled."""
        while True:
            await asyncio.sleep(interval_s)
            await self.sample()

    async def sample(self) -> None:
        """Read the busy tunnels, some at a time; one that is quiet by now is left out from the next time on."""
        for number, name in enumerate([name for name in self._busy if not self._meter.is_current(name)], 1):
            try:
                reading = self._tunnels.read_traffic(name)
            except LookupError:  # it was removed meanwhile
                self._busy.discard(name)
                continue
            rates = self._meter.measure(name, reading)
            if not reading.active and rates is NO_RATES:
                self._busy.discard(name)
            if number % SCAN_BATCH_SIZE == 0:
                await asyncio.sleep(_PAUSE_S)
        self._meter.watch(frozenset(self._busy))
