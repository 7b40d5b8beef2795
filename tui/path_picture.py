"""A path as a picture, wide or narrow. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tui.details import since
from tui.lines import NOTHING, Line, Span, amount, clip, fit, length, number, spark, wrap
from tui.path import missing, verdict
from tui.rows import milliseconds, state_cell
from tunnel.model.state import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tui.model import Tunnel
    from tui.path import Path

_WIDE: Final = 92
"""Columns from which on the path runs from left to right; on a narrower screen it runs down."""

_VISITORS: Final = 10
_TARGET: Final = 8
_ARROW: Final = 4
_LABEL: Final = 10


def path_lines(path: Path, width: int, now: float, wall: float, *, is_fleet: bool) -> list[Line]:
    """The picture of a path, a sentence on how it stands, and both ends side by side.

    ``now`` is the monotonic clock, ``wall`` the time of day in seconds since the epoch.
    """
    text, style = verdict(path)
    lines: list[Line] = [((part, style),) for part in wrap(text, width)]
    box, picture = (_box_across(width), _across) if width >= _WIDE else (width, _down)
    entrance, exit_ = (_box(index, path, box, now, wall, is_fleet=is_fleet) for index in (0, 1))
    lines += [(), *picture(path, entrance, exit_, width), (), *_side_by_side(path, width)]
    return [clip(line, width) for line in lines]


# --- boxes ------------------------------------------------------------------------------------------------------------


class _Box:
    """One end: its title, what stands in it, whether anybody has seen it, the style of its frame."""

    def __init__(self, title: str, lines: list[Line], style: str, *, is_seen: bool) -> None:
        self.title = title
        self.lines = lines
        self.style = style
        self.is_seen = is_seen

    def drawn(self, width: int, height: int = 0) -> list[Line]:
        """With its frame, exactly so wide, and at least so many lines high inside."""
        frame = "dim" if not self.is_seen else self.style
        across, down = ("─", "│") if self.is_seen else ("╌", "╎")
        inner = width - 4
        title = fit(f" {self.title} ", min(len(self.title) + 2, inner))
        top: Line = (
            (f"╭{across}", frame), (title, "title" if self.is_seen else "dim"),
            (across * (width - 3 - len(title)) + "╮", frame),
        )  # fmt: skip
        lines = [*self.lines, *[()] * (height - len(self.lines))]
        body = [((f"{down} ", frame), *_padded(line, inner), (f" {down}", frame)) for line in lines]
        return [top, *body, ((f"╰{across * (width - 2)}╯", frame),)]


def _box(index: int, path: Path, width: int, now: float, wall: float, *, is_fleet: bool) -> _Box:
    end = (path.entrance, path.exit)[index]
    title = _titles(path)[index]
    if end is None:
        texts = [part for text in missing(path, is_fleet=is_fleet) for part in wrap(text, width - 4)]
        return _Box(title, [((text, "dim"),) for text in texts], "dim", is_seen=False)
    state, style = state_cell(end, now)
    standing: Line = ((state, style), (f" {since(end, wall)}", "dim"))
    does = ("accepts on", "dials")[index] if path.direction else "for"
    address: Line = ((f"{does} ", "dim"), (end.text("target_addr"), ""))
    role = end.text("role")
    lines: list[Line]
    if length(standing) + length(address) + 6 <= width:  # room for one line, so that the whole path fits a low screen
        title = f"{title}: {' '.join(filter(None, (end.host, end.label)))} ({role})"
        lines = [(*standing, ("  ", ""), *address)]
    else:
        place: Line = ((end.host, "title"), (f"  {end.label}", "")) if end.host else ((end.label, "title"),)
        lines = [standing, (*place, (f"  {role}", "dim")), address]
    return _Box(title, lines, style if style != "up" else "spark", is_seen=True)


def _titles(path: Path) -> tuple[str, str]:
    """What the ends are called; which of them is which is known once there is a direction."""
    return ("entrance", "exit") if path.direction else ("server", "client")


def _padded(line: Line, width: int) -> Line:
    line = clip(line, width)
    return (*line, (" " * (width - length(line)), ""))


def _centred(text: str, width: int, style: str) -> Line:
    text = fit(text, min(len(text), width)).strip()
    left = (width - len(text)) // 2
    return ((" " * left, ""), (text, style), (" " * (width - left - len(text)), ""))


# --- from left to right -----------------------------------------------------------------------------------------------


def _box_across(width: int) -> int:
    """How wide an end is drawn: addresses are to fit, and the link wants to be seen."""
    rest = width - _VISITORS - _TARGET - 2 * _ARROW
    return min(40, (rest - min(24, max(14, rest // 4))) // 2)


def _across(path: Path, entrance: _Box, exit_: _Box, width: int) -> list[Line]:
    box = _box_across(width)
    middle = width - _VISITORS - _TARGET - 2 * _ARROW - 2 * box
    height = max(3, len(entrance.lines), len(exit_.lines))
    blocks = [
        _beside(_visitors(path), _VISITORS, height),
        _beside([(), _arrow(_ARROW, is_open=path.is_linked)], _ARROW, height),
        entrance.drawn(box, height),
        _beside(_link(path, middle), middle, height),
        exit_.drawn(box, height),
        _beside([(), _arrow(_ARROW, is_open=path.is_up)], _ARROW, height),
        _beside([_centred("target", _TARGET, "title"), _centred(*_reached(path))], _TARGET, height),
    ]
    return [tuple(span for block in blocks for span in block[row]) for row in range(height + 2)]


def _beside(lines: Sequence[Line], width: int, height: int) -> list[Line]:
    """Lines as a block as high as a box, beginning where the box has its first line."""
    block = [(), *lines]
    return [_padded(block[row] if row < len(block) else (), width) for row in range(height + 2)]


def _visitors(path: Path) -> list[Line]:
    out, in_ = path.rates
    return [
        _centred("visitors", _VISITORS, "title"),
        _centred(number(path.visitors), _VISITORS, "mark" if path.visitors else "dim"),
        _centred(f"↓ {amount(out)}/s" if out >= 0.5 else "", _VISITORS, "spark"),
        _centred(f"↑ {amount(in_)}/s" if in_ >= 0.5 else "", _VISITORS, "spark"),
    ]


def _arrow(width: int, *, is_open: bool) -> Line:
    return ((f" {('─' if is_open else '╌') * (width - 2)}▶", "up" if is_open else "dim"),)


def _reached(path: Path) -> tuple[str, int, str]:
    """What is known of the target: who is linked and yet waits, waits for that."""
    if path.is_up:
        return "●", _TARGET, "up"
    is_to_blame = path.is_linked and path.exit is not None and path.exit.state == State.COOLDOWN
    return ("✖", _TARGET, "warn") if is_to_blame else ("?", _TARGET, "dim")


def _link(path: Path, width: int) -> list[Line]:
    """What lies between the two ends."""
    inner = width - 2
    if path.is_linked:
        line: Line = ((f" {'═' * inner} ", "up"),)
    else:
        side = (inner - 3) // 2
        line = (
            (f" {'╌' * side} ", "dim"),
            ("✖" if path.is_whole else "?", "warn"),
            (f" {'╌' * (inner - side - 3)} ", "dim"),
        )
    return [
        _centred(fit(f"link {path.link}", inner) if path.link else "no link", width, "dim"),
        line,
        *(_centred(text, width, "") for text in _middle(path)),
    ]


def _middle(path: Path) -> list[str]:
    """Round trip, and the pool of data connections between the ends."""
    pool, rtt = path.pool, path.rtt_ms
    if pool is None or not any(end.data.get("link") for end in path.ends):
        return []
    return [*([f"rtt {milliseconds(rtt)}"] if rtt is not None else []), f"pool {number(pool[0])}/{number(pool[1])}"]


# --- from top to bottom -----------------------------------------------------------------------------------------------


def _down(path: Path, entrance: _Box, exit_: _Box, width: int) -> list[Line]:
    out, in_ = path.rates
    style = "up" if path.is_linked else "dim"
    traffic = f"  ↓ {amount(out)}/s  ↑ {amount(in_)}/s" if out >= 0.5 or in_ >= 0.5 else ""
    visitors: Line = (
        ("  visitors ", "title"),
        (number(path.visitors), "mark" if path.visitors else "dim"),
        (traffic, "spark"),
    )
    bar = "║" if path.is_linked else "╎"
    link = " · ".join([f"link {path.link or NOTHING}", *_middle(path)])
    between: Line = ((f"      {bar}  ", style if path.is_linked else "warn"), (link, "dim"))
    return [
        visitors,
        (("      ▼", style),),
        *entrance.drawn(width),
        between,
        *exit_.drawn(width),
        (("      ▼", "up" if path.is_up else "dim"),),
        (
            ("  target ", "title"),
            (path.exit.text("target_addr") if path.exit else NOTHING, ""),
            ("  ", ""),
            (*_reached(path)[::2],),
        ),
    ]


# --- both ends in numbers ---------------------------------------------------------------------------------------------


def _side_by_side(path: Path, width: int) -> list[Line]:
    column = (width - _LABEL) // 2
    ends = (path.entrance, path.exit)
    heads = [_cell(title, "title", column) for title in _titles(path)]
    lines: list[Line] = [((" " * _LABEL, ""), *heads)]
    for label, cell in _FACTS:
        cells = [cell(end, column) if end is not None else (_cell(NOTHING, "dim", column),) for end in ends]
        lines.append(((fit(label, _LABEL), "dim"), *(span for spans in cells for span in spans)))
    return lines


def _cell(text: str, style: str, width: int) -> Span:
    return fit(text, width), style


def _with_past(text: str, values: Sequence[float | None], width: int) -> tuple[Span, ...]:
    figure = 10
    room = max(0, min(40, width - figure - 2))
    return ((fit(text, figure), ""), (spark(values, room).ljust(room), "spark"), (" " * (width - figure - room), ""))


def _out(end: Tunnel, width: int) -> tuple[Span, ...]:
    return _with_past(f"{amount(end.rate_out)}/s", [s.rate_out for s in end.history], width)


def _in(end: Tunnel, width: int) -> tuple[Span, ...]:
    return _with_past(f"{amount(end.rate_in)}/s", [s.rate_in for s in end.history], width)


def _rtt(end: Tunnel, width: int) -> tuple[Span, ...]:
    rtt = NOTHING if end.rtt_ms is None else milliseconds(end.rtt_ms)
    return _with_past(rtt, [s.rtt_ms for s in end.history], width)


def _pool(end: Tunnel, width: int) -> tuple[Span, ...]:
    pool = f"{number(end.count('pool', 'idle'))}/{number(end.count('pool', 'capacity'))}"
    return _with_past(pool, [s.idle for s in end.history], width)


def _queue(end: Tunnel, width: int) -> tuple[Span, ...]:
    text = f"{number(end.count('signals', 'queued'))}/{number(end.count('signals', 'limit'))}"
    return _with_past(text, [s.queued for s in end.history], width)


def _served(end: Tunnel, width: int) -> tuple[Span, ...]:
    total, failed = end.count("connections", "total"), end.count("connections", "failed")
    return (_cell(f"{end.active} now, {total} in all, {failed} in vain", "", width),)


def _peer(end: Tunnel, width: int) -> tuple[Span, ...]:
    return (_cell(end.text("peer") or NOTHING, "dim", width),)


_FACTS: Final = (
    ("↓ out", _out),
    ("↑ in", _in),
    ("rtt", _rtt),
    ("pool", _pool),
    ("signals", _queue),
    ("visitors", _served),
    ("peer", _peer),
)
