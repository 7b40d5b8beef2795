"""The lines around the table: header, state filters, text filter, banners, footer, and the texts of an empty table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from orchestrator.mqtt.fleet import ONLINE
from orchestrator.state_display import OFFLINE_SIGN, STATE_SIGNS
from tui.format.columns import TableLayout, sort_arrow
from tui.format.event_format import error_text
from tui.format.text import (
    Line,
    Span,
    clip,
    format_bytes,
    format_seconds,
    format_time,
    join_spans,
    justify,
    length,
    plural,
    wrap,
)
from tui.model.keys import FOOTER_ACTIONS, display_keys
from tui.model.selection import Selection
from tui.model.states import ALL, STATE_RANKS, STATE_STYLES, state_filters, states_of_filter
from tui.model.tunnels import StatusView, parse_timestamp

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from orchestrator.status.json_types import ConfigJson
    from tui.model.connection import ConnectionStatus
    from tui.model.messages import HostData

_MAX_BANNER_LINES: Final = 4
_MIN_BORDER_WIDTH: Final = 100
"""Width of the screen from which on the state filters have borders."""


def header_line(view: StatusView, connection: ConnectionStatus, width: int) -> Line:
    """Return the file and its generation on the left, the connection on the right."""
    left: list[Span] = [(" nodepass-orch", "title")]
    if view.config:
        left += _config_spans(view, view.config, width)
    elif view.hosts is not None:
        left += _host_spans(view.hosts)
    right: list[list[Span]] = []
    if connection.error is not None:
        right.append([(f"▲ stale {format_seconds(connection.silent_for)}", "warn")])
    if connection.is_frozen:
        right.append([("▮▮ frozen", "key")])
    if connection.is_read_only or view.is_read_only:
        right.append([("READ-ONLY", "key")])
    host, place = view.status.get("host") or "", _fit_place(connection.place, width)
    for where in (f"{host} {place}" if host else place, place):  # the first one that fits
        if length(left) + length(join_spans(right)) + len(where) + 6 <= width:
            right.insert(0, [(where, "dim")])
            break
    return justify(tuple(left), (*join_spans(right), (" ", "")), width)


def _config_spans(view: StatusView, config: ConfigJson, width: int) -> list[Span]:
    sign, style = ("✓", "good") if config.get("ok", True) else ("!", "warn")
    loaded = format_time(parse_timestamp(config.get("loaded_at")))
    return [
        (f"  {_fit_path(config.get('path', ''), width)} ", ""),
        (sign, style),
        (f" gen {view.status.get('generation', '?')}, {loaded}", "dim"),
    ]


def _host_spans(hosts: Mapping[str, HostData]) -> list[Span]:
    offline = sum(host["presence"] != ONLINE for host in hosts.values())
    spans = [(f"  {plural(len(hosts), 'host')}", "")]
    return [*spans, (f"  {OFFLINE_SIGN} {offline} gone", "gone")] if offline else [*spans, ("  ✓", "good")]


def _fit_path(path: str, width: int) -> str:
    """Return a file's path, or its name if the path is too long for a header of ``width``."""
    return path if len(path) <= width // 4 else PurePath(path).name


def _fit_place(place: str, width: int) -> str:
    """Return a source's address, shortened likewise."""
    scheme, separator, path = place.partition(":")
    return place if len(place) <= width // 4 or "/" not in path else f"{scheme}{separator}…/{PurePath(path).name}"


# --- lines with targets for the mouse ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClickTarget:
    """The columns of a line in which a click chooses something."""

    name: str
    start: int
    end: int


def state_filter_bar(
    view: StatusView, counts: Mapping[str, int], chosen: str, width: int
) -> tuple[Line, tuple[ClickTarget, ...]]:
    """Return the filters by state and the total traffic at the end; and the targets for clicks.

    ``counts`` are the tunnels in each state.
    """
    down, up = (f"{sign}{format_bytes(rate)}" for sign, rate in zip("↓↑", view.rates, strict=True))
    both, one = f"{down:>6} {up:>6} ", f"{down:>6} "  # of a fixed width, so that nothing moves
    names = state_filters(is_fleet=view.hosts is not None)
    border = "│" if width >= _MIN_BORDER_WIDTH else ""
    make_spans = partial(_state_filter_spans, counts, chosen, names, border=border)
    spelled_out = set(names)
    if length(make_spans(spelled_out)[0]) + len(one) >= width:  # only the words for which there is room
        spelled_out = set()
        for name in sorted(names, key=partial(_word_rank, counts, chosen)):
            if length(make_spans({*spelled_out, name})[0]) + len(one) < width:
                spelled_out.add(name)
    spans, targets = make_spans(spelled_out)
    rates = both if length(spans) + len(both) < width else one
    return justify(spans, ((rates, "spark"),), width), targets


