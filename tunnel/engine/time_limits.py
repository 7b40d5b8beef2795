"""Which relays have been idle, or connected, for longer than their tunnel allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.forwarding.limited_flow import PAUSED
from tunnel.model.visitor_end import VisitorEnd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tunnel.forwarding.base import ForwardedVisitor
    from tunnel.model.spec import Proto

_SCANS_PER_LIMIT: Final = 10
_MIN_SCAN_INTERVAL_S: Final = 0.05


class TimeLimits:
    """The limits of one tunnel. Remembers for each relay when its bytes changed last, as the scans have seen it."""

    def __init__(
        self, idle_timeouts_s: Mapping[Proto, float], max_age_s: float, before: TimeLimits | None = None
    ) -> None:
        """Limits in seconds, 0: none, the first by what a visitor speaks; ``before``: the former ones of the tunnel."""
        self.idle_timeouts_s = idle_timeouts_s
        self.max_age_s = max_age_s
        self.seen: dict[ForwardedVisitor, tuple[int, float]] = {} if before is None else before.seen
        """relays with their bytes, and when these were seen to change; of the last complete scan"""
        self.met: dict[ForwardedVisitor, tuple[int, float]] = {} if before is None else before.met
        """the same, as far as the present scan has come"""

    @property
    def scan_interval_s(self) -> float:
        """How often the relays have to be scanned, so that a limit is exceeded by a fifth at most."""
        shortest = min(limit for limit in (*self.idle_timeouts_s.values(), self.max_age_s) if limit)
        return max(_MIN_SCAN_INTERVAL_S, shortest / _SCANS_PER_LIMIT)

    def find_expired(self, relays: Sequence[ForwardedVisitor], now: float) -> list[tuple[ForwardedVisitor, VisitorEnd]]:
        """Return the relays beyond a limit, of a part of a scan; ``now`` is the monotonic clock."""
        return [(relay, end) for relay in relays if relay.is_open and (end := self._check(relay, now)) is not None]

    def end_scan(self) -> None:
        """Forget the relays that the scan has not met: they have ended."""
        self.seen, self.met = self.met, {}

    def _check(self, relay: ForwardedVisitor, now: float) -> VisitorEnd | None:
        if self.max_age_s and now - relay.started_at >= self.max_age_s:
            return VisitorEnd.MAX_AGE
        idle_timeout_s = self.idle_timeouts_s[relay.proto]
        if not idle_timeout_s:
            return None
        passed = relay.activity
        before = self.seen.get(relay)
        if before is None:
            before = passed, now if passed else relay.started_at
        elif before[0] != passed or any(flow.state is PAUSED for flow in relay.flows):
            before = passed, now
        self.met[relay] = before
        return VisitorEnd.IDLE_TIMEOUT if now - before[1] >= idle_timeout_s else None
