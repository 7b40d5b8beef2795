"""The table of tunnels: its columns, which of them there is room for, and a tunnel as a row.

A new column is one row of COLUMNS with a function that formats its cell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orchestrator.state_display import format_state
from tui.format.text import (
    NOTHING,
    Line,
    Span,
    fit,
    format_count,
    format_milliseconds,
    format_rate,
    format_seconds,
)
from tui.model.selection import SortKey
from tui.model.states import OFFLINE_STYLE, STATE_RANKS, STATE_STYLES
from tui.model.tunnels import Tunnel
from tunnel.model.state import State

if TYPE_CHECKING:
    from collections.abc import Collection

    from tui.model.selection import Selection, SortKeys

_GAP: Final = " "
_MARKED: Final = "▌"
_OPEN: Final = "!"
_SHORT_DIRECTIONS: Final = {"reverse": "rev", "forward": "fwd"}

Cell = Callable[[Tunnel, float], Span]
"""Formats a cell from a tunnel and the monotonic clock."""


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column of the table."""

    key: str
    title: str
    width: int
    """columns of the terminal, without the gap behind it"""
    cell: Cell
    drop_order: int = 0
    """on a narrow screen the column with the highest number goes first; 0: never"""
    sort_key: SortKey | None = None
    """what the table is sorted by; None if it cannot be sorted by this column"""
    is_highest_first: bool = False
    """whether the sort key puts the highest value first"""
    sort_as: str = ""
    """the column whose sort key it shares"""
    wide_form: str = ""
    """the column that replaces this one if there is room for it"""
    is_right: bool = True
    is_valid_offline: bool = False
    """whether its value is still right while the tunnel's host is offline"""


def state_cell(tunnel: Tunnel, now: float) -> Span:
    """Return sign and name of the state; with the seconds left of a cooldown, or of silence of an offline host."""
    state = tunnel.state
    silence = tunnel.host_silence(now)
    if silence is not None:
        return format_state(state, format_seconds(silence)), OFFLINE_STYLE
    left = tunnel.cooldown_left(now)
    return format_state(state, format_seconds(left) if left > 0 else ""), STATE_STYLES.get(state, "")


def _host(tunnel: Tunnel, _: float) -> Span:
    return tunnel.host, ""


def _name(tunnel: Tunnel, _: float) -> Span:
    return tunnel.label, "title"


def _role(tunnel: Tunnel, _: float) -> Span:
    direction = tunnel.text("direction")
    return f"{tunnel.text('role')} {_SHORT_DIRECTIONS.get(direction, direction)}", ""


def _role_in_full(tunnel: Tunnel, _: float) -> Span:
    return f"{tunnel.text('role')} {tunnel.text('direction')}", ""


def _address(tunnel: Tunnel, _: float) -> Span:
    return tunnel.text("tunnel_addr"), "dim"


def _target(tunnel: Tunnel, _: float) -> Span:
    return tunnel.text("target_addr"), "dim"


def _pool(tunnel: Tunnel, _: float) -> Span:
    idle, capacity = tunnel.pool["idle"], tunnel.pool["capacity"]
    is_empty = tunnel.state == State.UP and idle == 0
    return f"{format_count(idle)}/{format_count(capacity)}", "warn" if is_empty else ""


def _signals(tunnel: Tunnel, _: float) -> Span:
    signals = tunnel.signals
    text = f"{format_count(signals['queued'])}/{format_count(signals.get('limit', 0))}"
    return text, "warn" if signals["queued"] else "dim"


def _queued(tunnel: Tunnel, _: float) -> Span:
    queued = tunnel.signals["queued"]
    return format_count(queued), "warn" if queued else "dim"


def _visitors(tunnel: Tunnel, _: float) -> Span:
    return format_count(tunnel.visitors), "" if tunnel.visitors else "dim"


def _rtt(tunnel: Tunnel, _: float) -> Span:
    rtt = tunnel.rtt_ms
    return (NOTHING, "dim") if rtt is None else (format_milliseconds(rtt), "")


def _auth(tunnel: Tunnel, _: float) -> Span:
    auth = tunnel.text("auth")
    return auth, "warn" if auth == "open" else "dim"


def _reason(tunnel: Tunnel, _: float) -> Span:
    return ("", "") if tunnel.state == State.UP else (tunnel.reason or "", "dim")


