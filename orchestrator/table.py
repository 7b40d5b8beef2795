"""The table of tunnels that ``ps`` and ``fleet ps`` print."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final, cast

from orchestrator.process.terminal_text import printable
from orchestrator.state_display import format_state
from tunnel.model.state import STATES, State
from tunnel.model.wording import plural

if TYPE_CHECKING:
    from orchestrator.status.json_types import TunnelJson

Paint = Callable[[str, str], str]
"""Takes a text and a state; returns the text in the colour of the state."""


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of the table, with the order in which a terminal drops columns that do not fit."""

    title: str
    cell: Callable[[TunnelJson], str]
    drop_order: int = 0
    """the highest one goes first; 0: never"""


_MEANINGS: Final = {state.value: info.meaning for state, info in STATES.items() if state is not State.UP}


def describe_reason(tunnel: TunnelJson) -> str:
    """Return why a tunnel is not up: its reason, else what its state means."""
    return tunnel["reason"] or _MEANINGS.get(tunnel["state"], "")


def _format_state(tunnel: TunnelJson) -> str:
    remaining_s = tunnel["cooldown"]["remaining_s"] if tunnel["state"] == "cooldown" else 0.0
    return format_state(tunnel["state"], f"{remaining_s:.1f}s" if remaining_s >= _MIN_COUNTDOWN_S else "")


def _count_refused(tunnel: TunnelJson) -> int:
    """Return how many visitors were refused, as far as this end knows; a fleet is not sent these numbers."""
    refused = cast("Mapping[str, int | None]", tunnel.get("refused", {}))
    return sum(filter(None, map(refused.get, _refused_visitors())))


@cache
def _refused_visitors() -> tuple[str, ...]:
    """Return the reasons for which visitors are refused. Imported late: only the columns of -o wide need them."""
    from tunnel.model.snapshot import REFUSED_VISITORS  # noqa: PLC0415  as above

    return REFUSED_VISITORS


def _format_keys(tunnel: TunnelJson) -> str | None:
    """Return the names of the keys of its links: the first, and how many others there are."""
    names = list(dict.fromkeys(link["client"] for link in tunnel.get("links", ()) if link["client"]))
    return f"{names[0]} +{len(names) - 1}" if len(names) > 1 else tunnel["key_name"]


def count_up_targets(tunnel: TunnelJson) -> str:
    """Return how many of several targets are up, and how many there are; empty for one target, or at an ingress."""
    targets = [target for target in tunnel.get("targets", ()) if target["checks"] is not None]
    return f"{sum(target['state'] == 'up' for target in targets)}/{len(targets)} up" if targets else ""


def _count_wanted_links(tunnel: TunnelJson) -> int:
    """Return how many links a tunnel has if all its servers or clients are there; fewer ``clients`` disconnect none."""
    return max(len(tunnel.get("servers", ())), tunnel.get("clients") or 0, len(tunnel.get("links", ())))


def _format_links(tunnel: TunnelJson) -> str:
    """Return how many links can serve visitors, and how many there may be."""
    is_up = [link["state"] == "up" for link in tunnel.get("links", ())]
    wanted = _count_wanted_links(tunnel)
    return f"{sum(is_up)}/{wanted}" if wanted else "-"


def _rates(tunnel: TunnelJson) -> tuple[int | None, int | None]:
    """Return the bits per second from and to visitors, as far as they are known."""
    rates = tunnel.get("rates")
    return (rates["in_bps"], rates["out_bps"]) if rates else (None, None)


def _udp_carriers(tunnel: TunnelJson) -> str:
    """Return how UDP travels over the links; a tunnel of TCP has nothing."""
    return "+".join(sorted({carrier for link in tunnel.get("links", ()) if (carrier := link["udp_carrier"])}))


