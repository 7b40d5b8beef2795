from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from tunnel.runtime.backoff import BRISK, FIRST, LEAST, YOUNG, delay

caps = st.floats(0.001, 4000)


def most(_low: float, high: float) -> float:
    return high


def least(low: float, _high: float) -> float:
    return low


@given(st.integers(-3, 10**9), caps, st.randoms(use_true_random=False))
def test_no_wait_is_longer_than_the_cap_or_a_busy_loop(attempt: int, cap: float, chance: random.Random) -> None:
    wait = delay(attempt, cap, chance.uniform)
    assert min(LEAST, cap) <= wait <= cap


@given(st.integers(1, 200), caps)
def test_the_longest_wait_grows_up_to_the_cap(attempt: int, cap: float) -> None:
    assert delay(attempt, cap, most) <= delay(attempt + 1, cap, most)
    assert delay(YOUNG + 20, cap, most) == cap


@given(st.integers(1, 200), caps)
def test_jitter_is_full(attempt: int, cap: float) -> None:
    assert delay(attempt, cap, least) == min(LEAST, cap)


def test_the_first_wait_is_a_fraction_of_a_second_and_young_outages_end_within_two() -> None:
    assert delay(1, 60, most) == FIRST <= 0.25
    assert all(delay(n, 60, most) <= BRISK < 2 for n in range(1, YOUNG + 1))
