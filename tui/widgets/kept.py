"""Widgets that are not rendered again where nothing of them changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from textual.containers import Horizontal, Vertical
from textual.widget import Widget

if TYPE_CHECKING:
    from textual.geometry import Region
    from textual.strip import Strip


class Kept(Widget):
    """Keeps its rendered lines until it is refreshed, or styled anew, or has another size.

    Whenever a line changes anywhere, Textual asks every widget on the screen for all of its lines. It keeps single
    lines, but to go through those of a dozen widgets costs more than to render the few that are new.
    """

    _kept: tuple[Region, list[Strip]] | None = None

    def refresh(self, *regions: Region, repaint: bool = True, layout: bool = False, recompose: bool = False) -> Self:
        """Something of it changed."""
        self._kept = None
        return super().refresh(*regions, repaint=repaint, layout=layout, recompose=recompose)

    def notify_style_update(self) -> None:
        """Its colours changed."""
        self._kept = None
        super().notify_style_update()

    def render_lines(self, crop: Region) -> list[Strip]:
        """Textual asks for its lines."""
        if self._kept is None or self._kept[0] != crop:
            self._kept = crop, super().render_lines(crop)
        return self._kept[1]


class Columns(Horizontal, Kept):
    """Beside each other."""


class Rows(Vertical, Kept):
    """Under each other."""
