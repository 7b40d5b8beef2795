"""The table of tunnels that ``ps`` and ``fleet ps`` print."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from orchestrator.process.logformat import printable
from orchestrator.state_display import format_state

if TYPE_CHECKING:
    from orchestrator.status.json_types import TunnelJson

Paint = Callable[[str, str], str]
"""Takes a text and a state; returns the text in the colour of the state."""

_HEADERS: Final = (
    "NAME",
    "ROLE",
    "DIRECTION",
    "STATE",
    "TUNNEL",
    "TARGET",
    "POOL",
    "VISITORS",
    "FROM VISITORS",
    "TO VISITORS",
    "AUTH",
    "WORKER",
    "REASON",
)
_STATE: Final = _HEADERS.index("STATE")
_WORKER: Final = _HEADERS.index("WORKER")
_UNITS: Final = ("B", "K", "M", "G", "T", "P")
_GAP: Final = "  "


def display_width(text: str) -> int:
    """Return the number of terminal columns that a text occupies."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def truncate(text: str, columns: int) -> str:
    """Return the text, shortened to a number of columns."""
    if display_width(text) <= columns:
        return text
    width = 0
    for end, character in enumerate(text):
        width += display_width(character)
        if width > columns - 1:
            return f"{text[:end]}…"
    return f"{text}…"


def format_bytes(count: int) -> str:
    """Return a number of bytes in at most five characters: ``0B``, ``1.5K``, ``84.2M``."""
    value = float(count)
    for unit in _UNITS:
        if value < 1000 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{value:.0f}{unit}" if unit == "B" or value >= 99.95 else f"{value:.1f}{unit}"


def align_columns(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as lines of aligned columns; the last column is not padded."""
    widths = [max(map(display_width, cells)) for cells in zip(*rows, strict=True)]
    return "\n".join(_line(cells, widths, "", None, lambda text, _: text) for cells in rows)


def format_table(tunnels: Iterable[TunnelJson], *, columns: int | None, paint: Paint) -> str:
    """Return a line of headings and one line for each tunnel, truncated to ``columns`` if given.

    The column of workers is shown if a tunnel runs in a worker.
    """
    tunnels = list(tunnels)
    rows = [_HEADERS, *map(_row, tunnels)]
    if not any(tunnel["worker"] for tunnel in tunnels):
        rows = [(*cells[:_WORKER], *cells[_WORKER + 1 :]) for cells in rows]
    states = ["", *(tunnel["state"] for tunnel in tunnels)]
    widths = [max(map(display_width, cells)) for cells in zip(*rows, strict=True)]
    return "\n".join(_line(cells, widths, state, columns, paint) for cells, state in zip(rows, states, strict=True))


def _row(tunnel: TunnelJson) -> tuple[str, ...]:
    pool, visitors, transferred = tunnel["pool"], tunnel["connections"], tunnel["bytes"]
    state = tunnel["state"]
    wait = f"{tunnel['cooldown']['remaining_s']:.1f}s" if state == "cooldown" else ""
    cells = (
        truncate(tunnel["name"], 40),
        tunnel["role"],
        tunnel["direction"] or "-",
        format_state(state, wait),
        tunnel["tunnel_addr"],
        tunnel["target_addr"],
        f"{pool['idle']}/{pool['capacity']}",
        str(visitors["active"]),
        format_bytes(transferred["in"]),
        format_bytes(transferred["out"]),
        tunnel["auth"],
        str(tunnel["worker"] or "-"),
        tunnel["reason"] or "",
    )
    return tuple(printable(cell) for cell in cells)


def _line(cells: Sequence[str], widths: Sequence[int], state: str, columns: int | None, paint: Paint) -> str:
    remaining = columns
    parts = []
    for index, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        text = cell if index == len(cells) - 1 else cell + " " * (width - display_width(cell))
        if remaining is not None:
            text = truncate(text, remaining) if remaining > 0 else ""
            remaining -= display_width(text) + len(_GAP)
        parts.append(paint(text, state) if state and index == _STATE else text)
    return _GAP.join(part for part in parts if part).rstrip()
