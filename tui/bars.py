"""The lines around the table: header, pills, filter, banners. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from orchestrator.mqtt.fleet import ONLINE
from orchestrator.state_display import OFFLINE_SIGN, STATE_SIGNS
from tui.happenings import error_text, joined
from tui.keys import DEEDS, shown_keys
from tui.lines import Line, Span, amount, clip, clock, ends, length, seconds, wrap
from tui.model import Json, View, moment
from tui.selection import ALL, Selection, pills

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

_LONGEST_BANNER: Final = 4  # lines
_WITH_BORDERS: Final = 100  # columns from which on the filters have borders
_FOOTER: Final = (
    "help", "quit", "filter", "detail", "start_stop", "restart", "retry", "path", "log", "sort", "events", "commands",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Attached:
    """How the dashboard hangs on its daemon."""

    place: str
    is_read_only: bool = False
    lost: str | None = None
    """why the daemon does not answer; None while it does"""
    lost_for: float = 0.0
    """seconds since it was last heard"""
    is_frozen: bool = False
    teller: str = "daemon"
    """who answers, or does not"""


def header_line(view: View, attached: Attached, width: int) -> Line:
    """The file and its generation on the left, where we are attached on the right."""
    config = view.config
    left: list[Span] = [(" nodepass-orch", "title")]
    if config:
        is_good = bool(config.get("ok", True))
        sign, style = ("✓", "up") if is_good else ("!", "warn")
        loaded = clock(moment(config.get("loaded_at")))
        left += [
            (f"  {fit_path(str(config.get('path', '')), width)} ", ""),
            (sign, style),
            (f" gen {view.status.get('generation', '?')}, {loaded}", "dim"),
        ]
    elif view.hosts is not None:
        left += fleet_spans(view.hosts)
    right: list[list[Span]] = []
    if attached.lost is not None:
        right.append([(f"▲ stale {seconds(attached.lost_for)}", "warn")])
    if attached.is_frozen:
        right.append([("▮▮ frozen", "key")])
    if attached.is_read_only or view.is_read_only:
        right.append([("READ-ONLY", "key")])
    host, place = str(view.status.get("host") or ""), fit_place(attached.place, width)
    for where in (f"{host} {place}" if host else place, place):  # the first that fits
        if length(left) + length(joined(right)) + len(where) + 6 <= width:
            right.insert(0, [(where, "dim")])
            break
    return ends(tuple(left), (*joined(right), (" ", "")), width)


def fleet_spans(hosts: Mapping[str, Json]) -> list[Span]:
    """How many hosts there are, and how many of them do not speak."""
    gone = sum(host["presence"] != ONLINE for host in hosts.values())
    spans = [(f"  {len(hosts)} {'host' if len(hosts) == 1 else 'hosts'}", "")]
    return [*spans, (f"  {OFFLINE_SIGN} {gone} gone", "gone")] if gone else [*spans, ("  ✓", "up")]


def fit_path(path: str, width: int) -> str:
    """As much of a path as a header of ``width`` bears: the file's name at least."""
    return path if len(path) <= width // 4 else PurePath(path).name


def fit_place(place: str, width: int) -> str:
    """The same for the daemon's place."""
    scheme, separator, path = place.partition(":")
    return place if len(place) <= width // 4 or "/" not in path else f"{scheme}{separator}…/{PurePath(path).name}"


@dataclass(frozen=True, slots=True)
class Choice:
    """Where something that one may click on stands in its line."""

    name: str
    start: int
    end: int


def pill_bar(view: View, counts: Mapping[str, int], chosen: str, width: int) -> tuple[Line, tuple[Choice, ...]]:
    """The filters by state with their counts, and all traffic at the end; and where each filter stands."""
    down, up = (f"{sign}{amount(rate)}" for sign, rate in zip("↓↑", view.rates, strict=True))
    both, one = f"{down:>6} {up:>6} ", f"{down:>6} "  # as wide with any rate, so that nothing moves
    names = pills(is_fleet=view.hosts is not None)
    counted = frozenset(name for name in names if counts.get(name, 0)) | {ALL, chosen}
    border = "│" if width >= _WITH_BORDERS else ""
    spans, choices = _pills(counts, chosen, names, names, border)
    rates = both
    for words, fewer in ((names, one), (counted, both), (counted, one), ({ALL, chosen}, one)):
        if length(spans) + len(rates) < width:
            break
        spans, choices = _pills(counts, chosen, names, words, border)
        rates = fewer
    return ends(spans, ((rates, "spark"),), width), choices


def _pills(
    counts: Mapping[str, int], chosen: str, names: Sequence[str], words: Collection[str], border: str
) -> tuple[Line, tuple[Choice, ...]]:
    spans: list[Span] = [(" ", "")]
    choices: list[Choice] = []
    for name in names:
        count = counts.get(name, 0)
        sign = "" if name == ALL else f"{_sign(name)} "
        word = f"{name.capitalize() if name == ALL else name} " if name in words else ""
        start = length(spans)
        style = "title" if name == ALL else name if count else "dim"
        spans.append((f" {sign}{word}{count} ", "pick" if name == chosen else style))
        choices.append(Choice(name, start, length(spans)))
        spans.append((border, "dim"))
    return tuple(spans[:-1]), tuple(choices)


def _sign(name: str) -> str:
    return STATE_SIGNS.get(name, OFFLINE_SIGN)