_PROTO: Final = "PROTO"
_UDP: Final = "UDP"
_RATE_FROM: Final = "RATE FROM"
_RATE_TO: Final = "RATE TO"
_AUTH: Final = "AUTH"
_TARGETS: Final = "TARGETS"
_SERVICE: Final = "SERVICE"
_KEY: Final = "KEY"
_WORKER: Final = "WORKER"
_REFUSED: Final = "REFUSED"
_LINKS: Final = "LINKS"
_PUBLISHED_BY: Final = "PUBLISHED BY"
_STATE: Final = "STATE"
_NAME: Final = "NAME"
_COLUMNS: Final = (
    _Column(_NAME, lambda t: t["name"]),
    _Column("ROLE", lambda t: t["role"], 9),
    _Column("DIRECTION", lambda t: t["direction"] or "-", 14),
    _Column(_STATE, _format_state),
    _Column("TUNNEL", lambda t: t["tunnel_addr"], 8),
    _Column("TARGET", lambda t: t["target_addr"], 6),
    _Column(_TARGETS, lambda t: count_up_targets(t) or "-", 4),
    _Column("POOL", lambda t: f"{t['pool']['idle']}/{t['pool']['capacity']}", 5),
    _Column("VISITORS", lambda t: str(t["connections"]["active"]), 1),
    _Column("FROM VISITORS", lambda t: format_bytes(t["bytes"]["in"]), 16),
    _Column("TO VISITORS", lambda t: format_bytes(t["bytes"]["out"]), 15),
    _Column(_RATE_FROM, lambda t: format_rate(_rates(t)[0]), 20),
    _Column(_RATE_TO, lambda t: format_rate(_rates(t)[1]), 19),
    _Column(_AUTH, lambda t: t["auth"], 13),
    _Column(_SERVICE, lambda t: t["service"] or "-", 10),
    _Column(_KEY, lambda t: _format_keys(t) or "-", 17),
    _Column(_PUBLISHED_BY, lambda t: t.get("published_by") or "-", 18),
    _Column(_WORKER, lambda t: str(t["worker"] or "-"), 21),
    _Column(_REFUSED, lambda t: str(_count_refused(t) or "-"), 2),
    _Column(_LINKS, _format_links, 3),
    _Column(_PROTO, lambda t: t.get("proto", "-"), 11),
    _Column(_UDP, lambda t: _udp_carriers(t) or "-", 12),
)
_ONLY_IF_USED: Final[dict[str, Callable[[TunnelJson], object]]] = {
    _RATE_FROM: lambda t: any(_rates(t)),
    _RATE_TO: lambda t: any(_rates(t)),
    _TARGETS: count_up_targets,
    _SERVICE: lambda t: t["service"],
    _KEY: _format_keys,
    _PUBLISHED_BY: lambda t: t.get("published_by"),
    _WORKER: lambda t: t["worker"],
    _REFUSED: _count_refused,
    _PROTO: lambda t: t.get("proto", "tcp") != "tcp",
    _UDP: _udp_carriers,
    _LINKS: lambda t: t.get("servers") or _count_wanted_links(t) > 1,
}
"""Columns that are shown if one of the tunnels has a value there."""
_REASON: Final = _Column("REASON", describe_reason)
TITLES: Final = tuple(column.title for column in (*_COLUMNS, _REASON))
"""What the headings of the table can be."""
_TROUBLES: Final[dict[str, Callable[[TunnelJson], object]]] = {
    _AUTH: lambda t: t["auth"] == "open",
    _TARGETS: lambda t: any(target["state"] != "up" for target in t.get("targets", ())),
    _LINKS: lambda t: sum(link["state"] == "up" for link in t.get("links", ())) < _count_wanted_links(t),
    _REFUSED: _count_refused,
}
"""Columns that show trouble if one of the tunnels has it; they are among the last to go then."""
_LAST: Final = 100
"""divides the drop order of columns that show trouble, which is then below those of all others"""
_MIN_NAME_WIDTH: Final = 32
"""Columns that a name keeps, if it needs them, before other columns are dropped."""
_MIN_COUNTDOWN_S: Final = 0.05
"""Less would be shown as 0.0 seconds."""
_UNITS: Final = ("B", "K", "M", "G", "T", "P")
_GAP: Final = "  "
_INDENT: Final = "    "
"""in front of a reason below its tunnel"""


def display_width(text: str) -> int:
    """Return the number of terminal columns that a text occupies."""
    if text.isascii():
        return len(text)
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


def format_rate(bits_per_s: int | None) -> str:
    """Return a rate in bytes per second; ``-`` if it is not known."""
    return "-" if bits_per_s is None else f"{format_bytes(bits_per_s // 8)}/s"