_NAME_WIDTH: Final = 12
COLUMNS: Final = (
    TableColumn("state", "STATE", 15, state_cell, 0, lambda t: STATE_RANKS.get(t.state, -1), is_highest_first=True,
                is_right=False, is_valid_offline=True),
    TableColumn("host", "HOST", 8, _host, 0, lambda t: t.host.casefold(), is_right=False, is_valid_offline=True),
    TableColumn("name", "NAME", _NAME_WIDTH, _name, 0, lambda t: (t.label.casefold(), t.host.casefold()),
                is_right=False, is_valid_offline=True),
    TableColumn("role", "ROLE", 10, _role, 4, lambda t: (t.text("role"), t.text("direction")),
                wide_form="direction", is_right=False),
    TableColumn("direction", "ROLE", 14, _role_in_full, 8, sort_as="role", is_right=False),
    TableColumn("address", "TUNNEL", 21, _address, 7, lambda t: t.text("tunnel_addr"), is_right=False),
    TableColumn("target", "TARGET", 21, _target, 9, lambda t: t.text("target_addr"), is_right=False),
    TableColumn("pool", "POOL", 8, _pool, 0, lambda t: t.pool["idle"]),
    TableColumn("signals", "SIGNALS", 9, _signals, 6, lambda t: -t.signals["queued"], is_highest_first=True),
    TableColumn("queued", "SIG", 4, _queued, 1, sort_as="signals", wide_form="signals"),
    TableColumn("visitors", "VISITORS", 9, _visitors, 1, lambda t: -t.visitors, is_highest_first=True),
    TableColumn("out", "↓/s", 5, lambda t, _: format_rate(t.rate_out), 2, lambda t: -t.rate_out, is_highest_first=True),
    TableColumn("in", "↑/s", 5, lambda t, _: format_rate(t.rate_in), 3, lambda t: -t.rate_in, is_highest_first=True),
    TableColumn("rtt", "RTT", 6, _rtt, 5, lambda t: -(t.rtt_ms or 0.0), is_highest_first=True),
    TableColumn("auth", "AUTH", 5, _auth, 10, lambda t: t.text("auth"), is_right=False),
    TableColumn("reason", "REASON", 24, _reason, 11, lambda t: (not t.reason, t.reason or ""), is_right=False),
)  # fmt: skip
"""One row for each column. Numbers sort with the highest first, except the pool, where few idle ones are a problem.
States sort by urgency, the most urgent one first.
"""

HIDEABLE: Final = tuple(
    column for column in COLUMNS if not column.sort_as and column.key not in {"state", "host", "name"}
)
"""The columns that a user can hide; without state and name a row says nothing."""

SORT_KEYS: Final[SortKeys] = {column.key: column.sort_key for column in COLUMNS if column.sort_key is not None}
_BY_KEY: Final = {column.key: column for column in COLUMNS}

_MIN_NAME_WIDTH: Final = 14
"""Columns of the terminal that a name gets, if it needs them, before any column is added."""
_MAX_NAME_WIDTH: Final = 40
_MAX_HOST_WIDTH: Final = 20


def sortable_columns(*, is_fleet: bool) -> list[str]:
    """Return the names of the columns that can sort the table."""
    return [key for key in SORT_KEYS if is_fleet or key != "host"]


def sort_arrow(selection: Selection) -> str:
    """Return ▲ if values increase from the first row to the last, ▼ if they decrease."""
    return "▼" if _BY_KEY[selection.sort].is_highest_first != selection.is_reversed else "▲"


@dataclass(frozen=True, slots=True)
class TableLayout:
    """The columns that are shown, each with its width on this screen."""

    columns: tuple[TableColumn, ...]
    widths: tuple[int, ...]

    def column_at(self, x: int) -> TableColumn | None:
        """Return the column at position ``x`` of a row."""
        position = 1  # the mark
        for column, width in zip(self.columns, self.widths, strict=True):
            if position <= x < position + width + len(_GAP):
                return column
            position += width + len(_GAP)
        return None

    def sort_title(self, sort: str) -> str:
        """Return the title under which the table shows the column that sorts it, else that column's own title."""
        shown = (column.title for column in self.columns if (column.sort_as or column.key) == sort)
        return next(shown, _BY_KEY[sort].title)