def _word_rank(counts: Mapping[str, int], chosen: str, name: str) -> tuple[bool, bool, int]:
    """Return the order in which filters get their words: the chosen one, those with tunnels, the most urgent first."""
    present = _present_states(name, counts)[0]
    return name not in {ALL, chosen}, not counts.get(present), STATE_RANKS.get(present, 0)


def _state_filter_spans(
    counts: Mapping[str, int], chosen: str, names: Sequence[str], spelled_out: Collection[str], *, border: str
) -> tuple[Line, tuple[ClickTarget, ...]]:
    spans: list[Span] = [(" ", "")]
    targets: list[ClickTarget] = []
    for name in names:
        present = _present_states(name, counts)
        count = sum(counts.values()) if name == ALL else sum(counts.get(state, 0) for state in present)
        sign = "" if name == ALL else f"{STATE_SIGNS.get(present[0], OFFLINE_SIGN)} "
        word = f"{'/'.join(present)} " if name in spelled_out else ""
        start = length(spans)
        style = "title" if name == ALL else STATE_STYLES[present[0]] if count else "dim"
        spans.append((f" {sign}{word}{count} ", "pick" if name == chosen else style))
        targets.append(ClickTarget(name, start, length(spans)))
        spans.append((border, "dim"))
    return tuple(spans[:-1]), tuple(targets)


def _present_states(name: str, counts: Mapping[str, int]) -> list[str]:
    """Return the states of a filter in which there are tunnels, the most urgent one first; without any, its name.

    So a filter says what it holds: ``draining 1``, not ``stopped 1``.
    """
    if name == ALL:
        return [name.capitalize()]
    present = sorted((state for state in states_of_filter(name) if counts.get(state)), key=STATE_RANKS.__getitem__)
    return present or [name]


def footer_bar(keys: Mapping[str, str], width: int, *, is_read_only: bool) -> tuple[Line, tuple[ClickTarget, ...]]:
    """Return the most important keys, as many as fit; and the targets for clicks."""
    spans: list[Span] = [(" ", "")]
    targets: list[ClickTarget] = []
    for action in FOOTER_ACTIONS:
        if action.is_command and is_read_only:
            continue
        start = length(spans)
        first_key = keys[action.name].split(",")[0]
        added: list[Span] = [(display_keys(first_key), "key"), (f" {action.label}", ""), ("  ", "")]
        if start + length(added) - 2 > width:
            continue
        spans += added
        targets.append(ClickTarget(action.name, start, length(spans) - 2))
    return clip(tuple(spans), width), tuple(targets)


def filter_bar(
    selection: Selection, layout: TableLayout, shown: int, total: int, marked: int, width: int
) -> tuple[Line, tuple[ClickTarget, ...]]:
    """Return the text filter, how many tunnels are shown, and the sort order; and the targets for clicks.

    The sort order has the title that the column has in the table's present ``layout``.
    """
    left: tuple[Span, ...] = (
        ((" / ", "key"), (selection.text, "title")) if selection.text else ((" / ", "key"), ("filter", "dim"))
    )
    right: list[list[Span]] = []
    if marked:
        right.append([(f"{marked} marked", "mark")])
    right.append([(f"{shown} of {total}" if shown != total else f"{total}", "dim")])
    order = f"{layout.sort_title(selection.sort)} {sort_arrow(selection)}"
    order = f"sort {order}" if width >= 60 else order
    right.append([(order, "dim")])
    line = justify(left, (*join_spans(right), (" ", "")), width)
    sort_start = width - length([(order, "")]) - 1
    return line, (ClickTarget("filter", 0, sort_start - 1), ClickTarget("sort", sort_start, width))


# --- banners ----------------------------------------------------------------------------------------------------------


