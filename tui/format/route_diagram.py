"""A route as a diagram, across a wide screen or down a narrow one, and the values of both ends side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tui.format.columns import state_cell
from tui.format.details import TRENDS, Trend, state_age, trend_sparkline
from tui.format.text import (
    NOTHING,
    Line,
    Span,
    clip,
    fit,
    format_bytes,
    format_count,
    format_milliseconds,
    length,
    paragraph,
    plural,
    wrap,
)
from tui.model.routes import missing_end_texts, path_verdict, verdict
from tui.model.tunnels import Tunnel
from tunnel.model.state import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tui.model.routes import TunnelRoute

_MIN_ACROSS_WIDTH: Final = 92
"""From this width on the route runs from left to right; on a narrower screen it runs down."""

_VISITORS_WIDTH: Final = 10
_TARGET_WIDTH: Final = 8
_ARROW_WIDTH: Final = 4
_LABEL_WIDTH: Final = 15
_FIGURE_WIDTH: Final = 10
_MAX_SPARKLINE_WIDTH: Final = 40


def path_lines(routes: Sequence[TunnelRoute], width: int, now: float, wall: float, *, is_fleet: bool) -> list[Line]:
    """Return the routes of a tunnel, those of one ingress as the branches of one path. Clocks as below."""
    groups: dict[str, list[TunnelRoute]] = {}
    for route in routes:
        groups.setdefault(route.ingress.name if route.ingress else f" {route.key}", []).append(route)
    lines: list[Line] = []
    for group in groups.values():
        if lines:
            lines.append(())
        if len(group) == 1:
            lines += route_lines(group[0], width, now, wall, is_fleet=is_fleet)
        else:
            lines += branch_lines(group, width, now, wall, is_fleet=is_fleet)
    return lines


def route_lines(route: TunnelRoute, width: int, now: float, wall: float, *, is_fleet: bool) -> list[Line]:
    """Return a sentence on the route, its diagram, and both ends side by side.

    ``now`` is the monotonic clock, ``wall`` the time of day in seconds since the epoch.
    """
    text, style = verdict(route)
    is_across = width >= _MIN_ACROSS_WIDTH
    box_width = _box_width(width) if is_across else width
    ingress, egress = (_end_box(index, route, box_width, now, wall, is_fleet=is_fleet) for index in (0, 1))
    draw = _draw_across if is_across else _draw_down
    lines = [*paragraph(text, width, style), (), *draw(route, ingress, egress, width), (), *_compare(route, width)]
    return [clip(line, width) for line in lines]


# --- boxes ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _EndBox:
    """One end as a box: its title, its lines, the style of its frame."""

    title: str
    lines: Sequence[Line]
    style: str
    is_known: bool

    def draw(self, width: int, height: int = 0) -> list[Line]:
        """Return the box with its frame, exactly ``width`` columns wide, with at least ``height`` lines inside."""
        frame = self.style if self.is_known else "dim"
        across, down = ("─", "│") if self.is_known else ("╌", "╎")
        inner = width - 4
        title = fit(f" {self.title} ", min(len(self.title) + 2, inner))
        top: Line = (
            (f"╭{across}", frame), (title, "title" if self.is_known else "dim"),
            (across * (width - 3 - len(title)) + "╮", frame),
        )  # fmt: skip
        lines = [*self.lines, *[()] * (height - len(self.lines))]
        body = [((f"{down} ", frame), *_pad(line, inner), (f" {down}", frame)) for line in lines]
        return [top, *body, ((f"╰{across * (width - 2)}╯", frame),)]


def _end_box(index: int, route: TunnelRoute, width: int, now: float, wall: float, *, is_fleet: bool) -> _EndBox:
    end = (route.ingress, route.egress)[index]
    title = _titles(route)[index]
    if end is None:
        texts = [part for text in missing_end_texts(route, is_fleet=is_fleet) for part in wrap(text, width - 4)]
        return _EndBox(title, [((text, "dim"),) for text in texts], "dim", is_known=False)
    state, style = state_cell(end, now)
    state_line: Line = ((state, style), (f" {state_age(end, wall)}", "dim"))
    verb = ("accepts on", "dials")[index] if route.direction else "for"
    address: Line = ((f"{verb} ", "dim"), (end.text("target_addr"), ""))
    role = end.text("role")
    lines: list[Line]
    if length(state_line) + length(address) + 6 <= width:  # one line, so that the whole route fits a low screen
        title = f"{title}: {' '.join(filter(None, (end.host, end.label)))} ({role})"
        lines = [(*state_line, ("  ", ""), *address)]
    else:
        name: Line = ((end.host, "title"), (f"  {end.label}", "")) if end.host else ((end.label, "title"),)
        lines = [state_line, (*name, (f"  {role}", "dim")), address]
    return _EndBox(title, lines, style if end.state != State.UP else "spark", is_known=True)


def _titles(route: TunnelRoute) -> tuple[str, str]:
    """Return what the two ends are called; which one is the ingress depends on the direction."""
    return ("ingress", "egress") if route.direction else ("server", "client")


def _pad(line: Line, width: int) -> Line:
    line = clip(line, width)
    return (*line, (" " * (width - length(line)), ""))


def _center(text: str, width: int, style: str) -> Line:
    text = fit(text, min(len(text), width)).strip()
    left = (width - len(text)) // 2
    return ((" " * left, ""), (text, style), (" " * (width - left - len(text)), ""))


# --- several branches -------------------------------------------------------------------------------------------------


def branch_lines(branches: Sequence[TunnelRoute], width: int, now: float, wall: float, *, is_fleet: bool) -> list[Line]:
    """Return a sentence on the routes of one ingress, the ingress once, and each link with its egress below it."""
    text, style = path_verdict(branches)
    first = branches[0]
    rates = [route.rates for route in branches]
    flow = _traffic_text(sum(out for out, _ in rates), sum(into for _, into in rates))
    visitors = sum(route.visitors for route in branches)
    lines = [
        *paragraph(text, width, style),
        (),
        (("  visitors ", "title"), (format_count(visitors), "mark" if visitors else "dim"), (flow, "spark")),
        (("      ▼", "good" if any(route.is_linked for route in branches) else "dim"),),
        *_end_box(0, first, width, now, wall, is_fleet=is_fleet).draw(width),
    ]
    for number, route in enumerate(branches):
        lines += _branch(route, width, now, wall, is_fleet=is_fleet, is_last=number == len(branches) - 1)
    return [clip(line, width) for line in lines]


def _branch(route: TunnelRoute, width: int, now: float, wall: float, *, is_fleet: bool, is_last: bool) -> list[Line]:
    """Return a link with its egress and target, below the ingress that it shares with other links."""
    style = "good" if route.is_linked else "warn"
    figures = [plural(route.visitors, "visitor"), *_link_figures(route)]
    if route.facts is not None:
        weight = f"weight {route.facts['weight']}"
        figures.insert(0, "backup" if route.facts["backup"] else weight)
    line = "══" if route.is_linked else "╌╌"
    head: Line = (
        (f"  {'└' if is_last else '├'}{line} ", style),
        (f"link {route.link or NOTHING}", "title"),
        (f" {route.link_state}" if route.link_state else "", "warn"),
        (f"  {' · '.join(figures)}", "dim"),
    )
    stem = ("      " if is_last else "  │   ", style)
    sign, _, sign_style = _target_sign(route)
    address = route.egress.text("target_addr") if route.egress else NOTHING
    body = _end_box(1, route, width - len(stem[0]), now, wall, is_fleet=is_fleet).draw(width - len(stem[0]))
    target: Line = (("▶ target ", "title"), (address, ""), ("  ", ""), (sign, sign_style))
    return [head, *((stem, *part) for part in (*body, target))]


# --- from left to right -----------------------------------------------------------------------------------------------


def _box_width(width: int) -> int:
    """Return the width of an end's box: addresses should fit, and the link between the boxes needs room."""
    rest = width - _VISITORS_WIDTH - _TARGET_WIDTH - 2 * _ARROW_WIDTH
    return min(40, (rest - min(24, max(14, rest // 4))) // 2)


def _draw_across(route: TunnelRoute, ingress: _EndBox, egress: _EndBox, width: int) -> list[Line]:
    box = _box_width(width)
    middle = width - _VISITORS_WIDTH - _TARGET_WIDTH - 2 * _ARROW_WIDTH - 2 * box
    height = max(3, len(ingress.lines), len(egress.lines))
    blocks = [
        _block(_visitor_lines(route), _VISITORS_WIDTH, height),
        _block([(), _arrow(_ARROW_WIDTH, is_open=route.is_linked)], _ARROW_WIDTH, height),
        ingress.draw(box, height),
        _block(_link_lines(route, middle), middle, height),
        egress.draw(box, height),
        _block([(), _arrow(_ARROW_WIDTH, is_open=route.is_up)], _ARROW_WIDTH, height),
        _block([_center("target", _TARGET_WIDTH, "title"), _center(*_target_sign(route))], _TARGET_WIDTH, height),
    ]
    return [tuple(span for block in blocks for span in block[row]) for row in range(height + 2)]


def _block(lines: Sequence[Line], width: int, height: int) -> list[Line]:
    """Return lines as a block as high as a box, beginning level with the box's first line."""
    block = [(), *lines]
    return [_pad(block[row] if row < len(block) else (), width) for row in range(height + 2)]


def _visitor_lines(route: TunnelRoute) -> list[Line]:
    to_visitors, from_visitors = route.rates
    return [
        _center("visitors", _VISITORS_WIDTH, "title"),
        _center(format_count(route.visitors), _VISITORS_WIDTH, "mark" if route.visitors else "dim"),
        _center(f"↓ {format_bytes(to_visitors)}/s" if to_visitors >= 0.5 else "", _VISITORS_WIDTH, "spark"),
        _center(f"↑ {format_bytes(from_visitors)}/s" if from_visitors >= 0.5 else "", _VISITORS_WIDTH, "spark"),
    ]


def _arrow(width: int, *, is_open: bool) -> Line:
    return ((f" {('─' if is_open else '╌') * (width - 2)}▶", "good" if is_open else "dim"),)


def _target_sign(route: TunnelRoute) -> tuple[str, int, str]:
    """Return a sign for the target: reached, not reached by a linked egress in cooldown, or unknown."""
    if route.is_up:
        return "●", _TARGET_WIDTH, "good"
    is_unreachable = route.is_linked and route.egress is not None and route.egress.state == State.COOLDOWN
    return ("✖", _TARGET_WIDTH, "warn") if is_unreachable else ("?", _TARGET_WIDTH, "dim")


def _link_lines(route: TunnelRoute, width: int) -> list[Line]:
    """Return what is between the two boxes."""
    inner = width - 2
    if route.is_linked:
        line: Line = ((f" {'═' * inner} ", "good"),)
    else:
        side = (inner - 3) // 2
        line = (
            (f" {'╌' * side} ", "dim"),
            ("✖" if route.is_complete else "?", "warn"),
            (f" {'╌' * (inner - side - 3)} ", "dim"),
        )
    return [
        _center(fit(f"link {route.link}", inner) if route.link else "no link", width, "dim"),
        line,
        *(_center(text, width, "") for text in _link_figures(route)),
    ]


def _link_figures(route: TunnelRoute) -> list[str]:
    """Return round trip and pool of the link."""
    pool, rtt = route.pool, route.rtt_ms
    if not any(end.has_link(route.link) for end in route.ends):
        return []
    round_trip = [f"rtt {format_milliseconds(rtt)}"] if rtt is not None else []
    idle = [] if pool is None else [f"pool {format_count(pool[0])}/{format_count(pool[1])}"]
    return [*round_trip, *idle]


# --- from top to bottom -----------------------------------------------------------------------------------------------


def _draw_down(route: TunnelRoute, ingress: _EndBox, egress: _EndBox, width: int) -> list[Line]:
    to_visitors, from_visitors = route.rates
    style = "good" if route.is_linked else "dim"
    traffic = _traffic_text(to_visitors, from_visitors)
    visitors: Line = (
        ("  visitors ", "title"),
        (format_count(route.visitors), "mark" if route.visitors else "dim"),
        (traffic, "spark"),
    )
    bar = "║" if route.is_linked else "╎"
    link = " · ".join([f"link {route.link or NOTHING}", *_link_figures(route)])
    between: Line = ((f"      {bar}  ", style if route.is_linked else "warn"), (link, "dim"))
    sign, _, sign_style = _target_sign(route)
    address = route.egress.text("target_addr") if route.egress else NOTHING
    return [
        visitors,
        (("      ▼", style),),
        *ingress.draw(width),
        between,
        *egress.draw(width),
        (("      ▼", "good" if route.is_up else "dim"),),
        (("  target ", "title"), (address, ""), ("  ", ""), (sign, sign_style)),
    ]


def _traffic_text(to_visitors: float, from_visitors: float) -> str:
    has_traffic = to_visitors >= 0.5 or from_visitors >= 0.5
    return f"  ↓ {format_bytes(to_visitors)}/s  ↑ {format_bytes(from_visitors)}/s" if has_traffic else ""


# --- both ends side by side -------------------------------------------------------------------------------------------


def _compare(route: TunnelRoute, width: int) -> list[Line]:
    column = (width - _LABEL_WIDTH) // 2
    ends = (route.ingress, route.egress)
    lines: list[Line] = [((" " * _LABEL_WIDTH, ""), *(_cell(title, "title", column) for title in _titles(route)))]
    for trend in TRENDS:
        cells = [_trend_spans(trend, end, column) if end else (_cell(NOTHING, "dim", column),) for end in ends]
        lines.append(((fit(trend.label, _LABEL_WIDTH), "dim"), *(span for spans in cells for span in spans)))
    for label, text, style in _TEXTS:
        texts = [_cell(text(end), style, column) if end else _cell(NOTHING, "dim", column) for end in ends]
        lines.append(((fit(label, _LABEL_WIDTH), "dim"), *texts))
    return lines


def _cell(text: str, style: str, width: int) -> Span:
    return fit(text, width), style


def _trend_spans(trend: Trend, end: Tunnel, width: int) -> tuple[Span, ...]:
    room = max(0, min(_MAX_SPARKLINE_WIDTH, width - _FIGURE_WIDTH - 2))
    bars = trend_sparkline(trend, end, room).ljust(room)
    return _cell(trend.figure(end), "", _FIGURE_WIDTH), (bars, "spark"), (" " * (width - _FIGURE_WIDTH - room), "")


def _visitor_counts(end: Tunnel) -> str:
    connections = end.connections
    return f"{connections['active']} now, {connections['total']} in total, {connections.get('failed', 0)} failed"


_TEXTS: Final[tuple[tuple[str, Callable[[Tunnel], str], str], ...]] = (
    ("visitors", _visitor_counts, ""),
    ("peer", lambda end: end.text("peer") or NOTHING, "dim"),
)
"""One row for each fact without a history: label, text of an end, style."""
