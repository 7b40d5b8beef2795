"""Texts in columns: pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from tui.lines import amount, ascii_only, clip, ends, fit, length, number, seconds, spark, wrap

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(TEXTS, st.integers(0, 50), st.booleans())
def test_a_cell_is_exactly_as_wide_as_its_column(text: str, width: int, right: bool) -> None:  # noqa: FBT001  hypothesis gives it by name
    assert cell_len(fit(text, width, right=right)) == width


@given(TEXTS, st.integers(10, 60))
def test_nothing_reaches_the_terminal_that_it_would_obey(text: str, width: int) -> None:
    assert fit(text, width).isprintable()
    assert all(line.isprintable() for line in wrap(text, width))


@given(TEXTS, st.integers(9, 60), st.integers(0, 8))
def test_wrapped_lines_are_never_too_wide_and_lose_nothing(text: str, width: int, indent: int) -> None:
    lines = wrap(text, width, indent)
    assert all(cell_len(line) <= max(width, indent + 8) for line in lines)
    if text.isprintable():
        assert "".join("".join(lines).split()) == "".join(text.split())


def test_long_words_are_broken() -> None:
    assert wrap("a" * 25, 10) == ["a" * 10, "a" * 10, "a" * 5]
    assert wrap("one two three", 8) == ["one two", "three"]
    assert wrap("", 10) == [""]


@given(TEXTS)
def test_ascii_is_as_wide_as_what_it_stands_for(text: str) -> None:
    plain = ascii_only(text)
    assert plain.isascii()
    if text.isprintable():
        assert cell_len(plain) == cell_len(text)


@given(st.lists(st.tuples(TEXTS.filter(str.isprintable), st.just("dim")), max_size=5), st.integers(1, 60))
def test_a_clipped_line_is_not_too_wide(line: list[tuple[str, str]], width: int) -> None:
    assert length(clip(tuple(line), width)) <= width


def test_two_ends_share_a_line() -> None:
    assert ends((("left", ""),), (("right", ""),), 12) == (("left", ""), ("   ", ""), ("right", ""))
    assert length(ends((("a long left", ""),), (("right", ""),), 12)) == 12
    assert length(ends((("left", ""),), (("much too long right", ""),), 12)) <= 12


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (980, "980"), (999.6, "1.0K"), (1536, "1.5K"), (84.2 * 1024**2, "84.2M"), (5 * 1024**5, "5P")],
)
def test_amounts(count: float, text: str) -> None:
    assert amount(count) == text


@given(st.floats(0, 1e17))
def test_amounts_are_short(count: float) -> None:
    assert len(amount(count)) <= 5


def test_numbers_and_waits() -> None:
    assert [number(n) for n in (7, 99_999, 1_000_000)] == ["7", "99999", "977k"]
    spans = (-1, 0, 2.14, 9.96, 14, 185, 7800, 400_000)
    assert [seconds(s) for s in spans] == ["0.0s", "0.0s", "2.1s", "10s", "14s", "3m05s", "2h10m", "4d"]


def test_sparks() -> None:
    assert spark([0, 1, 4, 8], 6) == "  ▁▂▄█"
    assert spark([None, 2], 2) == " █"
    assert spark([1, 2, 3], 2, 4) == "▄▆"
    assert spark([5], 0) == ""
    assert spark([], 3) == "   "
