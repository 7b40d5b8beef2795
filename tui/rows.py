"""A tunnel as a row of the table: which columns there is room for, and what stands in them. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orchestrator.state_display import format_state
from tui.lines import NOTHING, Line, Span, amount, fit, number, seconds
from tunnel.model.state import State

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from tui.model import Tunnel
    from tui.selection import Selection

_GAP: Final = " "
_MARKED: Final = "▌"
_OPEN: Final = "!"
_SHORT: Final = {"reverse": "rev", "forward": "fwd"}


@dataclass(frozen=True, slots=True)
class Column:
    """A column; ``need`` says how early it gives way where the screen is narrow: 0 never, the highest first."""

    key: str
    title: str
    width: int
    need: int
    cell: Callable[[Tunnel, float], tuple[str, str]]
    """(tunnel, monotonic clock) to a text and the name of its style"""
    is_right: bool = True
    sort: str | None = None
    """what a click on its title sorts by, where that is not ``key``"""


def state_cell(tunnel: Tunnel, now: float) -> Span:
    """Shape, word and colour; a cooldown with the seconds that are left, a host that is gone with its silence."""
    state = tunnel.state
    unheard = tunnel.unheard(now)
    if unheard is not None:
        return format_state(state, seconds(unheard)), "gone"
    left = tunnel.remaining(now)
    return format_state(state, seconds(left) if left > 0 else ""), "gone" if tunnel.is_gone else state


def _host(tunnel: Tunnel, _: float) -> Span:
    return tunnel.host, ""


def _name(tunnel: Tunnel, _: float) -> Span:
    return tunnel.label, "title"


def _role(tunnel: Tunnel, _: float) -> Span:
    direction = tunnel.text("direction")
    return f"{tunnel.text('role')} {_SHORT.get(direction, direction)}", ""


def _role_in_full(tunnel: Tunnel, _: float) -> Span:
    return f"{tunnel.text('role')} {tunnel.text('direction')}", ""


def _address(tunnel: Tunnel, _: float) -> Span:
    return tunnel.text("tunnel_addr"), "dim"


def _target(tunnel: Tunnel, _: float) -> Span:
    return tunnel.text("target_addr"), "dim"


def _pool(tunnel: Tunnel, _: float) -> Span:
    idle, capacity = tunnel.count("pool", "idle"), tunnel.count("pool", "capacity")
    is_short = tunnel.state == State.UP and idle == 0
    return f"{number(idle)}/{number(capacity)}", "warn" if is_short else ""


def _signals(tunnel: Tunnel, _: float) -> Span:
    queued, limit = tunnel.count("signals", "queued"), tunnel.count("signals", "limit")
    return f"{number(queued)}/{number(limit)}", "warn" if queued else "dim"


def _queued(tunnel: Tunnel, _: float) -> Span:
    queued = tunnel.count("signals", "queued")
    return number(queued), "warn" if queued else "dim"


def _visitors(tunnel: Tunnel, _: float) -> Span:
    return number(tunnel.active), "" if tunnel.active else "dim"


def _rate(rate: float) -> Span:
    return (amount(rate), "") if rate >= 0.5 else (NOTHING, "dim")


def _rtt(tunnel: Tunnel, _: float) -> Span:
    rtt = tunnel.rtt_ms
    return (NOTHING, "dim") if rtt is None else (milliseconds(rtt), "")


def milliseconds(rtt: float) -> str:
    """A round trip, as exact as one wants to know it."""
    return f"{rtt:.1f}ms" if rtt < 9.95 else f"{rtt:.0f}ms"


def _auth(tunnel: Tunnel, _: float) -> Span:
    auth = tunnel.text("auth")
    return auth, "warn" if auth == "open" else "dim"


def _reason(tunnel: Tunnel, _: float) -> Span:
    return ("", "") if tunnel.state == State.UP else (tunnel.reason or "", "dim")


_NAME_WIDTH: Final = 12
COLUMNS: Final = (
    Column("state", "STATE", 15, 0, state_cell, is_right=False),
    Column("host", "HOST", 8, 0, _host, is_right=False),
    Column("name", "NAME", _NAME_WIDTH, 0, _name, is_right=False),
    Column("role", "ROLE", 10, 3, _role, is_right=False),
    Column("direction", "ROLE", 14, 8, _role_in_full, is_right=False, sort="role"),
    Column("address", "TUNNEL", 21, 7, _address, is_right=False),
    Column("target", "TARGET", 21, 9, _target, is_right=False, sort="address"),
    Column("pool", "POOL", 9, 0, _pool),
    Column("signals", "SIGNALS", 9, 6, _signals),
    Column("queued", "SIG", 5, 1, _queued, sort="signals"),
    Column("visitors", "CONN", 5, 1, _visitors),
    Column("out", "↓/s", 5, 2, lambda tunnel, _: _rate(tunnel.rate_out)),
    Column("in", "↑/s", 5, 4, lambda tunnel, _: _rate(tunnel.rate_in)),
    Column("rtt", "RTT", 6, 5, _rtt),
    Column("auth", "AUTH", 4, 10, _auth, is_right=False, sort="name"),
    Column("reason", "REASON", 24, 11, _reason, is_right=False, sort="state"),
)
_ALTERNATIVES: Final = {"role": "direction", "queued": "signals"}  # shown only where the fuller one is not
_SORTED_AS: Final = {"direction": "role", "queued": "signals"}  # columns that stand for one that can sort
_SURE: Final = frozenset({"state", "host", "name"})  # the rest of a row is old where its host is gone
_USUAL_NAME: Final = 15  # columns that a name gets, if it needs them, before other columns get any
_LONGEST_NAME: Final = 40
_LONGEST_HOST: Final = 20


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns that are shown, each with the width it has here."""

    columns: tuple[Column, ...]
    widths: tuple[int, ...]

    def column_at(self, x: int) -> Column | None:
        """The column under a place of the row."""
        position = 1  # the mark
        for column, width in zip(self.columns, self.widths, strict=True):
            if position <= x < position + width + len(_GAP):
                return column
            position += width + len(_GAP)
        return None