def banner_lines(view: StatusView, connection: ConnectionStatus, notice: str | None, width: int) -> list[Line]:
    """Return what needs attention: a lost connection, an invalid file, the result of the last reload."""
    room = max(20, width - 4)
    lines: list[Line] = []
    for text in _warnings(view, connection):
        lines += _banner("▲", wrap(text, room), "warn")
    if notice:
        lines += _banner("✓", wrap(notice, room), "good")
    return [clip(line, width) for line in lines[:_MAX_BANNER_LINES]]


def _warnings(view: StatusView, connection: ConnectionStatus) -> list[str]:
    warnings = []
    if connection.error is not None:
        silence = format_seconds(connection.silent_for)
        outdated = "The last known values are shown; retrying." if view.status else "Retrying."
        warnings.append(f"The {connection.peer_name} has not answered for {silence}: {connection.error}. {outdated}")
    if view.config and not view.config.get("ok", True):
        warnings.append(f"{_config_error(view.config)} (the running tunnels are not affected)")
    invalid = [f"{name}: {host['config']['error']}" for name, host in (view.hosts or {}).items() if _is_invalid(host)]
    if invalid:
        others = f"; {plural(len(invalid) - 1, 'more host')} (press h)" if len(invalid) > 1 else ""
        warnings.append(f"{invalid[0]} (its running tunnels are not affected){others}")
    return warnings


def _is_invalid(host: HostData) -> bool:
    return host["presence"] == ONLINE and host["config"]["ok"] is False


def _config_error(config: ConfigJson) -> str:
    """Return the error with its place, unless its text contains the place already."""
    error, line = config["error"], config.get("line")
    if not error or line is None or f":{line}" in error:
        return error_text(error)
    return error_text({"file": config["path"], "line": line, "column": config.get("column"), "message": error})


def _banner(sign: str, texts: list[str], style: str) -> list[Line]:
    return [((f" {sign if index == 0 else ' '} {text}", style),) for index, text in enumerate(texts)]


# --- in place of the table --------------------------------------------------------------------------------------------


def no_tunnels_lines(view: StatusView, connection: ConnectionStatus, width: int) -> list[Line]:
    """Return what is shown while there is no tunnel: that data is missing, or how to add the first tunnel."""
    if not view.status:
        text = (
            f"Connecting to the {connection.peer_name} at {connection.place} …"
            if connection.error is None
            else f"Waiting for a {connection.peer_name} at {connection.place}."
        )
        return [(), *_hint(text, width)]
    if view.hosts is not None:
        return _no_fleet_lines(view.hosts, connection, width)
    path = view.config["path"] if view.config else "tunnels.yaml"
    return [
        (),
        *_hint(f"There are no tunnels in {path} yet. Add two lines and save; the tunnel starts at once:", width),
        (),
        (("   tunnels:", "title"),),
        (("     web: server://KEY@0.0.0.0:10101/127.0.0.1:8080", "title"),),
        (),
        *_hint("and at the other end: client://KEY@THIS_HOST:10101/127.0.0.1:3000", width),
        *_hint("KEY is what nodepass-orch keygen prints.", width),
    ]


def _no_fleet_lines(hosts: Mapping[str, HostData], connection: ConnectionStatus, width: int) -> list[Line]:
    if hosts:
        return [(), *_hint(f"None of the hosts ({', '.join(hosts)}) has a tunnel.", width)]
    return [
        (),
        *_hint(f"No host has published to {connection.place} yet. Add two lines to a host's file and save:", width),
        (),
        (("   supervisor:", "title"),),
        ((f"     mqtt: {{url: {connection.place}, host: edge-1, commands: true}}", "title"),),
    ]


def no_match_lines(selection: Selection, width: int) -> list[Line]:
    """Return what is shown while no tunnel passes the filters."""
    criteria = [f"is {selection.state_filter}"] if selection.state_filter != ALL else []
    criteria += [f"matches {selection.text!r}"] if selection.text else []
    return [(), *_hint(f"No tunnel {' and '.join(criteria) or 'is shown'}. Press Escape to show all.", width)]


def _hint(text: str, width: int) -> list[Line]:
    return [((f"   {part}", "dim"),) for part in wrap(text, max(20, width - 6))]
