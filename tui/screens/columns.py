"""The choice of the table's columns, over the main screen."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tui.format.columns import COLUMN_CHOICE_HEADING, HIDEABLE, TableColumn, column_choice_line
from tui.screens.list_modal import ListModal
from tui.widgets.list_table import ListTable

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual.binding import BindingType

    from tui.format.text import Line


class ColumnChoiceTable(ListTable[TableColumn], inherit_bindings=False):
    """One row for each column that can be hidden."""

    def __init__(self, hidden: frozenset[str]) -> None:
        super().__init__()
        self.hidden = hidden
        """keys of the hidden columns"""

    def heading_line(self) -> Line:
        """Return the row of titles."""
        return COLUMN_CHOICE_HEADING

    def item_line(self, item: TableColumn) -> Line:
        """Return the row of a column."""
        return column_choice_line(item, is_hidden=item.key in self.hidden)


class ColumnsModal(ListModal):
    """The columns that can be hidden; space shows or hides one at once."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("space", "toggle_column"),
        ("r", "show_all"),
        ("C", "dismiss"),
    ]

    is_live = False

    def __init__(self, hidden: frozenset[str], on_change: Callable[[frozenset[str]], None]) -> None:
        """``on_change`` gets the keys of the hidden columns after each change."""
        self._table = ColumnChoiceTable(hidden)
        super().__init__("Columns", self._table)
        self._on_change = on_change

    def update_lines(self) -> None:
        """Show the columns with the cursor."""
        self.choose(self._table.cursor)
        self._table.border_subtitle = "space shows or hides · r shows all · Esc closes"

    def choose(self, index: int) -> None:
        """Put the cursor on a column."""
        self._table.show_items(HIDEABLE, index)

    def action_toggle_column(self) -> None:
        """Show or hide the column under the cursor."""
        self._hide(self._table.hidden ^ {HIDEABLE[self._table.cursor].key})

    def action_show_all(self) -> None:
        """Show every column for which there is room."""
        self._hide(frozenset())

    def _hide(self, hidden: frozenset[str]) -> None:
        self._table.hidden = hidden
        self._on_change(hidden)
        self.update_lines()
