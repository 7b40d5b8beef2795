"""Widgets that are not rendered again if nothing of them changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from textual.containers import Horizontal, Vertical
from textual.widget import Widget

if TYPE_CHECKING:
    from textual.geometry import Region
    from textual.strip import Strip


class RenderCached(Widget):
    """Keeps its rendered lines until it is refreshed, gets another style or another size.

    Whenever one line changes anywhere, Textual requests all lines of every widget on the screen. It caches single
    lines, but visiting those of a dozen widgets costs more than rendering the few new ones.
    """

    _rendered: tuple[Region, list[Strip]] | None = None

    def refresh(self, *regions: Region, repaint: bool = True, layout: bool = False, recompose: bool = False) -> Self:
        """Discard the rendered lines: something changed."""
        self._rendered = None
        return super().refresh(*regions, repaint=repaint, layout=layout, recompose=recompose)

    def notify_style_update(self) -> None:
        """Discard the rendered lines: the colours changed."""
        self._rendered = None
        super().notify_style_update()

    def render_lines(self, crop: Region) -> list[Strip]:
        """Return the lines that Textual requests."""
        if self._rendered is None or self._rendered[0] != crop:
            self._rendered = crop, super().render_lines(crop)
        return self._rendered[1]


class CachedHorizontal(Horizontal, RenderCached):
    """Widgets from left to right."""


class CachedVertical(Vertical, RenderCached):
    """Widgets from top to bottom."""
