"""A list with a cursor: one row for each item under a heading that does not scroll."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from rich.style import Style

from tui.widgets.pane import HeadedPane

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textual.geometry import Size

    from tui.format.text import Line

ItemT = TypeVar("ItemT")


class ListTable(HeadedPane, Generic[ItemT], inherit_bindings=False):
    """Formats only the visible rows."""

    def __init__(self) -> None:
        super().__init__(id="text", focusable=True)
        self.items: Sequence[ItemT] = ()
        self.cursor = 0
        """index of the item under the cursor"""

    def show_items(self, items: Sequence[ItemT], cursor: int) -> None:
        """Show these items with the cursor on one of them."""
        has_moved = cursor != self.cursor
        self.items, self.cursor = items, cursor
        self.set_content_height(len(items) + 1)
        if has_moved:  # otherwise the user may have scrolled elsewhere
            self.scroll_to_row(cursor)
        self.refresh()

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Return the number of rows with the heading, for ``height: auto`` in the style sheet."""
        return len(self.items) + 1

    def visible_items(self) -> Sequence[ItemT]:
        """Return the items whose rows are on the screen."""
        top = self.scroll_offset.y
        return self.items[top : top + self.size.height]

    def item_line(self, item: ItemT) -> Line:
        """Return the row of an item for the present width."""
        raise NotImplementedError

    def line_at(self, y: int) -> Line:
        """Return the row of an item; ``y`` counts the heading as 0."""
        return self.item_line(self.items[y - 1]) if 0 < y <= len(self.items) else ()

    def row_style(self, y: int) -> Style:
        """Return the style of the cursor for its row."""
        if y - 1 != self.cursor:
            return Style.null()
        return self.get_component_rich_style("table--cursor", partial=True)
