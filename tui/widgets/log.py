"""The log: events of one tunnel or of all, sifted, wrapped, following the newest."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, ClassVar, Final

from tui.happenings import Sieve, event_lines
from tui.lines import wrap
from tui.widgets.pane import Pane

if TYPE_CHECKING:
    from collections.abc import Iterable

    from textual import events
    from textual.binding import BindingType

    from tui.lines import Line
    from tui.model import Json

KEPT: Final = 1000
"""Events held; the daemon has the rest."""


class LogPane(Pane, inherit_bindings=False):
    """Events in their order. It follows the newest, until somebody looks back or pauses it."""

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
        self._events: deque[Json] = deque(maxlen=KEPT)
        self._arrived: list[Json] = []
        self._title = self._note = self._shown_title = ""
        self._is_stale = False
        self.sieve = Sieve()
        self.is_paused = False
        self.is_named = True

    def begin(self, title: str, *, is_named: bool, note: str = "") -> None:
        """Forget everything; what comes now is the log of something else. The note stands above it.

        What is shown goes with the next ``flush``, when the beginning of the other log is mostly there: an empty pane
        for a moment would only flicker.
        """
        self._title, self._note, self.is_named = title, note, is_named
        self._events.clear()
        self._arrived.clear()
        self._is_stale = True
        self._retitle()

    def add(self, events: Iterable[Json]) -> None:
        """More events. They are drawn at the next ``flush``, many of them as cheaply as one."""
        self._arrived += events

    def flush(self) -> None:
        """Show what has arrived."""
        if not self._is_stale and (self.is_paused or not self._arrived):
            self._retitle()
            return
        arrived, self._arrived = self._arrived[-KEPT:], []
        is_anew = self._is_stale or len(self._events) + len(arrived) > KEPT
        self._events += arrived
        self._is_stale = False
        if is_anew:
            self._set(self._all())
        else:
            self._set([*self._lines, *(line for event in arrived for line in self._made(event))])
        self._retitle()

    def sift(self, sieve: Sieve) -> None:
        """Show other levels or texts."""
        self.sieve = sieve
        self.lay_again()

    def pause(self, is_paused: bool) -> None:  # noqa: FBT001  it is what the name says
        """Hold what comes back, or show it."""
        self.is_paused = is_paused
        self.flush()
        self._retitle()

    def lay_again(self) -> None:
        """Make all lines anew."""
        self._set(self._all())
        self._retitle()

    def _all(self) -> list[Line]:
        note = wrap(self._note, max(20, self._width)) if self._note else []
        return [*(((part, "dim"),) for part in note), *(line for event in self._events for line in self._made(event))]

    @property
    def _width(self) -> int:
        return self.size.width - self.scrollbar_size_vertical

    def _made(self, event: Json) -> list[Line]:
        return event_lines(event, self._width, is_named=self.is_named) if self.sieve.lets(event) else []

    def _set(self, lines: list[Line]) -> None:
        is_following = self.is_at_end
        self._lines = lines
        self.extend(len(lines))
        if is_following:
            self.to_end()
        self.refresh()

    def _retitle(self) -> None:
        state = f"paused, {len(self._arrived)} more" if self.is_paused else "follow"
        about = [self._title, f"≥{self.sieve.level}", *([f"/{self.sieve.text}/"] if self.sieve.text else []), state]
        title = " · ".join(about).replace("[", "\\[")
        if title != self._shown_title:
            self.border_title = self._shown_title = title

    def on_resize(self, event: events.Resize) -> None:
        """Another width breaks lines elsewhere."""
        self.lay_again()
