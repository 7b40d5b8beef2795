"""The input line for the text filters of the table and of the log, and for the search in the log."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from textual.message import Message
from textual.widgets import Input

if TYPE_CHECKING:
    from textual.events import Key


class InputPurpose(Enum):
    """What the text of the input line is used for."""

    TABLE_FILTER = auto()
    LOG_FILTER = auto()
    LOG_SEARCH = auto()


class FilterInput(Input):
    """Hidden until a filter is edited. The screen handles Textual's ``Input.Changed`` and ``Input.Submitted``."""

    @dataclass
    class Left(Message):
        """The focus moved to another widget of the screen."""

    def __init__(self, *, id: str) -> None:  # noqa: A002  Textual's name
        super().__init__(id=id, compact=True, select_on_focus=False)
        self.display = False
        self.purpose = InputPurpose.TABLE_FILTER

    def edit(self, text: str, hint: str, purpose: InputPurpose = InputPurpose.TABLE_FILTER) -> None:
        """Edit a text that is this one now. The focus moves at once: the next key may already be queued."""
        self.purpose = purpose
        self.placeholder = hint
        self.value = text
        self.display = True
        self.screen.set_focus(self)

    def on_blur(self) -> None:
        """Report that keys go elsewhere now: an input that is still shown would suggest that they are typed into it."""
        if self.display and self.app.app_focus:  # the terminal may lose the focus: then it comes back here
            self.post_message(self.Left())

    def insert_late_key(self, key: Key) -> None:
        """Insert a key that was sent to the table before the focus moved here."""
        self.insert_text_at_cursor(key.character or "")
