"""How many idle data connections to want: pure arithmetic on what was seen, with no socket and no clock of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tunnel.model.limits import Limits

_FALL_HALF_LIFE: Final = 10.0  # seconds in which an estimate that is not confirmed loses half: the pool shrinks slowly
_HEADROOM: Final = 2.0  # how many come while one dial is under way varies: room for twice the mean
_WINDOW: Final = 0.1  # seconds of visitors that make one sample of their rate
_DIAL_FALL: Final = 0.25  # weight of a dial that was quicker than thought
_DIAL_RISE: Final = 0.01  # and of one that was slower: it may have waited for the others of its own burst


@dataclass(frozen=True, slots=True)
class Demand:
    """What is known of the demand for data connections. Every method returns a new one."""

    rate: float = 0.0
    """visitors a second, smoothed: follows a rise at once, a fall slowly"""
    dial_s: float = 0.0
    """seconds from the start of a dial until the connection can be used, smoothed"""
    bunch: float = 0.0
    """visitors who were served at one moment: the most, fading like the rate"""
    seen: int = 0
    """visitors since ``since``"""
    since: float = 0.0
    """when the present sample began, in seconds of any steady clock"""

    def visitors(self, count: int, now: float) -> Demand:
        """After ``count`` more visitors got a connection, at ``now``."""
        seen = self.seen + count
        span = now - self.since
        together = count if count > 1 else 0
        if span < _WINDOW:
            return Demand(self.rate, self.dial_s, max(self.bunch, together), seen, self.since)
        fading = 0.5 ** (span / _FALL_HALF_LIFE)
        # A sample that follows a silence began with its first visitor, not with the silence.
        sample = seen / (span if span < 2 * _WINDOW else _WINDOW)
        rate = max(self.rate * fading, sample if seen > 1 else 0.0)
        return Demand(rate, self.dial_s, max(self.bunch * fading, together), 0, now)

    def dialed(self, seconds: float) -> Demand:
        """After a dial that took so long."""
        weight = _DIAL_FALL if seconds < self.dial_s else _DIAL_RISE
        smoothed = seconds if not self.dial_s else self.dial_s + (seconds - self.dial_s) * weight
        return Demand(self.rate, smoothed, self.bunch, self.seen, self.since)


def wanted_idle(demand: Demand, limits: Limits) -> int:
    """Idle data connections to keep: those that visitors take while one dial is under way, or at one moment."""
    needed = math.ceil(max(demand.rate * demand.dial_s * _HEADROOM, demand.bunch))
    return max(limits.pool_min, min(limits.pool_max, needed + limits.pool_min))


def dials_to_start(*, wanted: int, idle: int, dialing: int, queued: int, at_once: int, most: int) -> int:
    """How many dials to start now, beside the ``idle`` connections and those that are dialling already.

    ``queued`` visitors want one each on top of the ``wanted`` idle ones; ``most`` bounds the pool, that is idle and
    dialling together; ``at_once`` bounds the dials under way, so that a burst does not overrun the other end.
    """
    missing = min(wanted + queued, most) - idle - dialing
    return max(0, min(missing, at_once - dialing))


def surplus(*, wanted: int, idle: int) -> int:
    """How many idle ones to give up: only what is well above the wanted number, so that it does not flutter."""
    return max(0, idle - wanted - max(2, wanted // 4))