def lay_out(width: int, longest_name: int, longest_host: int = 0, hidden: Collection[str] = ()) -> TableLayout:
    """Return the columns for a table of ``width``; the rest of the width goes to the reason, or to the name.

    There is a column for the host if there are hosts, and none of those whose keys are ``hidden``.
    """
    room = width - 1  # 1 for the mark
    name_extra = max(0, min(longest_name, _MIN_NAME_WIDTH) - _NAME_WIDTH)
    chosen = _choose_columns(room - name_extra, hidden, has_hosts=longest_host > 0)
    widths = {column.key: column.width for column in chosen}
    excess = _needed_width(chosen) - room
    left = max(0, -excess)
    for key, longest in (("host", min(longest_host, _MAX_HOST_WIDTH)), ("name", min(longest_name, _MAX_NAME_WIDTH))):
        more = min(left, max(0, longest - widths.get(key, longest)))
        if more:
            widths[key] += more
            left -= more
    widths["reason" if "reason" in widths else "name"] += left
    if excess > 0:  # narrower than any sensible screen: shorten the name
        widths["name"] = max(4, widths["name"] - excess)
    return TableLayout(tuple(chosen), tuple(widths[column.key] for column in chosen))


def _choose_columns(room: int, hidden: Collection[str], *, has_hosts: bool) -> list[TableColumn]:
    """Return the columns that fit, in the order of the table: drop columns until they do, or use their narrow forms."""
    wanted = [column for column in COLUMNS if (column.sort_as or column.key) not in hidden]
    narrow_forms = [column for column in wanted if column.wide_form]
    chosen = [column for column in wanted if not column.wide_form and (has_hosts or column.key != "host")]
    while _needed_width(chosen) > room and any(column.drop_order for column in chosen):
        chosen.remove(max(chosen, key=lambda column: column.drop_order))
        keys = {column.key for column in chosen}
        for narrow in narrow_forms:
            if not keys & {narrow.key, narrow.wide_form} and (
                _needed_width([*chosen, narrow]) <= room or narrow.drop_order < max(c.drop_order for c in chosen)
            ):
                chosen.append(narrow)
    return sorted(chosen, key=COLUMNS.index)


def _needed_width(columns: Iterable[TableColumn]) -> int:
    return sum(column.width + len(_GAP) for column in columns)


def format_row(tunnel: Tunnel, layout: TableLayout, now: float, marked: Collection[str] = ()) -> Line:
    """Return a tunnel as a row; ``now`` is the monotonic clock."""
    spans: list[Span] = [_mark(tunnel, layout, is_marked=tunnel.name in marked)]
    for column, width in zip(layout.columns, layout.widths, strict=True):
        text, style = column.cell(tunnel, now)
        if tunnel.is_host_offline and not column.is_valid_offline:
            style = "dim"
        spans.append((fit(text, width, right=column.is_right) + _GAP, style))
    return tuple(spans)


COLUMN_CHOICE_HEADING: Final[Line] = ((" SHOWN", ""),)


def column_choice_line(column: TableColumn, *, is_hidden: bool) -> Line:
    """Return the line of a column that can be hidden, with a sign if it is shown."""
    sign, style = ("[ ]", "dim") if is_hidden else ("[x]", "")
    return ((f" {sign} {column.title} ", style),)


def changes_with_time(tunnel: Tunnel) -> bool:
    """Return whether the row of a tunnel changes without a message: it shows a countdown or an age."""
    return tunnel.is_host_offline or tunnel.state == State.COOLDOWN


def _mark(tunnel: Tunnel, layout: TableLayout, *, is_marked: bool) -> Span:
    """Return the first character of a row; it shows tunnels without a key if there is no room for that column."""
    if is_marked:
        return _MARKED, "mark"
    has_column = any(column.key == "auth" for column in layout.columns)
    return (_OPEN, "warn") if tunnel.text("auth") == "open" and not has_column else (" ", "")


def format_heading(layout: TableLayout, selection: Selection) -> Line:
    """Return the row of titles; the one that sorts has an arrow."""
    spans: list[Span] = [(" ", "dim")]
    for column, width in zip(layout.columns, layout.widths, strict=True):
        title, style = column.title, "dim"
        if selection.sort == (column.sort_as or column.key):
            title, style = f"{title[: width - 1]}{sort_arrow(selection)}", "key"
        spans.append((fit(title, width, right=column.is_right) + _GAP, style))
    return tuple(spans)
