"""A line of words to click on: the filters by state, the keys of the footer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.message import Message

from tui.widgets.pane import Pane

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textual import events

    from tui.bars import Choice
    from tui.lines import Line


class ChoiceBar(Pane):
    """A click chooses."""

    @dataclass
    class Chosen(Message):
        """Somebody clicked on a word."""

        bar: str
        name: str

    _choices: Sequence[Choice] = ()

    def show_choices(self, line: Line, choices: Sequence[Choice]) -> None:
        """Show this line, whose words stand where ``choices`` say."""
        self._choices = choices
        self.show([line])

    def on_click(self, event: events.Click) -> None:
        """Whichever word stands there."""
        for choice in self._choices:
            if choice.start <= event.x < choice.end:
                self.post_message(self.Chosen(self.id or "", choice.name))
