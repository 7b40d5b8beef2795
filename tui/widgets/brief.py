"""A line or two on the tunnel under the cursor, where the details are not beside the table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tui.brief import brief_lines
from tui.widgets.pane import Pane

if TYPE_CHECKING:
    from textual.geometry import Size

    from tui.model import Tunnel

_LOW: Final = 14
"""Rows of the screen below which one line has to do."""


class BriefPane(Pane):
    """As high as the screen bears, whatever there is to say, so that nothing moves when the cursor does."""

    def show_tunnel(self, tunnel: Tunnel | None, screen: Size, now: float, wall: float) -> None:
        """Show a tunnel; None hides the pane. The clocks are those of ``brief_lines``."""
        if self.display != (tunnel is not None):
            self.display = tunnel is not None
        if tunnel is None:
            return
        height = 1 if screen.height < _LOW else 2
        if self.styles.height is None or self.styles.height.value != height:
            self.styles.height = height
        self.show(brief_lines(tunnel, screen.width, height, now, wall))
