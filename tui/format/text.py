"""Styled text: a line is a tuple of spans, a span is a text and the name of its style.

All formatting of the screen produces lines, and is tested without a screen. Texts are literal: they contain no markup
and no control characters.
"""

from __future__ import annotations

import itertools
import math
import re
import time
import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from rich.cells import cell_len, chop_cells, set_cell_size

from orchestrator.process.terminal_text import printable
from orchestrator.state_display import ASCII_SIGNS
from tunnel.model.state import StateColor
from tunnel.model.wording import plural as count_with_noun

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Span = tuple[str, str]
"""A text and the name of its style, one of STYLES; empty for plain text."""
Line = tuple[Span, ...]

STYLES: Final = (*StateColor, "gone", "title", "dim", "key", "warn", "severe", "spark", "mark", "pick")
"""Names of styles; the style sheet gives each its colours."""

NOTHING: Final = "—"
_BARS: Final = " ▁▂▃▄▅▆▇█"
_ELLIPSIS: Final = "…"

_ASCII: Final = {
    **ASCII_SIGNS,
    **dict(zip(_BARS[1:], "_.,-=+*#", strict=True)),
    **dict.fromkeys("─━═▔▁⎯", "-"),
    **dict.fromkeys("│┃║▏▎▍▌▋▊▉▐▕", "|"),
    **dict.fromkeys("╌╍┄┈", "."), **dict.fromkeys("╎╏┆┊", ":"), **dict.fromkeys("═", "="),
    **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╯╰┏┓┗┛╔╗╚╝╸╺", "+"),
    "—": "-", "…": "~", "↓": "v", "↑": "^", "▼": "v", "▲": "^", "▶": ">", "▷": ">", "◀": "<", "↻": "@",
    "→": ">", "←": "<",
    "⏎": "E", "✓": "+", "✔": "+", "▮": "|", "≥": ">", "·": ".", "▪": "#", "■": "#", "□": ".", "█": "#",
    "⭘": "o", "◉": "*", "▄": "=", "▀": "=", "🔎": "> ", "⚠": "!", "µ": "u",
    "μ": "u", "§": "S", "≤": "<", "•": "*", "“": '"', "”": '"', "\N{EN DASH}": "-", "\N{MINUS SIGN}": "-",
    "\N{MULTIPLICATION SIGN}": "x", "\N{RIGHT SINGLE QUOTATION MARK}": "'", "\N{NO-BREAK SPACE}": " ",
}  # fmt: skip


def to_ascii(text: str) -> str:
    """Return the text in ASCII characters, exactly as wide."""
    return text if text.isascii() else "".join(_ascii_character(character) for character in text)


@lru_cache(4096)
def _ascii_character(character: str) -> str:
    if character.isascii() or character in _ASCII:
        return _ASCII.get(character, character)
    base = unicodedata.normalize("NFKD", character)[0]  # the letter without its accent
    width = cell_len(character)
    return base if base.isascii() and base.isprintable() and width == 1 else "?" * width


@lru_cache(8192)
def fit(text: str, width: int, *, right: bool = False) -> str:
    """Return the text in exactly ``width`` columns, cut with an ellipsis if it is longer."""
    text = printable(text)
    length = cell_len(text)
    if length > width:
        return set_cell_size(text, width - 1) + _ELLIPSIS if width > 0 else ""
    gap = " " * (width - length)
    return gap + text if right else text + gap


def highlight(line: Line, pattern: re.Pattern[str], style: str) -> Line:
    """Return the line with another style where the pattern matches its text, also from one span to the next.

    Returns the same line if there is no match.
    """
    matches = [match.span() for match in pattern.finditer("".join(text for text, _ in line)) if match.group()]
    if not matches:
        return line
    cuts = sorted({position for span in matches for position in span})
    spans: list[Span] = []
    start = 0
    for text, own in line:
        ends = [cut - start for cut in cuts if start < cut < start + len(text)]
        for first, last in itertools.pairwise([0, *ends, len(text)]):
            is_match = any(begin <= start + first < end for begin, end in matches)
            spans.append((text[first:last], style if is_match else own))
        start += len(text)
    return tuple(spans)


