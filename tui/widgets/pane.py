"""A pane that shows lines, and draws again only those that changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widget import Widget

from tui.lines import STYLES
from tui.widgets.kept import Kept

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tui.lines import Line

_PLAIN: Final = Style.null()


class Pane(ScrollView, Kept):
    """Lines from top to bottom; scrolls where they are more than there is room for."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {f"pane--{style}" for style in STYLES}

    def __init__(self, *, id: str | None = None, classes: str | None = None, focusable: bool = False) -> None:  # noqa: A002  Textual's name
        super().__init__(id=id, classes=classes)
        self.can_focus = focusable
        self._lines: list[Line] = []
        self._styles: dict[tuple[str, Style], Style] = {}

    def notify_style_update(self) -> None:
        """Other colours from now on; Textual reckons them anew each time they are asked for, which costs."""
        super().notify_style_update()
        self._styles.clear()

    @property
    def room(self) -> int:
        """Columns for a line: what the scrollbar leaves."""
        return self.size.width - (self.scrollbar_size_vertical if self.show_vertical_scrollbar else 0)

    @property
    def is_at_end(self) -> bool:
        """Whether the last line is seen, so that whoever adds more may follow."""
        return self.scroll_offset.y >= self.max_scroll_y - 1

    def to_end(self) -> None:
        """Show the last lines, as soon as there is a place for them."""
        self.call_after_refresh(self.scroll_end, animate=False, force=True, immediate=True)

    def show(self, lines: Sequence[Line]) -> None:
        """Show these lines from now on."""
        old, self._lines = self._lines, list(lines)
        self.extend(len(self._lines))
        top = self.scroll_offset.y
        for y in range(top, top + self.size.height):
            if _line(old, y) != _line(self._lines, y):
                self.refresh_line(y)

    def extend(self, height: int) -> None:
        """Be so many lines high. Where no scrollbar comes or goes by that, nothing else has to be laid out anew."""
        if height == self.virtual_size.height:
            return
        size, room = Size(0, height), self.container_size.height
        if self.styles.is_auto_height or not room or (height > room) != self.show_vertical_scrollbar:
            self.virtual_size = size
            self.refresh(layout=self.styles.is_auto_height)
            return
        self.set_reactive(Widget.virtual_size, size)
        if self.show_vertical_scrollbar:
            self.vertical_scrollbar.window_virtual_size = height
        if self.scroll_offset.y > self.max_scroll_y:
            self.scroll_to(y=self.max_scroll_y, animate=False, force=True)

    def line_at(self, y: int) -> Line:
        """The line in row ``y`` of the whole."""
        return _line(self._lines, y)

    def row_style(self, y: int) -> Style:
        """The style under a row of the whole."""
        return _PLAIN

    def render_line(self, y: int) -> Strip:
        """Textual asks for a visible line."""
        y += self.scroll_offset.y
        return self.strip(self.line_at(y), self.row_style(y), self.room)

    def strip(self, line: Line, under: Style, width: int) -> Strip:
        """A line in the colours of the theme."""
        segments = [Segment(text, self._style(style, under)) for text, style in line]
        return Strip(segments).adjust_cell_length(width, self._style("", under))

    def _style(self, name: str, under: Style) -> Style:
        style = self._styles.get((name, under))
        if style is None:
            own = self.get_component_rich_style(f"pane--{name}", partial=True, default=_PLAIN) if name else _PLAIN
            style = self._styles[name, under] = self.rich_style + own + under
        return style

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """As many rows as lines, where the style sheet says ``auto``."""
        return len(self._lines)


def _line(lines: Sequence[Line], y: int) -> Line:
    return lines[y] if y < len(lines) else ()