def align_columns(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as lines of aligned columns; the last column is not padded."""
    widths = _widths(rows)
    return "\n".join(_line(cells, widths, None, "", None, _no_paint) for cells in rows)


def format_table(
    tunnels: Iterable[TunnelJson],
    *,
    columns: int | None,
    paint: Paint,
    is_wide: bool = False,
    wide_option: str = "",
) -> str:
    """Return a line of headings and the tunnels, for a terminal of ``columns``; None: for a file or a pipe.

    Without a terminal, or with ``is_wide``, each tunnel is one line with all columns, and nothing is shortened. On a
    terminal that is too narrow for that, columns are dropped, and the reason of a tunnel is in full on lines below it;
    a last line names ``wide_option``, if there is one, and how many columns it would add. The columns of rates,
    services, names of keys, workers and refused visitors are shown if a tunnel has such a value.
    """
    tunnels = list(tunnels)
    unused = {title for title, value in _ONLY_IF_USED.items() if not any(map(value, tunnels))}
    chosen = [column for column in _COLUMNS if column.title not in unused]
    lines = _format_lines([*chosen, _REASON], tunnels, paint)
    if (
        columns is None
        or is_wide
        or max(map(display_width, _format_lines([*chosen, _REASON], tunnels, _no_paint))) <= columns
    ):
        return "\n".join(lines)
    kept = _drop_columns(chosen, tunnels, columns)
    heading, *rows = _format_lines(kept, tunnels, paint, columns)
    parts = [heading]
    for tunnel, row in zip(tunnels, rows, strict=True):
        parts += [row, *_reason_lines(tunnel, columns)]
    dropped = len(chosen) - len(kept)
    if dropped and wide_option:
        parts.append(truncate(f"({wide_option} shows {plural(dropped, 'more column')})", columns))
    return "\n".join(parts)


def _no_paint(text: str, _: str) -> str:
    return text


def _cells(columns: Sequence[_Column], tunnels: Sequence[TunnelJson]) -> list[list[str]]:
    """Return the rows of cells, the headings first."""
    return [
        [column.title for column in columns],
        *([printable(column.cell(tunnel)) for column in columns] for tunnel in tunnels),
    ]


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(display_width, cells)) for cells in zip(*rows, strict=True)]


def _format_lines(
    columns: Sequence[_Column], tunnels: Sequence[TunnelJson], paint: Paint, limit: int | None = None
) -> list[str]:
    """Return the lines of a table; each is cut at ``limit`` columns of the terminal, if that is given."""
    if limit is None:
        return _format_whole_lines(columns, tunnels, paint)
    rows = _cells(columns, tunnels)
    state_at = next(index for index, column in enumerate(columns) if column.title == _STATE)
    widths = _widths(rows)
    rest = sum(widths[1:]) + len(_GAP) * (len(widths) - 1)
    widths[0] = min(widths[0], max(1, limit - rest))  # names first: what follows them would be cut otherwise
    rows = [[truncate(cells[0], widths[0]), *cells[1:]] for cells in rows]
    states = ["", *(tunnel["state"] for tunnel in tunnels)]
    return [_line(cells, widths, state_at, state, limit, paint) for cells, state in zip(rows, states, strict=True)]


def _format_whole_lines(columns: Sequence[_Column], tunnels: Sequence[TunnelJson], paint: Paint) -> list[str]:
    """Return lines of which nothing is cut. Column by column: a fleet has fifty thousand lines."""
    padded = []
    for column in columns:
        cells = _pad([column.title, *map(printable, map(column.cell, tunnels))])
        if column.title == _STATE:
            states = (tunnel["state"] for tunnel in tunnels)
            cells[1:] = [paint(cell, state) if state else cell for cell, state in zip(cells[1:], states, strict=True)]
        padded.append(cells)
    return [_GAP.join(filter(None, cells)).rstrip() for cells in zip(*padded, strict=True)]


def _pad(cells: Sequence[str]) -> list[str]:
    """Return the cells of a column, all as wide as the widest one."""
    widths = {cell: display_width(cell) for cell in {*cells}}
    width = max(widths.values())
    return [cell + " " * (width - widths[cell]) for cell in cells]


def _drop_columns(columns: Sequence[_Column], tunnels: Sequence[TunnelJson], limit: int) -> list[_Column]:
    """Return the columns that fit a terminal; what shows trouble goes after all others."""
    in_trouble = {title for title, has_trouble in _TROUBLES.items() if any(map(has_trouble, tunnels))}
    orders = {c.title: c.drop_order / _LAST if c.title in in_trouble else c.drop_order for c in columns}
    widths = dict(zip(orders, _widths(_cells(columns, tunnels)), strict=True))
    widths[_NAME] = min(widths[_NAME], _MIN_NAME_WIDTH)
    kept = list(columns)
    while sum(widths[c.title] + len(_GAP) for c in kept) - len(_GAP) > limit and any(orders[c.title] for c in kept):
        kept.remove(max(kept, key=lambda column: orders[column.title]))
    return kept


def _reason_lines(tunnel: TunnelJson, columns: int) -> list[str]:
    """Return the reason, wrapped and indented; nothing if there is none."""
    indent = _INDENT if columns > 4 * len(_INDENT) else ""
    reason = printable(describe_reason(tunnel))
    return [f"{indent}{part}" for part in _wrap(reason, columns - len(indent))] if reason else []


def _wrap(text: str, columns: int) -> list[str]:
    """Return a text in lines of at most ``columns`` columns of the terminal, broken at spaces if possible."""
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and display_width(f"{lines[-1]} {word}") <= columns:
            lines[-1] += f" {word}"
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and display_width(lines[-1] + character) > columns:
                lines.append("")
            lines[-1] += character
    return lines


def _line(
    cells: Sequence[str], widths: Sequence[int], state_at: int | None, state: str, columns: int | None, paint: Paint
) -> str:
    remaining = columns
    parts = []
    for index, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        text = cell if index == len(cells) - 1 else cell + " " * (width - display_width(cell))
        if remaining is not None:
            text = truncate(text, remaining) if remaining > 0 else ""
            remaining -= display_width(text) + len(_GAP)
        parts.append(paint(text, state) if state and index == state_at else text)
    return _GAP.join(part for part in parts if part).rstrip()
