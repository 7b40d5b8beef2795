"""What is shown, as plain data: a line is a tuple of spans, a span is a text and the name of its style.

Everything that decides what stands on the screen makes lines, and can be tested without one. Texts are literal: nothing
in them is markup, and nothing in them can move the cursor.
"""

from __future__ import annotations

import math
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from rich.cells import cell_len, chop_cells, set_cell_size

from orchestrator.process.logformat import printable
from orchestrator.state_display import OFFLINE_SIGN, STATE_SIGNS
from tunnel.model.state import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Span = tuple[str, str]
"""A text, and the name of its style: a state's, or one of STYLES; empty for plain text."""
Line = tuple[Span, ...]

STYLES: Final = (*State, "gone", "title", "dim", "key", "warn", "error", "spark", "mark", "pick")
"""Names of styles; a widget that shows lines gives each its colours."""

NOTHING: Final = "—"
_BARS: Final = " ▁▂▃▄▅▆▇█"
_ELLIPSIS: Final = "…"

_ASCII: Final = {
    **dict(zip((*STATE_SIGNS.values(), OFFLINE_SIGN), "*.~?zdx-%", strict=True)),
    **dict(zip(_BARS[1:], "_.,-=+*#", strict=True)),
    **dict.fromkeys("─━═▔▁⎯", "-"),
    **dict.fromkeys("│┃║▏▎▍▌▋▊▉▐▕", "|"),
    **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╯╰┏┓┗┛╔╗╚╝╸╺", "+"),
    "—": "-", "…": "~", "↓": "v", "↑": "^", "▼": "v", "▲": "^", "▶": ">", "◀": "<", "→": ">", "←": "<",
    "⏎": "E", "✓": "+", "✔": "+", "▮": "|", "≥": ">", "·": ".", "▪": "#", "■": "#", "□": ".", "█": "#",
    "⭘": "o", "◉": "*", "▄": "=", "▀": "=", "🔎": "> ", "⚠": "!", "µ": "u", "\N{NO-BREAK SPACE}": " ",
}  # fmt: skip


def ascii_only(text: str) -> str:
    """The text for a terminal that knows ASCII alone, exactly as wide."""
    return text if text.isascii() else "".join(_plain(character) for character in text)


@lru_cache(4096)
def _plain(character: str) -> str:
    return character if character.isascii() else _ASCII.get(character, "?" * cell_len(character))


@lru_cache(8192)
def fit(text: str, width: int, *, right: bool = False) -> str:
    """The text in exactly ``width`` columns, cut with an ellipsis where it is longer."""
    text = printable(text)
    length = cell_len(text)
    if length > width:
        return set_cell_size(text, width - 1) + _ELLIPSIS if width > 0 else ""
    gap = " " * (width - length)
    return gap + text if right else text + gap


def wrap(text: str, width: int, indent: int = 0) -> list[str]:
    """The text in lines of at most ``width`` columns, broken at spaces where there are any; further ones indented."""
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


def length(line: Iterable[Span]) -> int:
    """Columns that a line takes."""
    return sum(cell_len(text) for text, _ in line)


def ends(left: Line, right: Line, width: int) -> Line:
    """A line with one part at each end; where both do not fit, the left one is cut, then the right one."""
    room = width - length(right)
    if room < 2:
        return clip(left, width)
    left = clip(left, room - 1)
    return (*left, (" " * (room - length(left)), ""), *right)


def clip(line: Line, width: int) -> Line:
    """The line in at most ``width`` columns."""
    if length(line) <= width:
        return line
    shown: list[Span] = []
    for text, style in line:
        room = width - length(shown)
        if room <= 0:
            break
        shown.append((fit(text, room), style) if cell_len(text) > room else (text, style))
    return tuple(shown)


def spark(values: Sequence[float | None], width: int, top: float | None = None) -> str:
    """The last ``width`` values as bars of eighths between zero and ``top`` (their highest, where None).

    An unknown value is a space; one that is above zero is seen, however small it is.
    """
    last = values[-width:] if width > 0 else ()
    highest = top or max((value for value in last if value is not None), default=0.0)
    bars = (" " if value is None else _BARS[_eighths(value, highest)] for value in last)
    return "".join(bars).rjust(width)


def _eighths(value: float, highest: float) -> int:
    if value <= 0 or highest <= 0:
        return 1
    return min(8, max(2, math.ceil(8 * value / highest)))


def amount(count: float) -> str:
    """Bytes, or bytes a second, in at most five characters: ``0``, ``980``, ``1.5K``, ``84.2M``."""
    for unit in ("", "K", "M", "G", "T"):
        if count < 999.5:
            return f"{count:.0f}{unit}" if not unit or count >= 99.95 else f"{count:.1f}{unit}"
        count /= 1024
    return f"{count:.0f}P"


def number(count: int) -> str:
    """A count in at most five characters."""
    return str(count) if count < 100_000 else amount(count).lower()


def seconds(span: float) -> str:
    """A short wait: ``2.1s``, ``14s``, ``3m05s``, ``2h10m``, ``4d``."""
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


def clock(moment: float | None) -> str:
    """A moment (seconds since the epoch) as the local time of day."""
    return NOTHING if moment is None else time.strftime("%H:%M:%S", time.localtime(moment))
