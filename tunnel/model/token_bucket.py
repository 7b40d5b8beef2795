"""A token bucket: how often something may happen in the long run, and how often at once. The caller passes the time."""

from __future__ import annotations


class TokenBucket:
    """Holds at most ``burst`` tokens, of which ``per_s`` become available each second. It is full at first."""

    __slots__ = ("_burst", "_per_s", "_tokens", "_updated_at")

    def __init__(self, per_s: float, burst: float, now: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._tokens = burst
        self._updated_at = now

    def take_token(self, now: float) -> bool:
        """Take a token; return whether there was one."""
        if self.delay_s(now) > 0:
            return False
        self._tokens -= 1
        return True

    def delay_s(self, now: float) -> float:
        """Return the seconds until there is a token, 0 if there is one."""
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._updated_at) * self._per_s)
        self._updated_at = now
        return max(0.0, (1.0 - self._tokens) / self._per_s)