def footer_bar(keys: Mapping[str, str], width: int, *, is_read_only: bool) -> tuple[Line, tuple[Choice, ...]]:
    """The keys that one needs most, as many as there is room for, help always; and where each stands."""
    wanted = [deed for deed in DEEDS if deed.short and not (deed.is_command and is_read_only)]
    wanted.sort(key=lambda deed: _FOOTER.index(deed.name) if deed.name in _FOOTER else len(_FOOTER))
    spans: list[Span] = [(" ", "")]
    choices: list[Choice] = []
    for deed in wanted:
        start = length(spans)
        # the first key stands for all of them
        shown: list[Span] = [(shown_keys(keys[deed.name].split(",")[0]), "key"), (f" {deed.short}", ""), ("  ", "")]
        if start + length(shown) - 2 > width:
            continue
        spans += shown
        choices.append(Choice(deed.name, start, length(spans) - 2))
    return clip(tuple(spans), width), tuple(choices)


def filter_line(selection: Selection, shown: int, total: int, marked: int, width: int) -> Line:
    """What is filtered, how many are left, how they are sorted."""
    left: tuple[Span, ...] = (
        ((" / ", "key"), (selection.text, "title")) if selection.text else ((" / ", "key"), ("filter", "dim"))
    )
    right: list[list[Span]] = []
    if marked:
        right.append([(f"{marked} marked", "mark")])
    right.append([(f"{shown} of {total}" if shown != total else f"{total}", "dim")])
    arrow = "▲" if selection.is_reversed else "▼"
    right.append([("sort " if width >= 60 else "", "dim"), (f"{selection.sort.upper()} {arrow}", "dim")])
    return ends(left, (*joined(right), (" ", "")), width)


def banner_lines(view: View, attached: Attached, notice: str | None, width: int) -> list[Line]:
    """What everybody should see first: a lost daemon, a file that is wrong, what the last reload did."""
    lines: list[Line] = []
    room = max(20, width - 4)
    if attached.lost is not None:
        text = f"The {attached.teller} has not answered for {seconds(attached.lost_for)}: {attached.lost}."
        last = " This is the last view; trying again." if view.status else " Trying again."
        lines += _notice("▲", wrap(f"{text}{last}", room), "warn")
    if view.config and not view.config.get("ok", True):
        text = f"{error_text(_error(view))} (the tunnels serve on as before)"
        lines += _notice("▲", wrap(text, room), "warn")
    wrong = [f"{name}: {host['config']['error']}" for name, host in (view.hosts or {}).items() if _is_wrong(host)]
    if wrong:
        more = f"; and {len(wrong) - 1} more hosts, press h" if len(wrong) > 1 else ""
        lines += _notice("▲", wrap(f"{wrong[0]} (its tunnels serve on as before){more}", room), "warn")
    if notice:
        lines += _notice("✓", wrap(notice, room), "up")
    return [clip(line, width) for line in lines[:_LONGEST_BANNER]]


def _is_wrong(host: Json) -> bool:
    return host["presence"] == ONLINE and host["config"]["ok"] is False


def _error(view: View) -> object:
    config = view.config
    error = config.get("error")
    if isinstance(error, str) and config.get("line") is not None and f":{config['line']}" not in error:
        return {"file": config.get("path"), "line": config["line"], "column": config.get("column"), "message": error}
    return error


def _notice(sign: str, texts: list[str], style: str) -> list[Line]:
    return [((f" {sign if index == 0 else ' '} {text}", style),) for index, text in enumerate(texts)]


def first_lines(view: View, attached: Attached, width: int) -> list[Line]:
    """What stands where the tunnels would be while there are none."""
    if not view.status:
        text = (
            f"Asking the {attached.teller} at {attached.place} …"
            if attached.lost is None
            else f"Waiting for a {attached.teller} at {attached.place}."
        )
        return [(), *_told(text, width)]
    if view.hosts is not None:
        return _no_fleet(view.hosts, attached, width)
    path = str(view.config.get("path") or "tunnels.yaml")
    return [
        (),
        *_told(f"There are no tunnels in {path} yet. Write two lines there and save; they run at once:", width),
        (),
        (("   tunnels:", "title"),),
        (("     web: server://0.0.0.0:10101/127.0.0.1:8080", "title"),),
        (),
        *_told("and at the other end: client://THIS_HOST:10101/127.0.0.1:3000", width),
    ]


def _no_fleet(hosts: Mapping[str, Json], attached: Attached, width: int) -> list[Line]:
    if hosts:
        return [(), *_told(f"None of the hosts ({', '.join(hosts)}) has a tunnel.", width)]
    return [
        (),
        *_told(f"No host has published to {attached.place} yet. Write two lines into a host's file and save:", width),
        (),
        (("   supervisor:", "title"),),
        ((f"     mqtt: {{url: {attached.place}, host: edge-1, commands: true}}", "title"),),
    ]


def _told(text: str, width: int) -> list[Line]:
    return [((f"   {part}", "dim"),) for part in wrap(text, max(20, width - 6))]


def none_match(selection: Selection, width: int) -> list[Line]:
    """What stands where the tunnels would be while none of them is let through."""
    what = f"is {selection.pill}" if selection.pill != ALL else "is here"
    text = f"No tunnel {what}" + (f" and matches {selection.text!r}" if selection.text else "") + ". Escape shows all."
    return [(), *_told(text, width)]
