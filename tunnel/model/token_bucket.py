"""Token buckets: how often or how much may happen in the long run, and at once. The caller passes the time."""

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


class FillRate:
    """How fast the buckets that share this object fill, and what they hold. Its owner may change it at any time."""

    __slots__ = ("burst", "per_s")

    def __init__(self, per_s: float, burst: float) -> None:
        self.per_s = per_s
        self.burst = burst


class DebtBucket:
    """A bucket that may be overdrawn: what was spent is known only afterwards, and the debt delays what follows.

    It is full at first. The long-run average is exact whatever the sizes of what is spent.
    """

    __slots__ = ("_tokens", "_updated_at", "rate")

    def __init__(self, rate: FillRate, now: float) -> None:
        self.rate = rate
        self._tokens = rate.burst
        self._updated_at = now

    def available(self, now: float) -> float:
        """Return the tokens that there are now; negative: the debt."""
        rate = self.rate
        tokens = self._tokens + (now - self._updated_at) * rate.per_s if now > self._updated_at else self._tokens
        self._tokens = tokens = min(tokens, rate.burst)
        self._updated_at = now
        return tokens

    def spend(self, count: float) -> None:
        """Take tokens, also those that there are not."""
        self._tokens -= count

    def delay_s(self, wanted: float) -> float:
        """Return the seconds from the last call of ``available`` until there are ``wanted`` tokens."""
        return max(0.0, (wanted - self._tokens) / self.rate.per_s)
