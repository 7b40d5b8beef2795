"""What is read over the main screen: help, details on a narrow screen, events, a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.state_display import format_state
from tui.details import MEANINGS
from tui.happenings import SHOWN_IN_EVENTS, Sieve, event_lines
from tui.keys import DEEDS, MOVES, PILL_KEYS, shown_keys
from tui.lines import STYLES, Line, fit, wrap
from tui.screens.questions import Reading

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Mapping, Sequence

    from tui.model import Json


def help_lines(keys: Mapping[str, str], width: int, *, last_pill: str, is_read_only: bool) -> list[Line]:
    """Every key, every state, and how to choose other keys. Pure."""
    room = width - 16
    lines: list[Line] = [(("Move", "title"),)]
    lines += [((fit(f"  {key}", 16), "key"), (fit(text, room), "")) for key, text in MOVES]
    for group in dict.fromkeys(deed.group for deed in DEEDS):
        lines += [(), ((group, "title"),)]
        for deed in DEEDS:
            if deed.group != group:
                continue
            is_barred = deed.is_command and is_read_only
            first, *rest = wrap(f"{deed.help}{' (not here: read-only)' if is_barred else ''}", room)
            lines.append(((fit(f"  {shown_keys(keys[deed.name])}", 16), "key"), (first, "dim" if is_barred else "")))
            lines += [((" " * 16 + part, ""),) for part in rest]
        if group == "Other":
            lines.append(((fit("  ^z", 16), "key"), (fit("suspend; fg in the shell goes on", room), "")))
        if group == "Look":
            lines.append(
                ((fit(f"  {PILL_KEYS[0]} to {last_pill}", 16), "key"), (fit("filter by state, 0 shows all", room), ""))
            )
    lines += [(), (("States", "title"),)]
    for state, meaning in MEANINGS.items():
        style = state if state in STYLES else "gone"
        lines.append(((fit(f"  {format_state(state)}", 16), style), (fit(meaning, room), "")))
    lines.append(((fit("  ! in front", 16), "warn"), (fit("open: without a key, anybody can join", room), "")))
    lines += [(), (("Other keys", "title"),)]
    text = "top --keys FILE, or keys.yaml in ~/.config/nodepass-orch: lines like restart: f5 or drain: [d, f6]. Names:"
    names = ", ".join(deed.name for deed in DEEDS)
    return [*lines, *(((f"  {part}", "dim"),) for part in [*wrap(text, width - 4), *wrap(names, width - 4)])]


class Lines(Reading):
    """Lines that are made anew for each width, and whenever ``fill`` is called."""

    def __init__(self, title: str, make: Callable[[int], Sequence[Line]], *, is_live: bool = False) -> None:
        super().__init__(title)
        self._make = make
        self.is_live = is_live

    def fill(self) -> None:
        """Make and show the lines."""
        self.pane.show(self._make(max(20, self.pane.room)))


class Events(Lines):
    """What happened, the newest at the end, and what happens while one looks."""

    def __init__(self, events: Sequence[Json], coming: deque[Json]) -> None:
        super().__init__("Events", self._lines_of, is_live=True)
        self._events = [*events]
        self._coming = coming

    def _lines_of(self, width: int) -> list[Line]:
        while self._coming:
            event = self._coming.popleft()
            if event.get("kind") in SHOWN_IN_EVENTS and event not in self._events:
                self._events.append(event)
        shown = filter(Sieve().lets, self._events)
        lines = [line for event in shown for line in event_lines(event, width, is_named=True)]
        return lines or [(("Nothing has happened yet.", "dim"),)]

    def fill(self) -> None:
        """Show all; stay at the end, unless somebody looked back."""
        is_following = self.pane.is_at_end
        super().fill()
        if is_following:
            self.pane.to_end()
