"""How long to wait before the next attempt: quick at first, then exponential, with full jitter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST: Final = 0.1
"""Upper bound of the first wait in seconds: a fraction of a second heals most interruptions unnoticed."""
LEAST: Final = 0.02
"""Lower bound of every wait, so that jitter never makes a busy loop."""
BRISK: Final = 1.5
"""Upper bound in seconds while an outage is young: whatever restarts is found again within two."""
YOUNG: Final = 40
"""Attempts during which an outage counts as young, about half a minute in all."""


def delay(attempt: int, cap: float, uniform: Callable[[float, float], float]) -> float:
    """Seconds to wait after the ``attempt``-th failure in a row (from 1), never more than ``cap``.

    Full jitter: evenly distributed up to a growing bound, which spreads a crowd of clients best (Brooker, "Exponential
    Backoff And Jitter", AWS Architecture Blog, 2015). ``uniform`` is ``random.uniform``.
    """
    steps = max(attempt, 1) - 1
    bound = min(BRISK, FIRST * 2.0 ** min(steps, 16))
    if steps >= YOUNG:
        bound = BRISK * 2.0 ** min(steps - YOUNG + 1, 16)
    return min(cap, max(LEAST, uniform(0.0, min(cap, bound))))
