"""How many idle data connections to keep: pure arithmetic on measurements, without sockets and clocks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from tunnel.model.limits import Limits

_HALF_LIFE_S: Final = 10.0  # of an estimate that is not confirmed: the pool shrinks slowly
_HEADROOM: Final = 2.0  # the number of visitors during one dial varies: room for twice the mean
_SAMPLE_S: Final = 0.1  # visitors of this time make one sample of their rate
_FASTER_DIAL_WEIGHT: Final = 0.25  # of a dial that was faster than the estimate
_SLOWER_DIAL_WEIGHT: Final = 0.01  # of a slower one: it may have waited for the other dials of its burst


class Demand(NamedTuple):
    """Measured demand for data connections. Every method returns a new object: a tuple, as two are made per visitor."""

    rate: float = 0.0
    """visitors per second, smoothed: follows a rise at once, a fall slowly"""
    dial_s: float = 0.0
    """seconds from the start of a dial until the connection can be used, smoothed"""
    burst: float = 0.0
    """largest number of visitors served at one moment, fading like the rate"""
    seen: int = 0
    """visitors since ``since``"""
    since: float = 0.0
    """start of the present sample, in seconds of any monotonic clock"""

    def visitors(self, count: int, now: float) -> Demand:
        """The demand after ``count`` more visitors got a connection at ``now``."""
        seen = self.seen + count
        span_s = now - self.since
        burst = count if count > 1 else 0
        if span_s < _SAMPLE_S:
            return Demand(self.rate, self.dial_s, max(self.burst, burst), seen, self.since)
        fading = 0.5 ** (span_s / _HALF_LIFE_S)
        # A sample after an idle time starts with its first visitor, not with the idle time.
        sample = seen / (span_s if span_s < 2 * _SAMPLE_S else _SAMPLE_S)
        rate = max(self.rate * fading, sample if seen > 1 else 0.0)
        return Demand(rate, self.dial_s, max(self.burst * fading, burst), 0, now)

    def dialed(self, seconds: float) -> Demand:
        """The demand after a dial that took ``seconds``."""
        weight = _FASTER_DIAL_WEIGHT if seconds < self.dial_s else _SLOWER_DIAL_WEIGHT
        smoothed = seconds if not self.dial_s else self.dial_s + (seconds - self.dial_s) * weight
        return Demand(self.rate, smoothed, self.burst, self.seen, self.since)


def wanted_idle(demand: Demand, limits: Limits) -> int:
    """Idle data connections to keep: as many as visitors use during one dial, or at one moment."""
    needed = math.ceil(max(demand.rate * demand.dial_s * _HEADROOM, demand.burst))
    return max(limits.pool_min, min(limits.pool_max, needed + limits.pool_min))


def dials_to_start(*, wanted: int, idle: int, dialing: int, queued: int, max_dials: int, pool_max: int) -> int:
    """How many dials to start now, given the ``idle`` connections and the dials in progress.

    Each of the ``queued`` visitors needs a connection on top of the ``wanted`` idle ones. ``pool_max`` limits idle
    connections and dials together; ``max_dials`` limits dials, so that a burst does not overrun the other end.
    """
    missing = min(wanted + queued, pool_max) - idle - dialing
    return max(0, min(missing, max_dials - dialing))


def surplus(*, wanted: int, idle: int) -> int:
    """How many idle connections to close: only what is well above ``wanted``, so that the number does not oscillate."""
    return max(0, idle - wanted - max(2, wanted // 4))
