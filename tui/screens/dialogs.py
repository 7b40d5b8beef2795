"""Dialogs over the main screen: a question with buttons, and a text to read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Static

from orchestrator.process.terminal_text import printable
from tui.widgets.pane import Pane

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textual.app import ComposeResult
    from textual.binding import BindingType
    from textual.events import Key

    from tui.format.text import Line


# as in the style sheet
_DIALOG_WIDTH: Final = 74
_DIALOG_FRAME: Final = 6  # border and padding
_BUTTON_EXTRA: Final = 6  # key and gap, padding, margin


@dataclass(frozen=True, slots=True)
class DialogAnswer:
    """A button of a question."""

    name: str
    """the result of the dialog"""
    label: str
    key: str = "y"
    """the letter that chooses it"""


class ConfirmDialog(ModalScreen[str | None]):
    """A question, some lines, some buttons. Cancel has the focus, and Escape or n means Cancel.

    The result is the name of the button, None for Cancel.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape,q,n,N", "dismiss(None)"),
        ("left,up", "app.focus_previous"),
        ("right,down", "app.focus_next"),
        ("pageup", "page(-1)"),
        ("pagedown", "page(1)"),
    ]

    def __init__(self, title: str, lines: Sequence[Line], answers: Sequence[DialogAnswer]) -> None:
        """``answers`` are the buttons other than Cancel."""
        super().__init__()
        self._title = title
        self._lines = lines
        self._answers = answers

    def compose(self) -> ComposeResult:
        """Yield title, lines and buttons."""
        with Vertical(id="dialog"):
            yield Static(printable(self._title), id="dialog-title", markup=False)
            yield Pane(id="dialog-lines")
            with Horizontal(id="dialog-buttons"):
                yield Button("n Cancel", id="cancel", compact=True)
                for answer in self._answers:
                    label = f"{answer.key} {answer.label}".replace("[", "\\[")
                    yield Button(label, id=answer.name, variant="warning", compact=True)

    def on_mount(self) -> None:
        """Focus Cancel: pressing Enter once too often must do no harm."""
        self.query_one("#dialog-lines", Pane).show_lines(self._lines)
        self.query_one("#cancel", Button).focus()

    def on_resize(self) -> None:
        """Put the buttons below each other if they do not fit in one row."""
        buttons = self.query_one("#dialog-buttons", Horizontal)
        needed = sum(len(answer.label) + _BUTTON_EXTRA for answer in (DialogAnswer("cancel", "Cancel"), *self._answers))
        buttons.set_class(needed > min(_DIALOG_WIDTH, self.size.width) - _DIALOG_FRAME, "-narrow")

    def on_key(self, event: Key) -> None:
        """Choose the answer that has this key."""
        for answer in self._answers:
            if event.character and event.character.casefold() == answer.key:
                event.stop()
                self.dismiss(answer.name)
                return

    def action_page(self, step: int) -> None:
        """Scroll the lines by pages."""
        lines = self.query_one("#dialog-lines", Pane)
        lines.scroll_relative(y=step * max(1, lines.size.height - 1), animate=False)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Close the dialog with the name of the button."""
        name = event.button.id
        self.dismiss(None if name == "cancel" else name)


class TextModal(ModalScreen[None]):
    """Lines to read, over the main screen; Escape closes it. Subclasses show their lines in ``update_lines``.

    The main screen calls ``refresh_live`` at each of its own refreshes.
    """

    BINDINGS: ClassVar[list[BindingType]] = [("escape,q,enter", "dismiss"), ("j", "down"), ("k", "up")]

    is_live = False
    """whether the lines change while they are shown"""
    shown_tunnels: frozenset[str] = frozenset()
    """the tunnels whose histories it shows"""

    def __init__(self, title: str, pane: Pane | None = None) -> None:
        super().__init__()
        self._title = title
        self.pane = pane or Pane(id="text", focusable=True)
        """where the lines are shown"""

    def compose(self) -> ComposeResult:
        """Yield one pane with a frame."""
        yield self.pane

    def on_mount(self) -> None:
        """Show the lines after the first layout."""
        self.pane.border_title = self._title.replace("[", "\\[")
        self.pane.border_subtitle = "Esc closes"
        self.pane.focus()
        self.call_after_refresh(self._update_if_attached)

    def on_resize(self) -> None:
        """Wrap the lines for the new width."""
        self.call_after_refresh(self._update_if_attached)

    def refresh_live(self) -> None:
        """Show the present lines if they can have changed."""
        if self.is_live:
            self._update_if_attached()

    def _update_if_attached(self) -> None:
        if self.pane.is_attached:  # not before it is mounted, nor after it is removed
            self.update_lines()

    def update_lines(self) -> None:
        """Show the present lines, wrapped for the width of the pane."""
        raise NotImplementedError

    def action_down(self) -> None:
        """Scroll down by a line."""
        self.pane.scroll_down(animate=False)

    def action_up(self) -> None:
        """Scroll up by a line."""
        self.pane.scroll_up(animate=False)
