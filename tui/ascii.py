"""For terminals that know ASCII alone: everything that is drawn, by us or by Textual, goes through one filter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.segment import Segment
from textual.filter import LineFilter

from tui.lines import ascii_only

if TYPE_CHECKING:
    from textual.color import Color


class AsciiFilter(LineFilter):
    """Puts a plain character in the place of every other one."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The same segments, as wide as before."""
        return [
            segment if segment.text.isascii() else Segment(ascii_only(segment.text), segment.style, segment.control)
            for segment in segments
        ]
