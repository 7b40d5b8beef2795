"""A list over the main screen, and the keys that move its cursor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from tui.screens.dialogs import TextModal

if TYPE_CHECKING:
    from textual.binding import BindingType

    from tui.widgets.list_table import ListTable


class ListModal(TextModal):
    """A list that changes while it is shown. A subclass fills the table, and remembers the chosen item."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("down", "down"),
        ("up", "up"),
        ("pagedown", "page(1)"),
        ("pageup", "page(-1)"),
        ("home,g", "to_first"),
        ("end,G", "to_last"),
    ]

    is_live = True

    def __init__(self, title: str, table: ListTable[Any]) -> None:  # Any: items of any kind
        super().__init__(title, table)
        self._list = table

    def choose(self, index: int) -> None:
        """Put the cursor on an item of the list."""
        raise NotImplementedError

    def move_to(self, index: int) -> None:
        """Put the cursor on an item, or on the first or last one if there is no such item."""
        if self._list.items:
            self.choose(min(max(0, index), len(self._list.items) - 1))

    def action_page(self, step: int) -> None:
        """Move the cursor by pages."""
        self.move_to(self._list.cursor + step * max(1, self._list.size.height - 2))

    def action_down(self) -> None:
        """Move the cursor down by a row."""
        self.move_to(self._list.cursor + 1)

    def action_up(self) -> None:
        """Move the cursor up by a row."""
        self.move_to(self._list.cursor - 1)

    def action_to_first(self) -> None:
        """Move the cursor to the first item."""
        self.move_to(0)

    def action_to_last(self) -> None:
        """Move the cursor to the last item."""
        self.move_to(len(self._list.items))
