"""The table of tunnels: formats only visible rows, draws only changed ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from rich.cells import cell_len
from rich.style import Style
from textual.message import Message

from tui.format.columns import TableLayout, changes_with_time, format_heading, format_row, lay_out
from tui.model.selection import Selection
from tui.widgets.pane import HeadedPane

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from textual import events
    from textual.binding import BindingType

    from tui.format.text import Line
    from tui.model.selection import VisibleTunnels
    from tui.model.tunnels import Tunnel

_SETTLING_S: Final = 3.0
"""At first the cursor stays at the top this long, as long as the user does not move it."""


class TunnelTable(HeadedPane, inherit_bindings=False):
    """One row for each tunnel under a heading; the cursor follows its tunnel to another row."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("up,k", "move(-1)"),
        ("down,j", "move(1)"),
        ("pageup", "page(-1)"),
        ("pagedown", "page(1)"),
        ("home,g", "to_first"),
        ("end,G", "to_last"),
    ]

    @dataclass
    class CursorMoved(Message):
        """The cursor is on another tunnel, or on none."""

        name: str | None

    @dataclass
    class Opened(Message):
        """The user double-clicked a tunnel."""

        name: str

    @dataclass
    class SortRequested(Message):
        """The user clicked the title of a column."""

        sort: str

    @dataclass
    class MarkRequested(Message):
        """The user clicked the mark of a tunnel."""

        name: str

    def __init__(self, *, id: str) -> None:  # noqa: A002  Textual's name
        super().__init__(id=id, focusable=True)
        self._tunnels: Sequence[Tunnel] = ()
        self._places: Mapping[str, int] = {}
        self._selection = Selection()
        self._marked: frozenset[str] = frozenset()
        self._now = 0.0
        self.table_layout = TableLayout((), ())
        """the columns on the screen"""
        self._hidden: frozenset[str] = frozenset()
        self._longest = (0, 0)
        """columns of the longest name and of the longest host"""
        self._laid_out_width = 0
        """width for which the layout was made; 0: it must be made again"""
        self._drawn: dict[int, Line] = {}
        """the visible rows by index; -1 is the heading"""
        self._formatted: dict[str, tuple[Tunnel, Line]] = {}
        """the visible rows by name, each with the tunnel from which it was made"""
        self._formatted_for: tuple[TableLayout, frozenset[str]] | None = None
        self._cursor: str | None = None
        self._cursor_row = 0
        self._is_cursor_moved_by_user = False
        self._settled_at = 0.0

    @property
    def cursor(self) -> str | None:
        """The name of the tunnel under the cursor."""
        return self._cursor

    @property
    def visible_names(self) -> set[str]:
        """The tunnels whose rows are on the screen, and the one under the cursor."""
        shown = {tunnel.name for tunnel in self._visible_tunnels()}
        return shown if self._cursor is None else {*shown, self._cursor}

    def _visible_tunnels(self) -> Sequence[Tunnel]:
        top = self.scroll_offset.y
        return self._tunnels[top : top + max(0, self.size.height - 1)]

    def show_tunnels(self, shown: VisibleTunnels, selection: Selection, marked: frozenset[str], now: float) -> None:
        """Show these tunnels in their order; ``now`` is the monotonic clock."""
        self._tunnels = shown.tunnels
        if shown.places is not self._places:
            if shown.places.keys() != self._places.keys():
                self._measure(shown.tunnels)
            self._places = shown.places
        self._selection, self._marked, self._now = selection, marked, now
        self.set_content_height(len(self._tunnels) + 1)
        self._keep_cursor()
        self._draw_changed()

    def hide_columns(self, hidden: frozenset[str]) -> None:
        """Show no columns with these keys; the next ``show_tunnels`` draws the others."""
        self._hidden, self._laid_out_width = hidden, 0

    def _measure(self, tunnels: Iterable[Tunnel]) -> None:
        hosts = {tunnel.host for tunnel in tunnels}
        longest = (
            max((cell_len(tunnel.label) for tunnel in tunnels), default=0),
            max(map(cell_len, hosts), default=0),
        )
        if longest != self._longest:
            self._longest = longest
            self._laid_out_width = 0

    def _draw_changed(self) -> None:
        """Format the visible rows and draw those that differ from the drawn ones."""
        if self._laid_out_width != self.line_width:
            self._laid_out_width = self.line_width
            self.table_layout = lay_out(self.line_width, *self._longest, self._hidden)
        rows = self._format_rows(self._visible_tunnels())
        visible = {-1: self.heading_line(), **dict(enumerate(rows, self.scroll_offset.y))}
        for index in visible.keys() | self._drawn.keys():
            if visible.get(index) != self._drawn.get(index):
                self._refresh_row(index)
        self._drawn = visible

    def _format_rows(self, tunnels: Iterable[Tunnel]) -> Iterable[Line]:
        """Yield the rows of tunnels; that of an unchanged tunnel is not formatted again."""
        formatted_for = (self.table_layout, self._marked)
        before = self._formatted if formatted_for == self._formatted_for else {}
        self._formatted, self._formatted_for = {}, formatted_for
        for tunnel in tunnels:
            old, line = before.get(tunnel.name, (None, ()))
            if tunnel is not old or changes_with_time(tunnel):
                line = format_row(tunnel, self.table_layout, self._now, self._marked)
            self._formatted[tunnel.name] = (tunnel, line)
            yield line

    def _refresh_row(self, index: int) -> None:
        if index < 0:
            self.refresh_line(self.scroll_offset.y)
        else:
            self.refresh_line(index + 1)

    def heading_line(self) -> Line:
        """Return the row of titles."""
        return format_heading(self.table_layout, self._selection)

    def line_at(self, y: int) -> Line:
        """Return the row of a tunnel; ``y`` counts the heading as 0."""
        index = y - 1
        if index >= len(self._tunnels):
            return ()
        line = self._drawn.get(index)
        if line is None:
            tunnel = self._tunnels[index]
            line = self._drawn[index] = format_row(tunnel, self.table_layout, self._now, self._marked)
        return line

    def row_style(self, y: int) -> Style:
        """Return the style of the cursor for its row."""
        if self._cursor is None or y - 1 != self._cursor_row:
            return Style.null()
        return self.get_component_rich_style("table--cursor" if self.has_focus else "table--cursor-away", partial=True)

    # -- cursor ------------------------------------------------------------------------------------------------------

    def _keep_cursor(self) -> None:
        """Keep the cursor on its tunnel; if that is no longer shown, on its row."""
        if not self._tunnels:
            self._set_cursor(None, 0)
        elif self._cursor is None or (not self._is_cursor_moved_by_user and self._now < self._settled_at):
            # the first row is the one that needs attention, but at first few states are known
            self._settled_at = self._settled_at or self._now + _SETTLING_S
            self._set_cursor(self._tunnels[0].name, 0)
        elif self._cursor in self._places:
            row = self._places[self._cursor]
            if row != self._cursor_row:
                self._set_cursor(self._cursor, row)
        else:
            index = min(self._cursor_row, len(self._tunnels) - 1)
            self._set_cursor(self._tunnels[index].name, index)

    def _set_cursor(self, name: str | None, index: int) -> None:
        before, self._cursor_row = self._cursor_row, index
        is_other, self._cursor = name != self._cursor, name
        if before != index or is_other:
            self._refresh_row(before)
            self._refresh_row(index)
            self.scroll_to_row(index)
        if is_other:
            self.post_message(self.CursorMoved(name))

    def move_to(self, name: str) -> bool:
        """Move the cursor to a tunnel; return False if that is not shown."""
        self._is_cursor_moved_by_user = True
        if name not in self._places:
            return False
        self._set_cursor(name, self._places[name])
        return True

    def _move_by(self, step: int) -> None:
        self._is_cursor_moved_by_user = True
        if self._tunnels:
            index = min(max(0, self._cursor_row + step), len(self._tunnels) - 1)
            self._set_cursor(self._tunnels[index].name, index)

    def action_move(self, step: int) -> None:
        """Move the cursor by rows."""
        self._move_by(step)

    def action_page(self, step: int) -> None:
        """Move the cursor by pages."""
        self._move_by(step * max(1, self.size.height - 2))

    def action_to_first(self) -> None:
        """Move the cursor to the first tunnel."""
        self._move_by(-len(self._tunnels))

    def action_to_last(self) -> None:
        """Move the cursor to the last tunnel."""
        self._move_by(len(self._tunnels))

    # -- Textual's events --------------------------------------------------------------------------------------------

    def on_resize(self) -> None:
        """Lay out the columns for the new width."""
        self.scroll_to_row(self._cursor_row)
        self._draw_changed()

    def on_focus(self) -> None:
        """Draw the cursor as active."""
        self._refresh_row(self._cursor_row)

    def on_blur(self) -> None:
        """Draw the cursor as inactive."""
        self._refresh_row(self._cursor_row)

    def on_click(self, event: events.Click) -> None:
        """Sort by a title, mark in the first column of a row, open with a double click."""
        if event.y == 0:
            column = self.table_layout.column_at(event.x)
            if column is not None:
                self.post_message(self.SortRequested(column.sort_as or column.key))
            return
        index = self.scroll_offset.y + event.y - 1
        if index >= len(self._tunnels):
            return
        name = self._tunnels[index].name
        self._is_cursor_moved_by_user = True
        self._set_cursor(name, index)
        if event.x == 0:
            self.post_message(self.MarkRequested(name))
        elif event.chain == 2:
            self.post_message(self.Opened(name))
