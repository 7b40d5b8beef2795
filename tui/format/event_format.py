"""Events, plans and results of reloads as lines, and the filter of the log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.cells import cell_len

from orchestrator.status.plan_texts import describe_finishing
from tui.format.text import Line, format_time, paragraph, plural, wrap
from tui.model.selection import NOT, matches_pattern
from tui.model.tunnels import parse_timestamp
from tunnel.model.events import EVENT_KINDS
from tunnel.model.spec import LogLevel

if TYPE_CHECKING:
    from orchestrator.status.json_types import EntryResultJson, FaultJson, PlanJson
    from tui.model.messages import EventData

LEVELS: Final = tuple(level.name.lower() for level in LogLevel)
HISTORY_KINDS: Final = frozenset(str(kind) for kind, info in EVENT_KINDS.items() if info.is_history)
"""Kinds that the page of events shows, as the API does; the log has the others."""

_LEVEL_STYLES: Final = {"debug": "dim", "warn": "warn", "error": "severe", "fatal": "severe"}
_TIME_WIDTH: Final = 9
_NAME_WIDTH: Final = 16
"""Columns for a name, so that texts are aligned."""


def severity(event: EventData) -> int:
    """Return the index of the event's level in LEVELS; an unknown level counts as info."""
    level = event.get("level", "info")
    return LEVELS.index(level) if level in LEVELS else LEVELS.index("info")


@dataclass(frozen=True, slots=True)
class LogFilter:
    """The events of a log that are shown: those of a level and above that contain a text, or ``!text``: do not."""

    level: str = "info"
    text: str = ""

    def next_level(self) -> LogFilter:
        """Return this filter with the next higher level, after the highest one with the lowest."""
        return LogFilter(LEVELS[(LEVELS.index(self.level) + 1) % (len(LEVELS) - 1)], self.text)

    def matches(self, event: EventData) -> bool:
        """Return whether an event is shown."""
        if severity(event) < LEVELS.index(self.level):
            return False
        text = self.text.casefold()
        pattern = text.removeprefix(NOT)
        if not pattern:
            return True
        name = (event.get("tunnel") or "").casefold()
        searched = f"{name} {event.get('kind', '')} {event.get('text', '')}".casefold()
        is_match = pattern in searched or matches_pattern(name, pattern) or matches_pattern(searched, f"*{pattern}*")
        return is_match != (pattern != text)


def event_lines(event: EventData, width: int, *, has_name: bool) -> list[Line]:
    """Return an event as one line, or more if it is long; ``has_name``: with the tunnel's name."""
    level = LEVELS[severity(event)]
    style = _LEVEL_STYLES.get(level, "")
    name = event.get("tunnel") or "" if has_name else ""
    head = f"{level.upper():<5} " + (f"{name}{' ' * max(2, _NAME_WIDTH + 2 - cell_len(name))}" if name else "")
    first, *rest = wrap(f"{head}{event.get('text', '')}", width - _TIME_WIDTH, indent=0)
    lines: list[Line] = [((f"{format_time(parse_timestamp(event.get('ts')))} ", "dim"), (first, style))]
    return [*lines, *(((" " * _TIME_WIDTH + part, style),) for part in rest)]


# --- plans and results of reloads -------------------------------------------------------------------------------------

_SIGNS: Final = {
    "failed": "!", "rejected": "!", "removed": "-", "restarted": "↻", "changed": "~", "added": "+",
}  # fmt: skip
"""The outcomes of a reload for an entry, in the order in which they are listed."""
_UNCHANGED: Final = "unchanged"
REFUSALS: Final = frozenset({"failed", "rejected"})
"""Outcomes after which an entry does not run as the file says."""


def result_lines(results: Mapping[str, EntryResultJson], width: int) -> list[Line]:
    """Return what a reload did to each entry; unchanged ones are only counted."""
    by_outcome = _by_outcome(results)
    lines: list[Line] = []
    for outcome in (*_SIGNS, *(by_outcome.keys() - {*_SIGNS, _UNCHANGED})):
        for name in by_outcome.get(outcome, ()):
            result = results[name]
            style = "warn" if outcome in REFUSALS else ""
            changes = "; ".join(result.get("changes") or ()) or result.get("detail") or ""
            lines += _entry_lines(outcome, name, changes, width, style)
    unchanged = len(by_outcome.get(_UNCHANGED, ()))
    if unchanged:
        lines.append(((f"{plural(unchanged, 'tunnel')} unchanged", "dim"),))
    return lines


def plan_lines(plan: PlanJson, width: int) -> list[Line]:
    """Return what a reload would do."""
    if not plan["ok"]:
        return paragraph(error_text(plan["error"]), width, "warn")
    lines: list[Line] = []
    finishing = describe_finishing(plan)
    for name in plan["remove"]:
        lines += _entry_lines("removed", name, finishing.get(name, ""), width)
    for steps, outcome in ((plan["restart"], "restarted"), (plan["change"], "changed")):
        for step in steps:
            details = [*step["changes"], *filter(None, [finishing.get(step["name"])])]
            lines += _entry_lines(outcome, step["name"], "; ".join(details), width)
    for name in plan["add"]:
        lines += _entry_lines("added", name, "", width)
    if not lines:
        return [(("A reload would change nothing.", ""),)]
    return [*lines, ((f"{plural(plan['unchanged'], 'tunnel')} unchanged", "dim"),)]


def _entry_lines(outcome: str, name: str, changes: str, width: int, style: str = "") -> list[Line]:
    text = f"{_SIGNS.get(outcome, '?')} {outcome} {name}" + (f": {changes}" if changes else "")
    return [((part, style),) for part in wrap(text, width, indent=2)]


def _by_outcome(results: Mapping[str, EntryResultJson]) -> dict[str, list[str]]:
    by_outcome: dict[str, list[str]] = {}
    for name, result in results.items():
        by_outcome.setdefault(result["action"], []).append(name)
    return by_outcome


def reload_notice(generation: int | None, results: Mapping[str, EntryResultJson]) -> str:
    """Return what a reload did in a few words: with names if they are few, else with numbers."""
    by_outcome = _by_outcome(results)
    parts = [
        f"{outcome} {', '.join(names) if len(names) <= 3 else len(names)}"
        for outcome in _SIGNS
        if (names := by_outcome.get(outcome))
    ]
    return f"generation {generation}: {'; '.join(parts)}" if parts else f"no change (generation {generation})"


def refusal_texts(results: Mapping[str, EntryResultJson]) -> list[str]:
    """Return why entries do not run as the file says."""
    return [
        f"{name}: {result['action']}: {result['detail']}"
        for name, result in results.items()
        if result["action"] in REFUSALS
    ]


def interrupted_tunnels(plan: PlanJson) -> list[str]:
    """Return the tunnels whose visitors a reload would disconnect, after the drain timeout."""
    return [*plan["remove"], *(step["name"] for step in plan["restart"])]


def error_text(error: FaultJson | str | None) -> str:
    """Return an error of the file as ``FILE:LINE:COLUMN: message``, from a text or from an object of the API."""
    if isinstance(error, Mapping):
        place = ":".join(str(part) for part in (error.get("file"), error.get("line"), error.get("column")) if part)
        return f"{place}: {error.get('message', '')}" if place else error.get("message", "")
    return error or "unknown error"
