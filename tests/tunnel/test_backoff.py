from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from tunnel.runtime.backoff import (
    BLOCKED_MAX_DELAY_S,
    FIRST_DELAY_S,
    MIN_DELAY_S,
    YOUNG_ATTEMPTS,
    YOUNG_MAX_DELAY_S,
    blocked_delay,
    retry_delay,
)

caps = st.floats(0.001, 4000)


def upper_bound(_low: float, high: float) -> float:
    return high


def lower_bound(low: float, _high: float) -> float:
    return low


@given(st.integers(-3, 10**9), caps, st.randoms(use_true_random=False))
def test_a_delay_never_exceeds_the_cap_and_is_never_a_busy_loop(
    attempt: int, cap: float, chance: random.Random
) -> None:
    wait = retry_delay(attempt, cap, chance.uniform)
    assert min(MIN_DELAY_S, cap) <= wait <= cap


@given(st.integers(1, 200), caps)
def test_the_longest_delay_grows_up_to_the_cap(attempt: int, cap: float) -> None:
    assert retry_delay(attempt, cap, upper_bound) <= retry_delay(attempt + 1, cap, upper_bound)
    assert retry_delay(YOUNG_ATTEMPTS + 20, cap, upper_bound) == cap


@given(st.integers(1, 200), caps)
def test_jitter_reaches_down_to_the_minimum_delay(attempt: int, cap: float) -> None:
    assert retry_delay(attempt, cap, lower_bound) == min(MIN_DELAY_S, cap)


def test_the_first_delay_is_below_a_second_and_a_young_outage_is_retried_within_two() -> None:
    assert retry_delay(1, 60, upper_bound) == FIRST_DELAY_S <= 0.25
    assert all(retry_delay(n, 60, upper_bound) <= YOUNG_MAX_DELAY_S < 2 for n in range(1, YOUNG_ATTEMPTS + 1))


@given(st.integers(1, 10**9), st.floats(0, 20), st.randoms(use_true_random=False))
def test_the_pause_of_a_blocked_dial_grows_beyond_the_period_of_a_firewall(
    attempt: int, dial_s: float, chance: random.Random
) -> None:
    pause = blocked_delay(attempt, dial_s, chance.uniform)
    assert FIRST_DELAY_S / 2 <= pause <= BLOCKED_MAX_DELAY_S
    assert blocked_delay(attempt, dial_s, upper_bound) <= blocked_delay(attempt + 1, dial_s, upper_bound)
    if attempt >= 11:
        assert pause >= 30
