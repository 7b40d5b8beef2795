"""The log: events of one tunnel or of all, filtered, wrapped, following the newest."""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, ClassVar, Final

from textual.message import Message

from tui.format.event_format import LogFilter, event_lines
from tui.format.text import highlight, paragraph
from tui.widgets.pane import Pane

if TYPE_CHECKING:
    from collections.abc import Iterable

    from textual import events
    from textual.binding import BindingType

    from tui.format.text import Line
    from tui.model.messages import EventData

_MAX_EVENTS: Final = 1000
"""Older ones are dropped; the daemon has them."""
_SEARCH_ACTIONS: Final = frozenset({"next_match", "end_search"})


class LogPane(Pane, inherit_bindings=False):
    """Events in their order. It follows the newest one until the user scrolls back or pauses it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("up,k", "scroll_up"),
        ("down,j", "scroll_down"),
        ("pageup", "page_up"),
        ("pagedown", "page_down"),
        ("home,g", "scroll_home"),
        ("end,G", "scroll_end"),
        ("slash", "search"),
        ("n", "next_match(-1)"),
        ("N", "next_match(1)"),
        ("escape", "end_search"),
    ]

    class SearchRequested(Message):
        """The user wants to search in the log."""

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
        self.search_text = ""
        """what is searched for; empty: nothing"""
        self._pattern = re.compile("")
        self._matches: list[int] = []
        """the lines that match"""
        self._match: int | None = None
        """the line of the match that was shown last"""

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

    def search(self, text: str) -> None:
        """Highlight a text in upper and lower case, and show its last match. An empty text ends the search."""
        self.search_text, self._match = text, None
        self._pattern = re.compile(re.escape(text), re.IGNORECASE)
        self._matches = self._matching_lines()
        if text:
            self.action_next_match(-1)
        self._update_title()
        self.refresh()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool:
        """Leave the keys of a search to the screen while there is none."""
        return bool(self.search_text) if action in _SEARCH_ACTIONS else super().check_action(action, parameters) is True

    def action_search(self) -> None:
        """Ask for the text to search for."""
        self.post_message(self.SearchRequested())

    def action_end_search(self) -> None:
        """End the search and follow the newest event again."""
        self.search("")
        self.show_end()

    def action_next_match(self, step: int) -> None:
        """Show the match above the present one (-1) or below it (1); after the first one comes the last."""
        if matches := self._matches:
            start = self._match if self._match is not None else (len(self._lines) if step < 0 else -1)
            beyond = [line for line in matches if (line < start if step < 0 else line > start)]
            self._match = (beyond or matches)[-1 if step < 0 else 0]
            self.scroll_to(y=max(0, self._match - self.size.height // 2), animate=False, force=True)
        self._update_title()

    def _matching_lines(self) -> list[int]:
        if not self.search_text:
            return []
        texts = ("".join(text for text, _ in line) for line in self._lines)
        return [number for number, text in enumerate(texts) if self._pattern.search(text)]

    def line_at(self, y: int) -> Line:
        """Return line ``y`` with the matches of the search highlighted."""
        line = super().line_at(y)
        return highlight(line, self._pattern, "pick") if self.search_text else line

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
        self._matches = self._matching_lines()
        self.set_content_height(len(lines))
        if is_following:
            self.show_end()
        self.refresh()

    def _update_title(self) -> None:
        mode = f"paused, {len(self._pending)} more" if self.is_paused else "follow"
        text = [f"/{self.log_filter.text}/"] if self.log_filter.text else []
        if self.search_text:
            place = f"{self._matches.index(self._match) + 1}/" if self._match in self._matches else ""
            text.append(f'"{self.search_text}" {place}{len(self._matches)}')
        title = " · ".join([self._title, f"≥{self.log_filter.level}", *text, mode]).replace("[", "\\[")
        if title != self._shown_title:
            self.border_title = self._shown_title = title

    def on_resize(self, event: events.Resize) -> None:
        """Wrap the events for the new width."""
        self._redraw()
