"""The choice of the table's columns, over the main screen."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tui.format.columns import HIDEABLE, column_choice_lines
from tui.screens.dialogs import TextModal

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual.binding import BindingType


class ColumnsModal(TextModal):
    """One line for each column that can be hidden; space shows or hides it at once."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("down", "down"),
        ("up", "up"),
        ("space", "toggle_column"),
        ("r", "show_all"),
        ("C", "dismiss"),
    ]

    def __init__(self, hidden: frozenset[str], on_change: Callable[[frozenset[str]], None]) -> None:
        """``on_change`` gets the names of the hidden columns after each change."""
        super().__init__("Columns")
        self._hidden = hidden
        self._on_change = on_change
        self._cursor = 0

    def update_lines(self) -> None:
        """Show the columns with the cursor."""
        self.pane.show_lines(column_choice_lines(self._hidden, self._cursor))
        self.pane.border_subtitle = "space shows or hides · r shows all · Esc closes"

    def action_down(self) -> None:
        """Move the cursor down."""
        self._cursor = min(self._cursor + 1, len(HIDEABLE) - 1)
        self.update_lines()

    def action_up(self) -> None:
        """Move the cursor up."""
        self._cursor = max(self._cursor - 1, 0)
        self.update_lines()

    def action_toggle_column(self) -> None:
        """Show or hide the column under the cursor."""
        self._hide(self._hidden ^ {HIDEABLE[self._cursor].key})

    def action_show_all(self) -> None:
        """Show every column for which there is room."""
        self._hide(frozenset())

    def _hide(self, hidden: frozenset[str]) -> None:
        self._hidden = hidden
        self._on_change(hidden)
        self.update_lines()
