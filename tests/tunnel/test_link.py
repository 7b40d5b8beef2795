"""When links ping, and what they make of the answers."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.engine.link import settled, until_ping

moments = st.floats(0, 1e7)
intervals = st.floats(0.05, 600)


@given(moments, intervals, st.floats(0, 1))
def test_a_ping_leaves_after_its_share_of_the_interval_at_one_of_twenty_moments(
    now: float, interval: float, share: float
) -> None:
    pause, beat = until_ping(now, interval, share), interval / 20
    assert abs(pause - share * interval) <= beat / 2 + 1e-6
    due = (now + pause) / beat
    assert due == pytest.approx(round(due), abs=1e-4)


@given(moments, intervals)
def test_then_it_keeps_its_moment(now: float, interval: float) -> None:
    first = now + until_ping(now, interval, 0.3)
    late = first + interval / 100
    assert late + until_ping(late, interval) == pytest.approx(first + interval, abs=1e-4)


def test_hundreds_of_links_that_began_together_never_ping_all_at_once() -> None:
    moments = Counter(round(until_ping(1000.0, 5.0, number / 500), 3) for number in range(500))
    assert len(moments) == 21
    assert max(moments.values()) <= 26


def test_one_answer_that_met_a_busy_moment_is_soon_forgotten() -> None:
    told, samples = None, [0.060, 0.0003, 0.0004, 0.0003]
    for number in range(len(samples)):
        told = settled(told, samples[: number + 1])
    assert told == 0.0003


@given(st.floats(1e-5, 10), st.lists(st.floats(1e-5, 10), min_size=1, max_size=5))
def test_what_is_nearly_the_same_is_no_news(told: float, last: list[float]) -> None:
    middle = sorted(last)[(len(last) - 1) // 2]
    assert settled(None, last) == middle
    now = settled(told, last)
    assert now in {told, middle}
    assert abs(now - middle) <= 0.1 * max(told, 0.002)
