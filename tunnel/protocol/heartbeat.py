"""When a link pings, when its peer counts as lost, and its round-trip time. Pure: the caller passes the time."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_SILENT_INTERVALS: Final = 3  # without a frame from the peer: the link is lost, whatever the kernel reports
_SLOTS_PER_INTERVAL: Final = 20  # shared by all links: joint wake-ups are cheap, hundreds of pings at once are not
_ROUND_TRIP_SAMPLES: Final = 5  # their median counts: one sample of a busy moment says nothing about the network
_SAME_RATIO: Final = 0.1  # of a round trip: a smaller difference is no change, and would wake all observers
_SHORT_ROUND_TRIP_S: Final = 2e-3  # for shorter round trips, differences are compared with this one


def seconds_until_ping(now: float, interval_s: float, share: float = 1.0) -> float:
    """Seconds until the next ping: ``share`` of the interval, rounded to a slot that all links have in common."""
    slot_s = interval_s / _SLOTS_PER_INTERVAL
    return round((now + share * interval_s) / slot_s) * slot_s - now


def smooth_round_trip(before: float | None, samples: Sequence[float]) -> float:
    """The median of the latest samples in seconds, or the value ``before`` if the median is nearly the same."""
    median = sorted(samples)[(len(samples) - 1) // 2]
    if before is not None and abs(median - before) <= _SAME_RATIO * max(before, _SHORT_ROUND_TRIP_S):
        return before
    return median


class Heartbeat:
    """The health of one link. All times are seconds of one monotonic clock."""

    __slots__ = ("_received_at", "_samples", "interval_s", "round_trip_s")

    def __init__(self, interval_s: float, now: float) -> None:
        self.interval_s = interval_s
        self.round_trip_s: float | None = None
        """smoothed round-trip time of the control channel"""
        self._received_at = now
        self._samples: deque[float] = deque(maxlen=_ROUND_TRIP_SAMPLES)

    def set_interval(self, seconds: float) -> None:
        """Ping in another interval from the next ping on."""
        self.interval_s = seconds

    def note_received(self, now: float) -> None:
        """Note that frames have arrived at ``now``."""
        self._received_at = now

    def note_pong(self, stamp: int, now: float) -> None:
        """A PING with this stamp (nanoseconds) was answered."""
        self._samples.append(max(0.0, now - stamp / 1e9))
        self.round_trip_s = smooth_round_trip(self.round_trip_s, self._samples)

    def silence_s(self, now: float) -> float:
        """Seconds without a frame from the peer."""
        return now - self._received_at

    def is_peer_lost(self, now: float) -> bool:
        """Whether the peer has been silent for too long."""
        return self.silence_s(now) >= _MAX_SILENT_INTERVALS * self.interval_s

    def seconds_until_ping(self, now: float, share: float = 1.0) -> float:
        """Seconds until the next ping, after ``share`` of the interval."""
        return seconds_until_ping(now, self.interval_s, share)
