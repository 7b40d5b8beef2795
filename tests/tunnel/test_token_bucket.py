"""The token bucket: a burst at once, then the rate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.model.token_bucket import DebtBucket, FillRate, TokenBucket


@given(gaps=st.lists(st.floats(0.0, 2.0), max_size=80), per_s=st.sampled_from([0.5, 3.0, 100.0]))
def test_no_more_tokens_are_given_than_burst_and_rate_allow(gaps: list[float], per_s: float) -> None:
    bucket, now, taken = TokenBucket(per_s, 5, 100.0), 100.0, 0
    for gap in gaps:
        now += gap
        taken += bucket.take_token(now)
        assert taken <= 5 + (now - 100.0) * per_s + 1e-6


def test_a_token_is_there_after_the_delay() -> None:
    bucket = TokenBucket(2.0, 1, 0.0)
    assert bucket.take_token(0.0)
    assert not bucket.take_token(0.1)
    assert bucket.delay_s(0.1) == pytest.approx(0.4)
    assert bucket.take_token(0.51)
    assert not bucket.take_token(0.2), "time that runs backwards gives nothing"


@given(steps=st.lists(st.tuples(st.floats(0.0, 0.5), st.integers(1, 5000)), min_size=1, max_size=80))
def test_an_overdrawn_bucket_keeps_the_average(steps: list[tuple[float, int]]) -> None:
    bucket, now, spent, last = DebtBucket(FillRate(1000.0, 2000.0), 5.0), 5.0, 0, 0
    for gap, size in steps:
        now += gap
        if bucket.available(now) > 0:
            bucket.spend(size)
            spent, last = spent + size, size
    assert spent - last <= 2000 + (now - 5.0) * 1000 + 1e-6


def test_a_bucket_follows_the_rate_that_it_shares() -> None:
    rate = FillRate(1000.0, 2000.0)
    bucket = DebtBucket(rate, 0.0)
    assert bucket.available(0.0) == 2000
    bucket.spend(2500)
    assert bucket.delay_s(500) == pytest.approx(1.0)
    rate.per_s = 5000.0
    assert bucket.delay_s(500) == pytest.approx(0.2)
    assert bucket.available(0.1) == pytest.approx(0.0)
    assert bucket.available(0.05) == pytest.approx(0.0), "time that runs backwards gives nothing"
    rate.burst = 100.0
    assert bucket.available(9.0) == 100
    assert bucket.delay_s(50) == 0
