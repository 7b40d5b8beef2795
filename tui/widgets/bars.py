"""Single lines around the table: a bar with targets for the mouse, and the summary of the tunnel under the cursor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from textual.message import Message

from tui.format.details import summary_lines
from tui.widgets.pane import Pane

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textual import events
    from textual.geometry import Size

    from tui.format.chrome import ClickTarget
    from tui.format.text import Line
    from tui.model.tunnels import Tunnel

_LOW_SCREEN: Final = 14
"""Rows of the screen below which the summary has only one line."""


class ChoiceBar(Pane):
    """A line in which a click chooses something: the state filters, the keys of the footer."""

    @dataclass
    class Chosen(Message):
        """The user clicked a target."""

        bar: str
        name: str

    _targets: Sequence[ClickTarget] = ()

    def show_choices(self, line: Line, targets: Sequence[ClickTarget]) -> None:
        """Show this line with these targets."""
        self._targets = targets
        self.show_lines([line])

    def on_click(self, event: events.Click) -> None:
        """Choose the target under the mouse."""
        for target in self._targets:
            if target.start <= event.x < target.end:
                self.post_message(self.Chosen(self.id or "", target.name))


class SummaryPane(Pane):
    """One or two lines on a tunnel. Its height depends only on the screen, so that nothing moves with the cursor."""

    def show_tunnel(self, tunnel: Tunnel | None, screen: Size, now: float, wall: float) -> None:
        """Show a tunnel; None hides the pane. The clocks are those of ``summary_lines``."""
        if self.display != (tunnel is not None):
            self.display = tunnel is not None
        if tunnel is None:
            return
        height = 1 if screen.height < _LOW_SCREEN else 2
        if self.styles.height is None or self.styles.height.value != height:
            self.styles.height = height
        self.show_lines(summary_lines(tunnel, screen.width, height, now, wall))
