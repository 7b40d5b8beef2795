"""The list of visitors: which are shown, in which order, and each as a row.

A new column is one row of _COLUMNS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orchestrator.visitor_table import SORT_KEYS, format_age, sort_visitors
from tui.format.text import NOTHING, Line, Span, fit, format_bytes, format_rate
from tui.model.selection import matches_pattern
from tunnel.model.visitors import CONNECTED

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from orchestrator.status.json_types import VisitorJson

VISITOR_SORTS: Final = tuple(SORT_KEYS)
"""The names of the orders, in the order in which a key chooses them."""
_IS_HIGHEST_FIRST: Final = frozenset({"rate", "bytes", "age"})
_GAP: Final = " "


@dataclass(frozen=True, slots=True)
class _VisitorColumn:
    """A column of the list."""

    title: str
    width: int
    min_screen: int
    """width of the screen from which on it is shown"""
    sort: str
    """the order that a click on its title chooses; empty for none"""
    cell: Callable[[VisitorJson], Span]
    is_right: bool = True


def _format_bits(bits_per_s: int | None) -> Span:
    return (NOTHING, "dim") if bits_per_s is None else format_rate(bits_per_s / 8)


def _rate_out(visitor: VisitorJson) -> Span:
    return _format_bits(visitor["rates"] and visitor["rates"]["out_bps"])


def _rate_in(visitor: VisitorJson) -> Span:
    return _format_bits(visitor["rates"] and visitor["rates"]["in_bps"])


def _state(visitor: VisitorJson) -> Span:
    return (format_age(visitor["age_s"]), "") if visitor["state"] == CONNECTED else (visitor["state"], "warn")


_COLUMNS: Final = (
    _VisitorColumn("ADDRESS", 22, 0, "address", lambda v: (v["address"] or NOTHING, "title"), is_right=False),
    _VisitorColumn("TUNNEL", 16, 60, "tunnel", lambda v: (v["tunnel"], ""), is_right=False),
    _VisitorColumn("PROTO", 5, 92, "", lambda v: (v["proto"], ""), is_right=False),
    _VisitorColumn("AGE", 8, 0, "age", _state),
    _VisitorColumn("↓/s", 7, 44, "rate", _rate_out),
    _VisitorColumn("↑/s", 7, 44, "rate", _rate_in),
    _VisitorColumn("↓", 7, 68, "bytes", lambda v: (format_bytes(v["bytes"]["out"]), "")),
    _VisitorColumn("↑", 7, 68, "bytes", lambda v: (format_bytes(v["bytes"]["in"]), "")),
    _VisitorColumn("TARGET", 22, 110, "target", lambda v: (v["target"] or NOTHING, "dim"), is_right=False),
    _VisitorColumn("ID", 22, 134, "", lambda v: (v["id"] or NOTHING, "dim"), is_right=False),
)


def choose_visitors(visitors: Iterable[VisitorJson], text: str, sort: str, *, is_reversed: bool) -> list[VisitorJson]:
    """Return the visitors that match a filter, in an order of VISITOR_SORTS."""
    words = text.casefold().split()
    chosen = sort_visitors((one for one in visitors if _matches(one, words)), sort)
    return chosen[::-1] if is_reversed else chosen


def _matches(visitor: VisitorJson, words: Sequence[str]) -> bool:
    """Whether each word is a part, or a pattern, of a text of the visitor; ``!word`` must not be."""
    texts = [(visitor[key] or "").casefold() for key in ("address", "tunnel", "proto", "target", "id", "state")]

    def is_found(word: str) -> bool:
        return any(word in text or matches_pattern(text, word) for text in texts)

    return all(is_found(word.removeprefix("!")) is not word.startswith("!") for word in words if word != "!")


def visitor_key(visitor: VisitorJson) -> tuple[str, str | None, str | None]:
    """Return what tells visitors apart: one that both ends of a tunnel list is shown twice."""
    return visitor["tunnel"], visitor["id"], visitor["address"]


def visitor_heading(width: int, sort: str, *, is_reversed: bool) -> Line:
    """Return the titles; those of the column that sorts have an arrow: ▲ if values increase from row to row."""
    arrow = "▼" if (sort in _IS_HIGHEST_FIRST) is not is_reversed else "▲"
    spans: list[Span] = [(" ", "dim")]
    for column, cells in _laid_out(width):
        is_sorting = column.sort == sort
        title = f"{column.title}{arrow}" if is_sorting else column.title
        spans.append((fit(title, cells, right=column.is_right) + _GAP, "key" if is_sorting else "dim"))
    return tuple(spans)


def sort_at(width: int, x: int) -> str:
    """Return the order that a click at column ``x`` of the heading chooses; empty for none."""
    position = 1
    for column, cells in _laid_out(width):
        if position <= x < position + cells + len(_GAP):
            return column.sort
        position += cells + len(_GAP)
    return ""


def visitor_row(visitor: VisitorJson, width: int) -> Line:
    """Return a visitor as a row."""
    spans: list[Span] = [(" ", "")]
    for column, cells in _laid_out(width):
        text, style = column.cell(visitor)
        spans.append((fit(text, cells, right=column.is_right) + _GAP, style))
    return tuple(spans)


def _laid_out(width: int) -> list[tuple[_VisitorColumn, int]]:
    """Return the columns that fit with their widths; the rest of the width goes to the address."""
    columns = [column for column in _COLUMNS if width >= column.min_screen]
    left = width - 1 - sum(column.width + len(_GAP) for column in columns)
    return [(one, one.width + max(-8, min(left, 20)) if one is _COLUMNS[0] else one.width) for one in columns]
