"""Questions that lie over the main screen: may I, how shall we leave, which text."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Static

from tui.widgets.pane import Pane

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textual.app import ComposeResult
    from textual.binding import BindingType

    from tui.lines import Line


class Question(ModalScreen[str | None]):
    """A sentence, some lines, some buttons. The focus is on Cancel, and Escape means it too.

    Gives the name of the button, or None for Cancel.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape,q", "dismiss(None)"),
        ("left,up", "app.focus_previous"),
        ("right,down", "app.focus_next"),
        ("pageup", "page(-1)"),
        ("pagedown", "page(1)"),
    ]

    def __init__(self, title: str, lines: Sequence[Line], answers: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self._title = title
        self._lines = lines
        self._answers = answers

    def compose(self) -> ComposeResult:
        """The box in the middle."""
        with Vertical(id="question"):
            yield Static(self._title, id="question-title", markup=False)
            yield Pane(id="question-lines")
            with Horizontal(id="question-answers"):
                yield Button("Cancel", id="cancel", compact=True)
                for name, label in self._answers:
                    yield Button(label.replace("[", "\\["), id=name, variant="warning", compact=True)

    def on_mount(self) -> None:
        """Nobody does harm by pressing Enter once too often."""
        self.query_one("#question-lines", Pane).show(self._lines)
        self.query_one("#cancel", Button).focus()

    def action_page(self, step: int) -> None:
        """Read on where the lines are more than there is room for."""
        lines = self.query_one("#question-lines", Pane)
        lines.scroll_relative(y=step * max(1, lines.size.height - 1), animate=False)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """The answer."""
        name = event.button.id
        self.dismiss(None if name == "cancel" else name)


class Reading(ModalScreen[None]):
    """Lines to read, over everything else; Escape closes."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape,q,enter", "dismiss"), ("j", "down"), ("k", "up")]

    is_live = False
    """whether what it shows goes on changing, so that it is to be filled again and again"""
    looked_at: frozenset[str] = frozenset()
    """the tunnels whose numbers it shows"""

    def __init__(self, title: str, pane: Pane | None = None) -> None:
        super().__init__()
        self._title = title
        self.pane = pane or Pane(id="reading", focusable=True)
        """where the lines are shown"""

    def compose(self) -> ComposeResult:
        """One pane with a frame."""
        yield self.pane

    def on_mount(self) -> None:
        """The keys belong to the pane."""
        self.pane.border_title = self._title.replace("[", "\\[")
        self.pane.border_subtitle = "Esc closes"
        self.pane.focus()
        self.call_after_refresh(self._fill)

    def on_resize(self) -> None:
        """Another width breaks lines elsewhere."""
        self.call_after_refresh(self._fill)

    def refill(self) -> None:
        """Show anew what goes on changing."""
        if self.is_live:
            self._fill()

    def _fill(self) -> None:
        if self.pane.is_attached:  # there may be no place for it yet, or no longer
            self.fill()

    def fill(self) -> None:
        """Show the lines, as wide as there is room."""

    def action_down(self) -> None:
        """One line further."""
        self.pane.scroll_down(animate=False)

    def action_up(self) -> None:
        """One line back."""
        self.pane.scroll_up(animate=False)
