"""When links ping, when a peer counts as lost, and how round trips are smoothed."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.protocol.heartbeat import Heartbeat, seconds_until_ping, smooth_round_trip

moments = st.floats(0, 1e7)
intervals = st.floats(0.05, 600)


@given(moments, intervals, st.floats(0, 1))
def test_a_ping_leaves_after_its_share_of_the_interval_in_one_of_twenty_slots(
    now: float, interval: float, share: float
) -> None:
    pause, slot = seconds_until_ping(now, interval, share), interval / 20
    assert abs(pause - share * interval) <= slot / 2 + 1e-6
    due = (now + pause) / slot
    assert due == pytest.approx(round(due), abs=1e-4)


@given(moments, intervals)
def test_a_link_keeps_its_slot(now: float, interval: float) -> None:
    first = now + seconds_until_ping(now, interval, 0.3)
    late = first + interval / 100
    assert late + seconds_until_ping(late, interval) == pytest.approx(first + interval, abs=1e-4)


def test_hundreds_of_links_that_started_together_do_not_all_ping_at_once() -> None:
    moments = Counter(round(seconds_until_ping(1000.0, 5.0, number / 500), 3) for number in range(500))
    assert len(moments) == 21
    assert max(moments.values()) <= 26


def test_one_slow_answer_has_no_lasting_effect_on_the_round_trip() -> None:
    smoothed, samples = None, [0.060, 0.0003, 0.0004, 0.0003]
    for number in range(len(samples)):
        smoothed = smooth_round_trip(smoothed, samples[: number + 1])
    assert smoothed == 0.0003


@given(st.floats(1e-5, 10), st.lists(st.floats(1e-5, 10), min_size=1, max_size=5))
def test_a_small_change_of_the_round_trip_is_ignored(before: float, samples: list[float]) -> None:
    median = sorted(samples)[(len(samples) - 1) // 2]
    assert smooth_round_trip(None, samples) == median
    now = smooth_round_trip(before, samples)
    assert now in {before, median}
    assert abs(now - median) <= 0.1 * max(before, 0.002)


def test_a_peer_is_lost_after_three_silent_intervals() -> None:
    heartbeat = Heartbeat(5.0, now=100.0)
    assert not heartbeat.is_peer_lost(114.9)
    assert heartbeat.is_peer_lost(115.0)
    heartbeat.note_received(110.0)
    assert heartbeat.silence_s(115.0) == 5.0
    assert not heartbeat.is_peer_lost(124.9)


@given(st.integers(0, (1 << 64) - 1))
def test_any_stamp_in_an_answer_gives_a_round_trip_that_is_not_negative(stamp: int) -> None:
    """A malicious peer may answer with a stamp that was never sent."""
    heartbeat = Heartbeat(5.0, now=100.0)
    heartbeat.note_pong(stamp, 100.0)
    assert heartbeat.round_trip_s is not None
    assert 0 <= heartbeat.round_trip_s <= 100.0


def test_the_next_ping_follows_the_present_interval() -> None:
    heartbeat = Heartbeat(10.0, now=0.0)
    assert heartbeat.seconds_until_ping(0.0) == pytest.approx(10.0)
    heartbeat.set_interval(5.0)
    assert heartbeat.seconds_until_ping(0.0) == pytest.approx(5.0)
    assert heartbeat.seconds_until_ping(0.0, 0.5) == pytest.approx(2.5)
