"""How long to wait before the next attempt: quick at first, then exponential, with full jitter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

FIRST: Final = 0.1
"""Upper bound of the first wait in seconds: a fraction of a second heals most interruptions unnoticed."""
LEAST: Final = 0.02
"""Lower bound of every wait, so that jitter never makes a busy loop."""


def delay(attempt: int, cap: float, uniform: Callable[[float, float], float]) -> float:
    """Seconds to wait after the ``attempt``-th failure in a row (from 1), never more than ``cap``.

    Full jitter: evenly distributed up to an exponentially growing bound, which spreads a crowd of clients best
    (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015). ``uniform`` is ``random.uniform``.
    """
    bound = min(cap, FIRST * 2.0 ** min(max(attempt, 1) - 1, 32))
    return min(cap, max(LEAST, uniform(0.0, bound)))
