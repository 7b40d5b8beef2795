"""The legs of a test of a tunnel: what was timed, at which end, and what failed. Pure data."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Leg(enum.StrEnum):
    """One part of the way from a visitor to the target, in the order of the way."""

    LINK = "link"
    """a round trip over the control channel"""
    DATA_CONNECTION = "data_connection"
    """the wait for an idle data connection"""
    SIGNAL = "signal"
    """from the signal until the other end's answer on that data connection"""
    LOOKUP = "lookup"
    """the addresses of the target's name, from a name server"""
    DIAL = "dial"
    """until the target has accepted the connection"""
    FIRST_BYTE = "first_byte"
    """from then until the target's first byte, if the target speaks first"""


class LegResult(NamedTuple):
    """How long one leg took. ``duration_s`` and ``error`` are both None where there was nothing to time."""

    leg: Leg
    is_here: bool
    """whether this end timed it; else the other end did"""
    link: str | None
    target: str | None
    duration_s: float | None
    """seconds"""
    error: str | None = None
    """why it failed, as the end of a sentence"""


class TargetTimes(NamedTuple):
    """How an egress reached one target: seconds, or None for what failed or was not needed."""

    target: str
    is_name: bool
    """whether the target's address had to be looked up"""
    lookup_s: float | None
    dial_s: float | None
    first_byte_s: float | None
    """None also for a target that waits for its visitor to speak"""
    error: str | None

    def legs(self, link: str | None, *, is_here: bool) -> list[LegResult]:
        """The legs that were tried; the last one has the error, or no time, as the dial of a UDP target."""
        times = {Leg.DIAL: self.dial_s, Leg.FIRST_BYTE: self.first_byte_s}
        if self.is_name:
            times = {Leg.LOOKUP: self.lookup_s, **times}
        results = []
        for leg, duration_s in times.items():
            error = self.error if duration_s is None else None
            results.append(LegResult(leg, is_here, link, self.target, duration_s, error))
            if error is not None or duration_s is None:
                break
        return results
