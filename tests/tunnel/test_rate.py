"""Rates of bytes: how they are written, shown and described in the schema."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.model.errors import InvalidValueError
from tunnel.model.rate import MAX_BITS_PER_S, MIN_BITS_PER_S, Rate, RateType, parse_rate

TYPE = RateType()
PATTERN = re.compile(str(TYPE.json_schemas()[0]["pattern"]))


@pytest.mark.parametrize(
    ("text", "bits", "shown"),
    [
        ("100mbit", 100_000_000, "100mbit"),
        ("1.5 Gbit/s", 1_500_000_000, "1.5gbit"),
        (" 8KBIT ", 8_000, "8kbit"),
        ("8000bit", 8_000, "8kbit"),
        ("10MB/s", 80_000_000, "10MB/s"),
        ("1mB/s", 8_000_000, "1MB/s"),
        ("1000B/s", 8_000, "1kB/s"),
        ("1KiB/s", 8_192, "1.024kB/s"),
        ("2GiB/s", 17_179_869_184, "2.147483648GB/s"),
        ("1000gbit", MAX_BITS_PER_S, "1000gbit"),
    ],
)
def test_a_rate_is_in_bits_or_bytes_per_second(text: str, bits: int, shown: str) -> None:
    rate = parse_rate(text)
    assert (rate.bits_per_s, rate.bytes_per_s, str(rate)) == (bits, bits / 8, shown)
    assert PATTERN.search(text)


@given(bits=st.integers(MIN_BITS_PER_S, MAX_BITS_PER_S), is_in_bytes=st.booleans())
def test_a_rate_is_shown_as_it_can_be_written(bits: int, *, is_in_bytes: bool) -> None:
    rate = Rate(bits, is_in_bytes)
    assert parse_rate(str(rate)) == rate
    assert PATTERN.search(str(rate))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a rate, as in 100mbit or 10MB/s"),
        ("-5mbit", "'-5mbit' is not a rate"),
        ("fast", "is not a rate"),
        ("0", "'0' would stop all visitors; write none for no limit"),
        ("0.0mbit", "would stop all visitors"),
        ("100", "has no unit; write bits or bytes per second, as in 100mbit or 10MB/s"),
        ("10MB", "could mean bits or bytes; write mbit, or MB/s"),
        ("10mb/s", "could mean bits or bytes; write mbit, or MB/s"),
        ("10kibps", "could mean bits or bytes; write kbit, or kB/s"),
        ("10b", "could mean bits or bytes; write bit, or B/s"),
        ("5mbti", "has an unknown unit; did you mean 'mbit'?"),
        ("5parsec", "has an unknown unit; known are bit, kbit, mbit, gbit, B/s, kB/s, MB/s, GB/s, KiB/s, MiB/s, GiB/s"),
        ("7999bit", "is out of range; a rate is 8kbit to 1000gbit"),
        ("1001gbit", "is out of range"),
    ],
)
def test_what_is_no_rate_is_refused_with_the_way_out(text: str, message: str) -> None:
    with pytest.raises(InvalidValueError, match=re.escape(message)):
        parse_rate(text)


def test_the_type_accepts_none_and_texts_only() -> None:
    assert TYPE.parse(" None ", Path()) is None
    assert TYPE.parse("8kbit", Path()) == Rate(8_000)
    assert TYPE.parse(Rate(9_000), Path()) == Rate(9_000)
    assert (TYPE.format(None), TYPE.format(Rate(80_000, is_in_bytes=True))) == ("none", "10kB/s")
    assert PATTERN.search("none")
    with pytest.raises(InvalidValueError, match="'100' has no unit"):
        TYPE.parse(100, Path())
    with pytest.raises(InvalidValueError, match="not a rate"):
        TYPE.parse(True, Path())
