"""Quotas as they are written: sizes and periods."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.model.errors import InvalidValueError
from tunnel.model.quota import MAX_BYTES, MAX_DAYS, Quota, QuotaType, describe_size, parse_quota

TYPE = QuotaType()
quotas = st.builds(Quota, st.integers(1, MAX_BYTES), st.none() | st.integers(1, MAX_DAYS))


@pytest.mark.parametrize(
    ("written", "quota"),
    [
        ("500GB/month", Quota(500 * 10**9)),
        ("50GB/7d", Quota(50 * 10**9, 7)),
        (" 1.5 tib / 30d ", Quota(3 << 39, 30)),
        ("1b/MONTH", Quota(1)),
        ("10kB/1d", Quota(10_000, 1)),
    ],
)
def test_a_quota_is_a_size_and_a_period(written: str, quota: Quota) -> None:
    assert TYPE.parse(written, Path()) == quota


def test_none_is_no_quota() -> None:
    assert TYPE.parse(" None ", Path()) is None
    assert TYPE.format(None) == "none"


@given(quotas)
def test_a_quota_is_printed_as_it_can_be_written(quota: Quota) -> None:
    assert parse_quota(TYPE.format(quota)) == quota
    (schema,) = TYPE.json_schemas()
    assert re.search(str(schema["pattern"]), TYPE.format(quota))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("500GB", "'500GB' is not a quota, as in 500GB/month or 50GB/7d"),
        ("500/month", "is not a quota"),
        ("500Gbit/month", "unknown unit 'Gbit'"),
        ("500GX/month", "unknown unit 'GX'; a quota is in B, kB, MB"),
        ("0GB/month", "is out of range; a quota is at least 1B"),
        ("2000PB/month", "is out of range"),
        ("5GB/year", "'year' is not a period; a quota counts per month, or over 1d to 366d"),
        ("5GB/0d", "'0d' is not a period"),
        ("5GB/367d", "'367d' is not a period"),
        ("-5GB/7d", "is not a quota"),
        ("", "is not a quota"),
    ],
)
def test_another_text_is_a_fault_with_an_example(written: str, message: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        TYPE.parse(written, Path())
    assert message in str(caught.value)


@pytest.mark.parametrize("value", [5, None, True, ["5GB/month"]])
def test_only_a_text_is_a_quota(value: object) -> None:
    with pytest.raises(InvalidValueError, match="not a quota"):
        TYPE.parse(value, Path())


@given(st.text(max_size=40))
def test_any_text_is_a_quota_or_a_fault(text: str) -> None:
    try:
        quota = TYPE.parse(text, Path())
    except InvalidValueError:
        return
    assert quota is None or 1 <= quota.limit <= MAX_BYTES


def test_sizes_for_people_are_rounded() -> None:
    shown = [describe_size(count) for count in (0, 999, 1500, 412_345_678_901, 10**18)]
    assert shown == ["0 B", "999 B", "1.5 kB", "412.3 GB", "1000 PB"]
