"""The delay before the next attempt: short at first, then exponential, with full jitter."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_DELAY_S: Final = 0.1
"""Upper bound of the first delay: most interruptions end within a fraction of a second, before a user notices."""
MIN_DELAY_S: Final = 0.02
"""Lower bound of every delay, so that jitter never causes a busy loop."""
YOUNG_MAX_DELAY_S: Final = 1.5
"""Upper bound while an outage is young, so that a peer that restarts is found within two seconds."""
YOUNG_ATTEMPTS: Final = 40
"""Attempts during which an outage counts as young, about half a minute in total."""


def retry_delay(attempt: int, cap: float, uniform: Callable[[float, float], float]) -> float:
    """Return the seconds to wait after the ``attempt``-th failure in a row (from 1), never more than ``cap``.

    Full jitter: evenly distributed up to a growing bound, which spreads many clients best (Brooker, "Exponential
    Backoff And Jitter", AWS Architecture Blog, 2015). ``uniform`` is ``random.uniform``.
    """
    steps = max(attempt, 1) - 1
    bound = min(YOUNG_MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(steps, 16))
    if steps >= YOUNG_ATTEMPTS:
        bound = YOUNG_MAX_DELAY_S * 2.0 ** min(steps - YOUNG_ATTEMPTS + 1, 16)
    return min(cap, max(MIN_DELAY_S, uniform(0.0, min(cap, bound))))


def random_retry_delay(attempt: int, cap: float) -> float:
    """Return the delay of ``retry_delay`` with the random numbers of this process."""
    return retry_delay(attempt, cap, random.uniform)


BLOCKED_MAX_DELAY_S: Final = 60.0
"""Upper bound of the pause after refused or unanswered data connections. Firewalls that limit new connections (iptables
"recent", fail2ban) often count each attempt again, so they open only after a pause longer than their period."""
STABLE_AFTER_S: Final = 60.0
"""Time without a failure after which the pauses start small again."""


def blocked_delay(attempt: int, dial_s: float, uniform: Callable[[float, float], float]) -> float:
    """Return the seconds to wait after the ``attempt``-th failure (from 1), although the other end is reachable.

    ``dial_s``: how long the failed dial took; the pauses start with as much. Equal jitter: at least half of the bound,
    which a firewall's period has to fit into.
    """
    bound = min(BLOCKED_MAX_DELAY_S, max(FIRST_DELAY_S, dial_s) * 2.0 ** min(max(attempt, 1) - 1, 16))
    return bound / 2 + uniform(0.0, bound / 2)
