"""A pane that shows lines and draws only those that changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widget import Widget

from orchestrator.process.terminal_text import printable
from tui.format.text import STYLES
from tui.widgets.render_cache import RenderCached

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tui.format.text import Line

_PLAIN: Final = Style.null()


class Pane(ScrollView, RenderCached):
    """Lines from top to bottom; scrolls if there are more than fit."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {f"pane--{style}" for style in STYLES}

    def __init__(self, *, id: str | None = None, classes: str | None = None, focusable: bool = False) -> None:  # noqa: A002  Textual's name
        super().__init__(id=id, classes=classes)
        self.can_focus = focusable
        self._lines: list[Line] = []
        self._styles: dict[tuple[str, Style], Style] = {}

    def notify_style_update(self) -> None:
        """Discard the cached styles; they are cached because Textual computes them for every request."""
        super().notify_style_update()
        self._styles.clear()

    @property
    def line_width(self) -> int:
        """Columns for a line: the width without the scrollbar."""
        return self.size.width - (self.scrollbar_size_vertical if self.show_vertical_scrollbar else 0)

    @property
    def text_width(self) -> int:
        """Columns for wrapped text: the width without a scrollbar, whether there is one now or not."""
        return self.size.width - self.styles.scrollbar_size_vertical

    @property
    def is_at_end(self) -> bool:
        """Whether the last line is visible, so that the view may follow new ones."""
        return self.scroll_offset.y >= self.max_scroll_y - 1

    def show_end(self) -> None:
        """Scroll to the last line after the next layout."""
        self.call_after_refresh(self.scroll_end, animate=False, force=True, immediate=True)

    def show_lines(self, lines: Sequence[Line]) -> None:
        """Show these lines from now on."""
        old, self._lines = self._lines, list(lines)
        self.set_content_height(len(self._lines))
        top = self.scroll_offset.y
        for y in range(top, top + self.size.height):
            if _line_or_empty(old, y) != _line_or_empty(self._lines, y):
                self.refresh_line(y)

    def set_content_height(self, height: int) -> None:
        """Set the number of lines; lay out the screen again only if a scrollbar appears or disappears."""
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
        """Return line ``y`` of the content."""
        return _line_or_empty(self._lines, y)

    def row_style(self, y: int) -> Style:
        """Return the style under line ``y`` of the content."""
        return _PLAIN

    def render_line(self, y: int) -> Strip:
        """Return a visible line for Textual."""
        y += self.scroll_offset.y
        return self.styled_strip(self.line_at(y), self.row_style(y), self.line_width)

    def styled_strip(self, line: Line, under: Style, width: int) -> Strip:
        """Return a line in the colours of the theme, on the style ``under``."""
        segments = [
            Segment(text if text.isprintable() else printable(text), self._rich_style(style, under))
            for text, style in line
        ]
        return Strip(segments).adjust_cell_length(width, self._rich_style("", under))

    def _rich_style(self, name: str, under: Style) -> Style:
        style = self._styles.get((name, under))
        if style is None:
            own = self.get_component_rich_style(f"pane--{name}", partial=True, default=_PLAIN) if name else _PLAIN
            style = self._styles[name, under] = self.rich_style + own + under
        return style

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Return the number of lines, for ``height: auto`` in the style sheet."""
        return len(self._lines)


class HeadedPane(Pane, inherit_bindings=False):
    """Rows under a heading that does not scroll. Line 0 of the content is the heading."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"table--cursor", "table--cursor-away", "table--heading"}

    def heading_line(self) -> Line:
        """Return the heading for the present width."""
        raise NotImplementedError

    def render_line(self, y: int) -> Strip:
        """Return the heading for the first visible line, rows for the others."""
        if y == 0:
            under = self.get_component_rich_style("table--heading", partial=True)
            return self.styled_strip(self.heading_line(), under, self.line_width)
        return super().render_line(y)

    def scroll_to_row(self, index: int) -> None:
        """Scroll as little as necessary to make row ``index`` (from 0, without the heading) visible."""
        room, top = max(1, self.size.height - 1), self.scroll_offset.y
        if index < top:
            self.scroll_to(y=index, animate=False, force=True)
        elif index >= top + room:
            self.scroll_to(y=index - room + 1, animate=False, force=True)


def _line_or_empty(lines: Sequence[Line], y: int) -> Line:
    return lines[y] if y < len(lines) else ()
