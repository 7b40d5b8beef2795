"""Rows of two lists: all routes, and the hosts of a fleet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orchestrator.mqtt.fleet import ONLINE
from orchestrator.state_display import OFFLINE_SIGN, STATE_SIGNS
from tui.format.text import (
    NOTHING,
    Line,
    Span,
    fit,
    format_bytes,
    format_count,
    format_milliseconds,
    format_rate,
    format_seconds,
    wrap,
)
from tui.model.routes import TunnelRoute
from tui.model.states import STATE_STYLES
from tunnel.model.state import State

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tui.model.messages import HostData
    from tui.model.tunnels import Tunnel

_LINK_WIDTH: Final = 5


@dataclass(frozen=True, slots=True)
class _RouteColumn:
    """A column of the list in addition to the two ends."""

    title: str
    width: int
    min_screen: int
    """width of the screen from which on it is shown"""
    cell: Callable[[TunnelRoute], Span]
    is_right: bool = True


def _target(route: TunnelRoute) -> Span:
    return f"→ {route.egress.text('target_addr')}" if route.egress else "→ ?", "dim"


def _visitors(route: TunnelRoute) -> Span:
    return format_count(route.visitors), "" if route.visitors else "dim"


def _rtt(route: TunnelRoute) -> Span:
    rtt = route.rtt_ms
    return (NOTHING, "dim") if rtt is None else (format_milliseconds(rtt), "")


def _pool(route: TunnelRoute) -> Span:
    pool = route.pool
    return NOTHING if pool is None else f"{format_count(pool[0])}/{format_count(pool[1])}", ""


_COLUMNS: Final = (
    _RouteColumn("TARGET", 22, 110, _target, is_right=False),
    _RouteColumn("VISITORS", 9, 0, _visitors),
    _RouteColumn("↓/s", 6, 54, lambda route: format_rate(route.rates[0])),
    _RouteColumn("RTT", 7, 80, _rtt),
    _RouteColumn("POOL", 10, 70, _pool),
)


def route_heading(width: int) -> Line:
    """Return the titles of the list of routes."""
    column = _end_width(width)
    titles: list[Span] = [(fit(c.title, c.width, right=c.is_right), "dim") for c in _columns(width)]
    return ((" ", ""), (fit("  INGRESS", column) + " " * _LINK_WIDTH, "dim"), (fit("  EGRESS", column), "dim"), *titles)


def route_row(route: TunnelRoute, width: int) -> Line:
    """Return a route as a row: both ends with their states, the link, the figures."""
    end_width = _end_width(width)
    link, style = ("══▶", "good") if route.is_linked else ("╌╌▷", "dim")
    ends = _end(route.ingress, end_width), _end(route.egress, end_width)
    cells: list[Span] = []
    for column in _columns(width):
        text, cell_style = column.cell(route)
        cells.append((fit(text, column.width, right=column.is_right), cell_style))
    return ((" ", ""), *ends[0], (f" {link} ", style), *ends[1], *cells)


def _columns(width: int) -> list[_RouteColumn]:
    return [column for column in _COLUMNS if width >= column.min_screen]


def _end_width(width: int) -> int:
    taken = 1 + _LINK_WIDTH + sum(column.width for column in _columns(width))
    return max(8, (width - taken) // 2)


def _end(end: Tunnel | None, width: int) -> tuple[Span, Span]:
    if end is None:
        return ("? ", "warn"), (fit("unknown", width - 2), "dim")
    style = STATE_STYLES.get(end.state, "")
    sign = OFFLINE_SIGN if end.is_host_offline else STATE_SIGNS.get(end.state, "?")
    return (f"{sign} ", style), (fit(end.name, width - 2), "" if end.state == State.UP else style)


# --- hosts ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _HostCounts:
    """What a host's tunnels add up to."""

    tunnels: int = 0
    up: int = 0
    visitors: int = 0


def host_lines(hosts: Mapping[str, HostData], tunnels: Sequence[Tunnel], width: int, now: float) -> list[Line]:
    """Return all hosts, offline ones first: presence, tunnels, visitors, file, and whether commands are accepted.

    ``now`` is the monotonic clock.
    """
    counts = {name: _HostCounts() for name in hosts}
    for tunnel in tunnels:
        of_host = counts.setdefault(tunnel.host, _HostCounts())
        of_host.tunnels += 1
        of_host.up += tunnel.state == State.UP
        of_host.visitors += tunnel.visitors
    label_width = max([8, *(len(host["label"]) for host in hosts.values())])
    label_width = min(label_width, max(8, width - 58))
    head = fit("  HOST", label_width + 3) + fit("PRESENCE", 13)
    head += fit("UP", 8, right=True) + fit("VISITORS", 10, right=True) + fit("MONTH", 8, right=True)
    lines: list[Line] = [((f"{head}  FILE", "dim"),)]
    for name, host in sorted(hosts.items(), key=lambda item: (item[1]["presence"] == ONLINE, item[0])):
        lines.append(_host_row(host, counts[name], label_width, now))
        error = host["config"]["error"]
        if host["config"]["ok"] is False and error:
            lines += [((f"    {part}", "warn"),) for part in wrap(error, width - 4)]
    return lines


def _host_row(host: HostData, counts: _HostCounts, label_width: int, now: float) -> Line:
    is_online, at = host["presence"] == ONLINE, host["last_message_at"]
    age = "" if at is None else f" {format_seconds(max(0.0, now - at))}"
    file: list[str] = [f"gen {host['generation']}"] if host["generation"] is not None else []
    file += ["file is wrong"] if host["config"]["ok"] is False else []
    file += [] if host["commands"] else ["accepts no commands"]
    up, carried = counts.up if is_online else 0, host["bytes_month"]
    return (
        (f"{'●' if is_online else OFFLINE_SIGN} ", "good" if is_online else "gone"),
        (fit(host["label"], label_width + 1), "title"),
        (fit("online" if is_online else f"{host['presence']}{age}", 13), "" if is_online else "gone"),
        (fit(f"{up}/{counts.tunnels}", 8, right=True), "" if is_online and up == counts.tunnels else "warn"),
        (fit(format_count(counts.visitors), 10, right=True), "" if counts.visitors else "dim"),
        (fit("" if carried is None else format_bytes(carried), 8, right=True), "" if carried else "dim"),
        (f"  {', '.join(file)}", "warn" if host["config"]["ok"] is False else "dim"),
    )
