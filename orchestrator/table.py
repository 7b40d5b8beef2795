"""Snapshots, as the local API gives them, in a table for people."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from orchestrator.process.logformat import printable
from orchestrator.signs import shown_state

Paint = Callable[[str, str], str]
"""(text, state) to the text in the state's colour."""

_HEADERS: Final = (
    "NAME",
    "ROLE",
    "DIRECTION",
    "STATE",
    "TUNNEL",
    "TARGET",
    "POOL",
    "CONN",
    "IN",
    "OUT",
    "AUTH",
    "WORKER",
    "REASON",
)
_STATE: Final = _HEADERS.index("STATE")
_WORKER: Final = _HEADERS.index("WORKER")
_UNITS: Final = ("B", "K", "M", "G", "T", "P")
_GAP: Final = "  "


def width(text: str) -> int:
    """Columns of a terminal that a text takes."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def clip(text: str, columns: int) -> str:
    """The text, shortened to so many columns."""
    if width(text) <= columns:
        return text
    while text and width(text) > columns - 1:
        text = text[:-1]
    return f"{text}…"


def size(count: int) -> str:
    """Bytes in at most five characters: ``0B``, ``1.5K``, ``84.2M``."""
    value = float(count)
    for unit in _UNITS:
        if value < 1000 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{value:.0f}{unit}" if unit == "B" or value >= 99.95 else f"{value:.1f}{unit}"


def align(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines of columns, the last one as long as it is."""
    widths = [max(map(width, cells)) for cells in zip(*rows, strict=True)]
    return "\n".join(_line(cells, widths, "", None, lambda text, _: text) for cells in rows)


def table(tunnels: Iterable[Mapping[str, Any]], *, columns: int | None, paint: Paint) -> str:
    """One line for each tunnel under a line of headings, clipped to ``columns`` where that is given.

    Which worker has a tunnel is shown where there are workers.
    """
    tunnels = list(tunnels)
    rows = [_HEADERS, *map(_row, tunnels)]
    if not any(tunnel["worker"] for tunnel in tunnels):
        rows = [(*cells[:_WORKER], *cells[_WORKER + 1 :]) for cells in rows]
    states = ["", *(str(tunnel["state"]) for tunnel in tunnels)]
    widths = [max(map(width, cells)) for cells in zip(*rows, strict=True)]
    return "\n".join(_line(cells, widths, state, columns, paint) for cells, state in zip(rows, states, strict=True))


def _row(tunnel: Mapping[str, Any]) -> tuple[str, ...]:
    pool, connections, moved = tunnel["pool"], tunnel["connections"], tunnel["bytes"]
    state = str(tunnel["state"])
    wait = f"{tunnel['cooldown']['remaining_s']:.1f}s" if state == "cooldown" else ""
    cells = (
        clip(tunnel["name"], 40),
        tunnel["role"],
        tunnel["direction"] or "-",
        shown_state(state, wait),
        tunnel["tunnel_addr"],
        tunnel["target_addr"],
        f"{pool['idle']}/{pool['capacity']}",
        str(connections["active"]),
        size(moved["in"]),
        size(moved["out"]),
        tunnel["auth"],
        str(tunnel["worker"] or "-"),
        tunnel["reason"] or "",
    )
    return tuple(printable(cell) for cell in cells)


def _line(cells: Sequence[str], widths: Sequence[int], state: str, columns: int | None, paint: Paint) -> str:
    left = columns
    parts = []
    for index, (cell, wide) in enumerate(zip(cells, widths, strict=True)):
        text = cell if index == len(cells) - 1 else cell + " " * (wide - width(cell))
        if left is not None:
            text = clip(text, left) if left > 0 else ""
            left -= width(text) + len(_GAP)
        parts.append(paint(text, state) if state and index == _STATE else text)
    return _GAP.join(part for part in parts if part).rstrip()
