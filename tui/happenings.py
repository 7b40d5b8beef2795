"""Events, plans and the results of reloads, as lines. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.cells import cell_len

from tui.lines import Line, Span, clock, wrap
from tui.model import Json, moment
from tunnel.model.spec import LogLevel

if TYPE_CHECKING:
    from collections.abc import Sequence

LEVELS: Final = tuple(level.name.lower() for level in LogLevel)
SHOWN_IN_EVENTS: Final = frozenset({"state", "reload", "command", "config", "restart", "supervisor"})
"""Kinds that the view of events shows; the log has the rest."""

_STYLES: Final = {"debug": "dim", "warn": "warn", "error": "error", "fatal": "error"}
_INDENT: Final = 9
_NAME: Final = 16  # columns for a name, so that texts begin below one another


def gravity(event: Json) -> int:
    """How grave an event is; what is unknown counts as info."""
    level = str(event.get("level", "info"))
    return LEVELS.index(level) if level in LEVELS else LEVELS.index("info")


@dataclass(frozen=True, slots=True)
class Sieve:
    """Which events of a log are shown."""

    level: str = "info"
    text: str = ""

    def next_level(self) -> Sieve:
        """The same from the next higher level on, and after the highest from the lowest."""
        return Sieve(LEVELS[(LEVELS.index(self.level) + 1) % (len(LEVELS) - 1)], self.text)

    def lets(self, event: Json) -> bool:
        """Whether an event is shown."""
        if gravity(event) < LEVELS.index(self.level):
            return False
        if not self.text:
            return True
        searched = f"{event.get('tunnel', '')} {event.get('kind', '')} {event.get('text', '')}".casefold()
        return self.text.casefold() in searched


def event_lines(event: Json, width: int, *, is_named: bool) -> list[Line]:
    """An event as one line, or more where it is long; ``is_named``: with the tunnel's name."""
    level = LEVELS[gravity(event)]
    style = _STYLES.get(level, "")
    name = str(event.get("tunnel") or "") if is_named else ""
    head = f"{level.upper():<5} " + (f"{name}{' ' * max(2, _NAME + 2 - cell_len(name))}" if name else "")
    first, *rest = wrap(f"{head}{event.get('text', '')}", width - _INDENT, indent=0)
    lines: list[Line] = [((f"{clock(moment(event.get('ts')))} ", "dim"), (first, style))]
    return [*lines, *(((" " * _INDENT + part, style),) for part in rest)]


_SIGNS: Final = {
    "added": "+", "removed": "-", "restarted": "↻", "changed": "~", "rejected": "!", "failed": "!", "unchanged": "=",
}  # fmt: skip
REFUSALS: Final = frozenset({"failed", "rejected"})
"""Actions of a reload that are none: the entry is not as the file says."""

_ORDER: Final = ("failed", "rejected", "removed", "restarted", "changed", "added")


def result_lines(results: Mapping[str, Json], width: int) -> list[Line]:
    """What a reload did to each entry; what it left alone is only counted."""
    by_action: dict[str, list[tuple[str, Json]]] = {}
    for name, result in results.items():
        by_action.setdefault(str(result.get("action", "")), []).append((name, result))
    lines: list[Line] = []
    for action in (*_ORDER, *(set(by_action) - {*_ORDER, "unchanged"})):
        for name, result in by_action.get(action, ()):
            style = "warn" if action in REFUSALS else ""
            changes = "; ".join(map(str, result.get("changes") or ())) or str(result.get("detail") or "")
            lines += _entry(action, name, changes, width, style)
    unchanged = len(by_action.get("unchanged", ()))
    if unchanged:
        lines.append((((f"{unchanged} {'tunnel' if unchanged == 1 else 'tunnels'} left alone"), "dim"),))
    return lines


def plan_lines(plan: Json, width: int) -> list[Line]:
    """What a reload would do."""
    if not plan.get("ok", True):
        return [((part, "warn"),) for part in wrap(error_text(plan.get("error")), width)]
    lines: list[Line] = []
    for name in plan.get("remove") or ():
        lines += _entry("removed", str(name), "", width, "")
    for key, action in (("restart", "restarted"), ("change", "changed")):
        for entry in plan.get(key) or ():
            changes = "; ".join(map(str, entry.get("changes") or ()))
            lines += _entry(action, str(entry.get("name", "")), changes, width, "")
    for name in plan.get("add") or ():
        lines += _entry("added", str(name), "", width, "")
    if not lines:
        return [(("the file says what runs: nothing would change", ""),)]
    unchanged = int(plan.get("unchanged") or 0)
    return [*lines, ((f"{unchanged} left alone", "dim"),)]


def _entry(action: str, name: str, changes: str, width: int, style: str) -> list[Line]:
    text = f"{_SIGNS.get(action, '?')} {action} {name}" + (f": {changes}" if changes else "")
    return [((part, style),) for part in wrap(text, width, indent=2)]


def summary(results: Mapping[str, Json]) -> str:
    """What a reload did, in a few words: names where they are few, else numbers."""
    groups: dict[str, list[str]] = {}
    for name, result in results.items():
        groups.setdefault(str(result.get("action", "")), []).append(name)
    parts = [
        f"{action} {', '.join(names) if len(names) <= 3 else len(names)}"
        for action in _ORDER
        if (names := groups.get(action))
    ]
    return "; ".join(parts) or "nothing changed"


def touched(plan: Json) -> list[str]:
    """The tunnels whose visitors a plan would cut off, once they have had their time to finish."""
    return [*map(str, plan.get("remove") or ()), *(str(entry.get("name")) for entry in plan.get("restart") or ())]


def error_text(error: object) -> str:
    """An error of the file as ``FILE:LINE:COLUMN: message``, whichever way it was told."""
    if isinstance(error, Mapping):
        place = ":".join(str(error[key]) for key in ("file", "line", "column") if error.get(key) is not None)
        return f"{place}: {error.get('message', '')}" if place else str(error.get("message", ""))
    return str(error or "unknown error")


def joined(spans: Iterable[Sequence[Span]], gap: str = "  ") -> Line:
    """Groups of spans in one line, with a gap between two."""
    line: list[Span] = []
    for group in spans:
        if group:
            line += ([(gap, "")] if line else []) + list(group)
    return tuple(line)
