"""The log: events of one tunnel or of all, filtered, wrapped, following the newest."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, ClassVar, Final

from tui.format.event_format import LogFilter, event_lines
from tui.format.text import paragraph
from tui.widgets.pane import Pane

if TYPE_CHECKING:
    from collections.abc import Iterable

    from textual import events
    from textual.binding import BindingType

    from tui.format.text import Line
    from tui.model.messages import EventData

_MAX_EVENTS: Final = 1000
"""Older ones are dropped; the daemon has them."""


class LogPane(Pane, inherit_bindings=False):
    """Events in their order. It follows the newest one until the user scrolls back or pauses it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("up,k", "scroll_up"),
        ("down,j", "scroll_down"),
        ("pageup", "page_up"),
        ("pagedown", "page_down"),
        ("home,g", "scroll_home"),
        ("end,G", "scroll_end"),
    ]

    def __init__(self, *, id: str) -> None:  # noqa: A002  Textual's name
        super().__init__(id=id, focusable=True)
        self._events: deque[EventData] = deque(maxlen=_MAX_EVENTS)
        self._pending: list[EventData] = []
        """events that are not drawn yet"""
        self._title = self._note = self._shown_title = ""
        self._has_names = True
        self._is_outdated = False
        """whether the lines on the screen belong to the previous log"""
        self.log_filter = LogFilter()
        self.is_paused = False

    def start_log(self, title: str, *, has_names: bool, note: str = "") -> None:
        """Discard all events: those that follow belong to another log. The note is shown above it.

        The screen changes with the next ``flush``, when most of the new log has arrived: an empty pane for a moment
        would flicker.
        """
        self._title, self._note, self._has_names = title, note, has_names
        self._events.clear()
        self._pending.clear()
        self._is_outdated = True
        self._update_title()

    def add_events(self, events: Iterable[EventData]) -> None:
        """Add events. The next ``flush`` draws them, many as cheaply as one."""
        self._pending += events

    def flush(self) -> None:
        """Draw the events that have arrived."""
        if not self._is_outdated and (self.is_paused or not self._pending):
            self._update_title()
            return
        added, self._pending = self._pending[-_MAX_EVENTS:], []
        must_redraw = self._is_outdated or len(self._events) + len(added) > _MAX_EVENTS
        self._events += added
        self._is_outdated = False
        if must_redraw:
            self._replace_lines(self._all_lines())
        else:
            self._replace_lines([*self._lines, *(line for event in added for line in self._format(event))])
        self._update_title()

    def set_filter(self, log_filter: LogFilter) -> None:
        """Show other levels or texts."""
        self.log_filter = log_filter
        self._redraw()

    def toggle_pause(self) -> None:
        """Hold new events back, or show them again."""
        self.is_paused = not self.is_paused
        self.flush()
        self._update_title()

    def _redraw(self) -> None:
        self._replace_lines(self._all_lines())
        self._update_title()

    def _all_lines(self) -> list[Line]:
        note = paragraph(self._note, max(20, self.text_width), "dim") if self._note else []
        return [*note, *(line for event in self._events for line in self._format(event))]

    def _format(self, event: EventData) -> list[Line]:
        is_shown = self.log_filter.matches(event)
        return event_lines(event, self.text_width, has_name=self._has_names) if is_shown else []

    def _replace_lines(self, lines: list[Line]) -> None:
        is_following = self.is_at_end
        self._lines = lines
        self.set_content_height(len(lines))
        if is_following:
            self.show_end()
        self.refresh()

    def _update_title(self) -> None:
        mode = f"paused, {len(self._pending)} more" if self.is_paused else "follow"
        text = [f"/{self.log_filter.text}/"] if self.log_filter.text else []
        title = " · ".join([self._title, f"≥{self.log_filter.level}", *text, mode]).replace("[", "\\[")
        if title != self._shown_title:
            self.border_title = self._shown_title = title

    def on_resize(self, event: events.Resize) -> None:
        """Wrap the events for the new width."""
        self._redraw()
