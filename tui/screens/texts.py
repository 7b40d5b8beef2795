"""Texts over the main screen: lines from a function (help, details, a plan), and the page of events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tui.format.event_format import HISTORY_KINDS, LogFilter, event_lines
from tui.screens.dialogs import TextModal

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Sequence

    from tui.format.text import Line
    from tui.model.messages import EventData

_MIN_WIDTH: Final = 20


class LinesModal(TextModal):
    """Lines that a function makes for a width."""

    def __init__(self, title: str, make_lines: Callable[[int], Sequence[Line]], *, is_live: bool = False) -> None:
        super().__init__(title)
        self._make_lines = make_lines
        self.is_live = is_live

    def update_lines(self) -> None:
        """Make and show the lines."""
        self.pane.show_lines(self._make_lines(max(_MIN_WIDTH, self.pane.text_width)))


class EventsModal(LinesModal):
    """Recent events, the newest at the end, and those that arrive while it is shown.

    It takes arriving events out of ``new_events``.
    """

    def __init__(self, events: Sequence[EventData], new_events: deque[EventData]) -> None:
        super().__init__("Events", self._event_lines, is_live=True)
        self._events = [*events]
        self._new_events = new_events

    def _event_lines(self, width: int) -> list[Line]:
        while self._new_events:
            event = self._new_events.popleft()
            if event.get("kind") in HISTORY_KINDS and event not in self._events:
                self._events.append(event)
        shown = filter(LogFilter().matches, self._events)
        lines = [line for event in shown for line in event_lines(event, width, has_name=True)]
        return lines or [(("No events yet.", "dim"),)]

    def update_lines(self) -> None:
        """Show all events; stay at the end unless the user scrolled back."""
        is_following = self.pane.is_at_end
        super().update_lines()
        if is_following:
            self.pane.show_end()