def wrap(text: str, width: int, indent: int = 0) -> list[str]:
    """Return the text in lines of at most ``width`` columns, broken at spaces if possible; later ones are indented."""
    width = max(width, indent + 8)
    lines: list[str] = []
    current = ""
    for word in printable(text).split(" "):
        candidate = f"{current} {word}" if current else word
        if cell_len(candidate) <= width:
            current = candidate
            continue
        if current.strip():
            lines.append(current)
        first, *rest = chop_cells(word, width - indent) or [""]
        for piece in (first, *rest)[:-1]:
            lines.append(" " * indent + piece if lines else piece)
        last = (first, *rest)[-1]
        current = " " * indent + last if lines else last
    return [*lines, current]


def paragraph(text: str, width: int, style: str = "") -> list[Line]:
    """Return a text wrapped to ``width`` columns, in one style."""
    return [((part, style),) for part in wrap(text, width)]


def length(line: Iterable[Span]) -> int:
    """Return the columns that a line takes."""
    return sum(cell_len(text) for text, _ in line)


def justify(left: Line, right: Line, width: int) -> Line:
    """Return a line with one part at each end; if both do not fit, the left part is cut first."""
    room = width - length(right)
    if room < 2:
        return clip(left, width)
    left = clip(left, room - 1)
    return (*left, (" " * (room - length(left)), ""), *right)


def join_spans(groups: Iterable[Sequence[Span]], gap: str = "  ") -> Line:
    """Return groups of spans as one line, with a gap between two groups."""
    line: list[Span] = []
    for group in groups:
        if group:
            line += ([(gap, "")] if line else []) + list(group)
    return tuple(line)


def clip(line: Line, width: int) -> Line:
    """Return the line in at most ``width`` columns."""
    if length(line) <= width:
        return line
    shown: list[Span] = []
    for text, style in line:
        room = width - length(shown)
        if room <= 0:
            break
        shown.append((fit(text, room), style) if cell_len(text) > room else (text, style))
    return tuple(shown)


def sparkline(values: Sequence[float | None], width: int, top: float | None = None) -> str:
    """Return the last ``width`` values as bars of eighths between zero and ``top`` (None: the highest value).

    An unknown value is a space; a value above zero is always visible.
    """
    last = values[-width:] if width > 0 else ()
    highest = top or max((value for value in last if value is not None), default=0.0)
    bars = (" " if value is None else _BARS[_eighths(value, highest)] for value in last)
    return "".join(bars).rjust(width)


def _eighths(value: float, highest: float) -> int:
    if value <= 0 or highest <= 0:
        return 1
    return min(8, max(2, math.ceil(8 * value / highest)))


def format_bytes(count: float) -> str:
    """Return bytes, or bytes a second, in at most five characters: ``0``, ``980``, ``1.5K``, ``84.2M``."""
    for unit in ("", "K", "M", "G", "T"):
        if count < 999.5:
            return f"{count:.0f}{unit}" if not unit or count >= 99.95 else f"{count:.1f}{unit}"
        count /= 1024
    return f"{count:.0f}P"


def format_rate(rate: float) -> Span:
    """Return bytes a second as a span; below half a byte there is no traffic."""
    return (format_bytes(rate), "") if rate >= 0.5 else (NOTHING, "dim")


def format_count(count: int) -> str:
    """Return a count in at most five characters."""
    return str(count) if count < 100_000 else format_bytes(count).lower()


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: ``no visitors``, ``1 visitor``, ``2 visitors``."""
    return count_with_noun(count, noun) if count else f"no {noun}s"


def format_seconds(span: float) -> str:
    """Return a time span: ``2.1s``, ``14s``, ``3m05s``, ``2h10m``, ``4d``."""
    if span < 9.95:
        return f"{max(0.0, span):.1f}s"
    whole = round(span)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d"


def format_milliseconds(rtt: float) -> str:
    """Return a round trip, with a decimal below ten milliseconds."""
    return f"{rtt:.1f}ms" if rtt < 9.95 else f"{rtt:.0f}ms"


def format_time(moment: float | None) -> str:
    """Return a time (seconds since the epoch) as the local time of day."""
    return NOTHING if moment is None else time.strftime("%H:%M:%S", time.localtime(moment))
