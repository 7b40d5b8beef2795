"""Paths as rows, hosts as rows. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from orchestrator.mqtt.fleet import ONLINE
from orchestrator.state_display import OFFLINE_SIGN, STATE_SIGNS
from tui.lines import NOTHING, Line, Span, amount, fit, number, seconds
from tui.rows import milliseconds
from tunnel.model.state import State

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tui.model import Json, Tunnel
    from tui.path import Path

_FIGURES: Final = (("CONN", 5, 0), ("↓/s", 6, 50), ("RTT", 7, 76), ("POOL", 10, 66), ("TARGET", 22, 110))
"""Columns beside the two ends: title, width, and how wide a screen has to be for it."""
_LINK: Final = 5


def path_heading(width: int) -> Line:
    """The titles of the list of paths."""
    column = _end_width(width)
    figures = [(fit(title, wide, right=title != "TARGET"), "dim") for title, wide, least in _FIGURES if width >= least]
    *before, last = figures if width >= _FIGURES[-1][2] else (*figures, ("", ""))
    gap = " " * _LINK
    return ((" ", ""), (fit("  ENTRANCE", column) + gap, "dim"), (fit("  EXIT", column), "dim"), last, *before)


def path_row(path: Path, width: int) -> Line:
    """One path: both ends with their states, what lies between them, and what goes through."""
    column = _end_width(width)
    link, style = ("══▶", "up") if path.is_linked else ("╌╌▷", "dim")
    pool, rtt, (out, _) = path.pool, path.rtt_ms, path.rates
    exit_ = path.exit
    cells = (
        (number(path.visitors), "" if path.visitors else "dim"),
        (amount(out) if out >= 0.5 else NOTHING, "" if out >= 0.5 else "dim"),
        (NOTHING if rtt is None else milliseconds(rtt), "" if rtt is not None else "dim"),
        (NOTHING if pool is None else f"{number(pool[0])}/{number(pool[1])}", ""),
    )
    shown: list[Span] = [
        (fit(text, wide, right=True), style)
        for (text, style), (_, wide, least) in zip(cells, _FIGURES, strict=False)
        if width >= least
    ]
    target: list[Span] = []
    if width >= _FIGURES[-1][2]:
        target = [(fit(f"→ {exit_.text('target_addr')}" if exit_ else "→ ?", _FIGURES[-1][1]), "dim")]
    ends = _end(path.entrance, column), _end(path.exit, column)
    return ((" ", ""), *ends[0], (f" {link} ", style), *ends[1], *target, *shown)


def _end_width(width: int) -> int:
    taken = 1 + _LINK + sum(wide for _, wide, least in _FIGURES if width >= least)
    return max(8, (width - taken) // 2)


def _end(end: Tunnel | None, width: int) -> tuple[Span, Span]:
    if end is None:
        return ("? ", "warn"), (fit("not seen", width - 2), "dim")
    style = "gone" if end.is_gone else end.state
    sign = OFFLINE_SIGN if end.is_gone else STATE_SIGNS.get(end.state, "?")
    return (f"{sign} ", style), (fit(end.name, width - 2), "" if end.state == State.UP else style)


def host_lines(hosts: Mapping[str, Json], tunnels: Sequence[Tunnel], width: int, now: float) -> list[Line]:
    """All hosts, those that are gone first: whether they are there, their tunnels, their file, whether they obey."""
    counts: dict[str, list[int]] = {name: [0, 0, 0] for name in hosts}
    for tunnel in tunnels:
        found = counts.get(tunnel.host, [0, 0, 0])
        found[0] += 1
        found[1] += tunnel.state == State.UP
        found[2] += tunnel.active
    wide = max([8, *(len(str(host["label"])) for host in hosts.values())])
    wide = min(wide, max(8, width - 46))
    head = fit("  HOST", wide + 3) + fit("PRESENCE", 13) + fit("UP", 8, right=True) + fit("CONN", 6, right=True)
    lines: list[Line] = [((f"{head}  FILE", "dim"),)]
    for name, host in sorted(hosts.items(), key=lambda item: (item[1]["presence"] == ONLINE, item[0])):
        lines.append(_host_row(host, counts[name], wide, now))
        error = host["config"]["error"]
        if host["config"]["ok"] is False and error:
            lines.append(((f"    {error}", "warn"),))
    return lines


def _host_row(host: Json, counts: Sequence[int], wide: int, now: float) -> Line:
    is_online = host["presence"] == ONLINE
    age = "" if host["last_word"] is None else f" {seconds(max(0.0, now - host['last_word']))}"
    count, up, active = counts
    file: list[str] = [f"gen {host['generation']}"] if host["generation"] is not None else []
    file += [] if host["config"]["ok"] is not False else ["file wrong"]
    file += [] if host["commands"] else ["takes no commands"]
    return (
        (f"{'●' if is_online else OFFLINE_SIGN} ", "up" if is_online else "gone"),
        (fit(str(host["label"]), wide + 1), "title"),
        (fit("online" if is_online else f"{host['presence']}{age}", 13), "" if is_online else "gone"),
        (fit(f"{up if is_online else 0}/{count}", 8, right=True), "" if is_online and up == count else "warn"),
        (fit(number(active), 6, right=True), "" if active else "dim"),
        (f"  {', '.join(file)}", "warn" if host["config"]["ok"] is False else "dim"),
    )
