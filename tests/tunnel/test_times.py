"""Durations and timestamps."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tunnel.model.times import format_duration, format_timestamp, parse_duration

HOUR_NS = 3_600_000_000_000


@given(st.integers(0, 72 * HOUR_NS))
def test_a_formatted_duration_parses_to_the_same_value(ns: int) -> None:
    seconds = ns / 1_000_000_000
    assert parse_duration(format_duration(seconds)) == seconds


@given(
    st.integers(0, 99),
    st.integers(0, 99),
    st.decimals(0, 99, places=3),
    st.sampled_from(["us", "µs", "μs"]),
)
def test_the_terms_of_a_duration_are_added(hours: int, minutes: int, seconds: Decimal, micro: str) -> None:
    expected = hours * 3600 + minutes * 60 + float(seconds) + 7e-6
    assert parse_duration(f"{hours}h{minutes}m{seconds:f}s7{micro}") == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "seconds", "canonical"),
    [
        ("500ms", 0.5, "500ms"),
        ("5s", 5.0, "5s"),
        ("1m30s", 90.0, "1m30s"),
        ("90s", 90.0, "1m30s"),
        ("1.5h", 5400.0, "1h30m"),
        (".5s", 0.5, "500ms"),
        ("1.s", 1.0, "1s"),
        ("2h", 7200.0, "2h"),
        ("1h1s", 3601.0, "1h0m1s"),
        ("0", 0.0, "0s"),
        ("1ns", 1e-9, "1ns"),
    ],
)
def test_durations_are_parsed_as_go_parses_them(text: str, seconds: float, canonical: str) -> None:
    assert parse_duration(text) == seconds
    assert format_duration(seconds) == canonical


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a duration"),
        ("5", "did you mean 5s"),
        ("-5s", "negative"),
        ("5 s", "not a duration"),
        ("5x", "unknown unit 'x'"),
        ("5d", "unknown unit 'd'"),
        ("s", "not a duration"),
        (".s", "not a duration"),
        ("5s5", "not a duration"),
        ("5s,5s", "not a duration"),
        ("1e3s", "not a duration|unknown unit"),
        ("5S", "not a duration"),
        ("٣s", "not a duration"),
        ("inf", "not a duration"),
        ("9999h", "longer than a year"),
        ("9" * 1_100_000 + "s", "longer than a year|not a duration"),
    ],
)
def test_an_invalid_duration_is_rejected_with_a_short_sentence(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        parse_duration(text)
    assert len(str(caught.value)) < 200


@given(st.text(max_size=20))
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    for candidate in (text, f"{text}s", f"1{text}"):
        try:
            assert parse_duration(candidate) >= 0
        except ValueError as error:
            assert str(error)  # noqa: PT017  either outcome is right


def test_longer_durations_are_longer() -> None:
    texts = ["1ns", "1us", "1ms", "1s", "1m", "1h", "24h"]
    assert all(parse_duration(a) < parse_duration(b) for a, b in pairwise(texts))


def test_timestamps_are_utc_with_milliseconds() -> None:
    assert format_timestamp(0) == "1970-01-01T00:00:00.000Z"
    assert format_timestamp(1767225600.1239) == "2026-01-01T00:00:00.123Z"


@given(st.floats(0, 4e9))
@example(0.9999999)
def test_a_timestamp_is_the_moment_to_the_millisecond(seconds: float) -> None:
    moment = datetime.fromtimestamp(seconds, UTC)
    assert datetime.fromisoformat(format_timestamp(seconds)) == moment.replace(
        microsecond=moment.microsecond // 1000 * 1000
    )