def lay_out(width: int, longest_name: int, longest_host: int = 0) -> Layout:
    """The columns for a table of ``width``; what is left over goes to the reason, or to the name.

    Hosts have a column where there are any.
    """
    chosen = [
        column for column in COLUMNS if column.key not in _ALTERNATIVES and (longest_host or column.key != "host")
    ]
    room = width - 1 - max(0, min(longest_name, _USUAL_NAME) - _NAME_WIDTH)  # 1 for the mark
    while _needed(chosen) > room and any(column.need for column in chosen):
        chosen.remove(max(chosen, key=lambda column: column.need))
        for narrow, wide in _ALTERNATIVES.items():
            if all(column.key not in {narrow, wide} for column in chosen):
                candidate = next(column for column in COLUMNS if column.key == narrow)
                if _needed([*chosen, candidate]) <= room or candidate.need < max(c.need for c in chosen):
                    chosen.append(candidate)
    chosen.sort(key=COLUMNS.index)
    room = width - 1
    widths = {column.key: column.width for column in chosen}
    left = max(0, room - _needed(chosen))
    for key, longest in (("host", min(longest_host, _LONGEST_HOST)), ("name", min(longest_name, _LONGEST_NAME))):
        more = min(left, max(0, longest - widths.get(key, longest)))
        if more:
            widths[key] += more
            left -= more
    widths["reason" if "reason" in widths else "name"] += left
    if _needed(chosen) > room:  # narrower than anything sensible: the name gives way
        widths["name"] = max(4, widths["name"] - (_needed(chosen) - room))
    return Layout(tuple(chosen), tuple(widths[column.key] for column in chosen))


def _needed(columns: Sequence[Column]) -> int:
    return sum(column.width + len(_GAP) for column in columns)


def row(tunnel: Tunnel, layout: Layout, now: float, marked: Collection[str] = ()) -> Line:
    """A tunnel as a line."""
    spans: list[Span] = [_mark(tunnel, layout, is_marked=tunnel.name in marked)]
    for column, width in zip(layout.columns, layout.widths, strict=True):
        text, style = column.cell(tunnel, now)
        if tunnel.is_gone and column.key not in _SURE:
            style = "dim"
        spans.append((fit(text, width, right=column.is_right) + _GAP, style))
    return tuple(spans)


def ages(tunnel: Tunnel) -> bool:
    """Whether time alone changes its line."""
    return tunnel.is_gone or tunnel.state == State.COOLDOWN


def _mark(tunnel: Tunnel, layout: Layout, *, is_marked: bool) -> Span:
    """Before the row; a tunnel without a key is told from the others here, where there is no room for a column."""
    if is_marked:
        return _MARKED, "mark"
    is_told = any(column.cell is _auth for column in layout.columns)
    return (_OPEN, "warn") if tunnel.text("auth") == "open" and not is_told else (" ", "")


def heading(layout: Layout, selection: Selection) -> Line:
    """The titles; the one that sorts carries an arrow."""
    spans: list[Span] = [(" ", "dim")]
    for column, width in zip(layout.columns, layout.widths, strict=True):
        title, style = column.title, "dim"
        if selection.sort in {column.key, _SORTED_AS.get(column.key)}:
            title, style = f"{title}{'▲' if selection.is_reversed else '▼'}", "key"
        spans.append((fit(title, width, right=column.is_right) + _GAP, style))
    return tuple(spans)
