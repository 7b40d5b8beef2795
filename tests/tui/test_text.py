"""Texts in columns of the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from tui.format.text import (
    clip,
    fit,
    format_bytes,
    format_count,
    format_seconds,
    justify,
    length,
    sparkline,
    to_ascii,
    wrap,
)
from tunnel.model.state import STATES

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(TEXTS, st.integers(0, 50), st.booleans())
def test_a_cell_is_exactly_as_wide_as_its_column(text: str, width: int, right: bool) -> None:  # noqa: FBT001  hypothesis gives it by name
    assert cell_len(fit(text, width, right=right)) == width


@given(TEXTS, st.integers(10, 60))
def test_no_control_character_reaches_the_terminal(text: str, width: int) -> None:
    assert fit(text, width).isprintable()
    assert all(line.isprintable() for line in wrap(text, width))


@given(TEXTS, st.integers(9, 60), st.integers(0, 8))
def test_wrapped_lines_fit_the_width_and_keep_every_character(text: str, width: int, indent: int) -> None:
    lines = wrap(text, width, indent)
    assert all(cell_len(line) <= max(width, indent + 8) for line in lines)
    if text.isprintable():
        assert "".join("".join(lines).split()) == "".join(text.split())


def test_long_words_are_broken() -> None:
    assert wrap("a" * 25, 10) == ["a" * 10, "a" * 10, "a" * 5]
    assert wrap("one two three", 8) == ["one two", "three"]
    assert wrap("", 10) == [""]


@given(TEXTS)
def test_ascii_text_is_as_wide_as_the_original(text: str) -> None:
    plain = to_ascii(text)
    assert plain.isascii()
    if text.isprintable():
        assert cell_len(plain) == cell_len(text)


PACKAGES = Path(__file__).parents[2]


@pytest.mark.parametrize("folder", ["tui", "orchestrator", "tunnel"])
def test_every_sign_of_the_screen_has_an_ascii_form(folder: str) -> None:
    sources = [file.read_text(encoding="utf-8") for file in (PACKAGES / folder).rglob("*.py")]
    signs = {sign for source in sources for sign in source if not sign.isascii()}
    assert {sign for sign in signs if "?" in to_ascii(sign)} == set()


def test_ascii_signs_of_states_and_links_differ() -> None:
    signs = [to_ascii(info.sign) for info in STATES.values()]
    assert len(set(signs)) == len(signs)
    assert "?" not in signs
    assert to_ascii("══▶ ║ ╌╌▷ ╎") == "==> | ..> :"
    assert to_ascii("Zürich 世") == "Zurich ??"


@given(st.lists(st.tuples(TEXTS.filter(str.isprintable), st.just("dim")), max_size=5), st.integers(1, 60))
def test_a_clipped_line_fits_the_width(line: list[tuple[str, str]], width: int) -> None:
    assert length(clip(tuple(line), width)) <= width


def test_a_justified_line_has_one_part_at_each_end() -> None:
    assert justify((("left", ""),), (("right", ""),), 12) == (("left", ""), ("   ", ""), ("right", ""))
    assert length(justify((("a long left", ""),), (("right", ""),), 12)) == 12
    assert length(justify((("left", ""),), (("much too long right", ""),), 12)) <= 12


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (980, "980"), (999.6, "1.0K"), (1536, "1.5K"), (84.2 * 1024**2, "84.2M"), (5 * 1024**5, "5P")],
)
def test_bytes_are_formatted_with_a_unit(count: float, text: str) -> None:
    assert format_bytes(count) == text


@given(st.floats(0, 1e17))
def test_formatted_bytes_have_at_most_five_characters(count: float) -> None:
    assert len(format_bytes(count)) <= 5


def test_counts_and_time_spans_are_short() -> None:
    assert [format_count(n) for n in (7, 99_999, 1_000_000)] == ["7", "99999", "977k"]
    spans = (-1, 0, 2.14, 9.96, 14, 185, 7800, 400_000)
    assert [format_seconds(s) for s in spans] == ["0.0s", "0.0s", "2.1s", "10s", "14s", "3m05s", "2h10m", "4d"]


def test_a_sparkline_scales_to_its_top() -> None:
    assert sparkline([0, 1, 4, 8], 6) == "  ▁▂▄█"
    assert sparkline([None, 2], 2) == " █"
    assert sparkline([1, 2, 3], 2, 4) == "▄▆"
    assert sparkline([5], 0) == ""
    assert sparkline([], 3) == "   "
