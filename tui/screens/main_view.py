"""The main screen without its actions: its widgets, and how they show the view."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from textual.screen import Screen

from tui.format.chrome import (
    banner_lines,
    filter_bar,
    footer_bar,
    header_line,
    no_match_lines,
    no_tunnels_lines,
    state_filter_bar,
)
from tui.format.columns import SORT_KEYS, changes_with_time
from tui.format.details import detail_lines
from tui.format.text import paragraph
from tui.model.selection import Selection, VisibleTunnels
from tui.screens.detail_loader import DetailLoader
from tui.screens.dialogs import TextModal
from tui.widgets.bars import ChoiceBar, SummaryPane
from tui.widgets.filter_input import FilterInput
from tui.widgets.log import LogPane
from tui.widgets.pane import Pane
from tui.widgets.render_cache import CachedHorizontal, CachedVertical, RenderCached
from tui.widgets.table import TunnelTable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from textual.app import ComposeResult

    from tui.format.text import Line
    from tui.model.tunnels import StatusView
    from tui.session import DashboardSession

_MIN_DETAIL_SCREEN_WIDTH: Final = 110
"""From this width on the details are beside the table; on a narrower screen they cover it."""
_MIN_LOG_SCREEN_HEIGHT: Final = 30
"""From this height on the log is shown by default."""


class MainView(Screen[None], RenderCached):
    """Header, state filters, table, details, log, footer.

    A refresh has three parts, which the application may spread over time: ``draw_table``, ``draw_bars`` and
    ``draw_details``. Each costs little if nothing has changed.
    """

    def __init__(self, session: DashboardSession, keys: Mapping[str, str]) -> None:
        """``keys`` are those in use, by the name of the action."""
        super().__init__()
        self._session = session
        self._keys = keys
        self._selection = Selection()
        self._marked: frozenset[str] = frozenset()
        self._frozen: tuple[StatusView, float] | None = None
        self._drawn: tuple[StatusView, float] | None = None
        """the view and the clock from which the table was drawn last"""
        self._visible_tunnels = VisibleTunnels(SORT_KEYS)
        self._footer_drawn_for = (0, False)
        self._wants_details = True
        self._wants_log: bool | None = None
        """the user's choice; None: it depends on the height of the screen"""
        self._is_log_of_all = False
        self._header, self._filters, self._filter = (
            Pane(id="header"),
            ChoiceBar(id="state-filters"),
            ChoiceBar(id="filter"),
        )
        self._filter_input = FilterInput(id="filter-input")
        self._banner, self._footer = Pane(id="banner"), ChoiceBar(id="footer")
        self._table, self._empty, self._log = TunnelTable(id="table"), Pane(id="empty"), LogPane(id="log")
        self._detail, self._summary = Pane(id="detail", focusable=True), SummaryPane(id="summary")
        self._loader = DetailLoader(self, session.source, self._log, self.draw)

    def compose(self) -> ComposeResult:
        """Yield all widgets; those that are not shown now are hidden."""
        yield from (self._header, self._filters, self._filter, self._filter_input, self._banner)
        with CachedHorizontal(id="body"):
            with CachedVertical(id="left"):
                yield from (self._table, self._empty, self._summary, self._log)
            yield self._detail
        yield self._footer

    def on_mount(self) -> None:
        """Give the focus to the table."""
        self._table.focus()

    @property
    def is_read_only(self) -> bool:
        """Whether commands are blocked, by the user's choice or by the daemon."""
        return self._session.is_read_only

    @property
    def _has_room_for_details(self) -> bool:
        return self.size.width >= _MIN_DETAIL_SCREEN_WIDTH

    @property
    def _can_draw(self) -> bool:
        """Whether the screen has been laid out and is not being removed."""
        return self.is_mounted and bool(self.size.width) and self in self.app.screen_stack

    def _shown_view(self) -> tuple[StatusView, float]:
        """Return the view on the screen, which may be frozen, and its monotonic clock."""
        return self._frozen or (self._session.view, self._session.now())

    # -- drawing -----------------------------------------------------------------------------------------------------

    def draw(self) -> None:
        """Show all that is known now."""
        self.draw_table()
        self.draw_bars()
        self.draw_details()

    def draw_table(self) -> None:
        """Show the table, and the live text over it."""
        if not self._can_draw:
            return
        view, now = self._drawn = self._shown_view()
        self._visible_tunnels.update(view.tunnels, self._selection)
        self._marked &= view.tunnels.keys()
        self._draw_rows(view, now)
        tunnel = view.tunnels.get(self._table.cursor or "")
        if tunnel is not None and changes_with_time(tunnel):
            self._draw_detail(view, now)  # at once: row and details must show the same seconds
        top_screen = self.app.screen
        detailed = set() if self._table.cursor is None else {self._table.cursor}
        if isinstance(top_screen, TextModal):
            top_screen.refresh_live()
            detailed |= top_screen.shown_tunnels
        self._session.set_visible({*self._table.visible_names, *self._marked, *detailed}, detailed)

    def _draw_rows(self, view: StatusView, now: float) -> None:
        empty, table = self._empty, self._table
        is_empty = not self._visible_tunnels.tunnels
        if empty.display != is_empty or table.display == is_empty:
            empty.display, table.display = is_empty, not is_empty
            if not is_empty and not self._filter_input.display:
                table.focus()
        if is_empty:
            width = empty.size.width or self.size.width
            if view.tunnels:
                empty.show_lines(no_match_lines(self._selection, width))
            else:
                empty.show_lines(no_tunnels_lines(view, self._session.connection(), width))
        table.show_tunnels(self._visible_tunnels, self._selection, self._marked, now)

    def draw_bars(self) -> None:
        """Show the lines around the table, after ``draw_table``."""
        if not self._can_draw:
            return
        (view, _), width = self._shown_view(), self.size.width
        connection = replace(self._session.connection(), is_frozen=self._frozen is not None)
        self._header.show_lines([header_line(view, connection, width)])
        visible, selection = self._visible_tunnels, self._selection
        self._filters.show_choices(*state_filter_bar(view, visible.state_counts, selection.state_filter, width))
        numbers = (len(visible.tunnels), len(view.tunnels), len(self._marked))
        self._filter.show_choices(*filter_bar(selection, self._table.table_layout, *numbers, width))
        self._draw_banner(banner_lines(view, connection, self._session.notice, width))
        if self._footer_drawn_for != (width, self.is_read_only):
            self._footer_drawn_for = (width, self.is_read_only)
            self._footer.show_choices(*footer_bar(self._keys, width, is_read_only=self.is_read_only))
        self.set_class(connection.error is not None, "-stale")
        self._refresh_screens_between()

    def _draw_banner(self, lines: list[Line]) -> None:
        if self._banner.display != bool(lines):
            self._banner.display = bool(lines)
        self._banner.show_lines(lines)

    def _refresh_screens_between(self) -> None:
        """Refresh the screens between this one and the topmost: they have an old copy of this one as background."""
        stack = self.app.screen_stack
        for between in stack[stack.index(self) + 1 : -1]:
            between.refresh()

    def draw_details(self) -> None:
        """Show the details of the tunnel under the cursor, and the log."""
        if not self._can_draw:
            return
        self._draw_detail(*(self._drawn or self._shown_view()))
        self._log.flush()

    def _draw_detail(self, view: StatusView, now: float) -> None:
        detail = self._detail
        is_wanted = self._wants_details and self._has_room_for_details and bool(view.tunnels)
        if detail.display != is_wanted:
            detail.display = is_wanted
        if is_wanted:
            detail.show_lines(self._detail_lines(self._table.cursor, max(20, detail.text_width)))
        needs_summary = bool(self._visible_tunnels.tunnels) and not is_wanted
        summary = view.tunnels.get(self._table.cursor or "") if needs_summary else None
        self._summary.show_tunnel(summary, self.size, now, self._session.wall())

    def _detail_lines(self, name: str | None, width: int) -> list[Line]:
        if name is None:
            return [(("No tunnel is selected.", "dim"),)]
        view, now = self._drawn or self._shown_view()
        tunnel = view.tunnels.get(name)
        if tunnel is None:
            return paragraph(f"{name} was removed.", width, "warn")
        return detail_lines(tunnel, self._loader.details_of(name), width, now, self._session.wall())

    # -- layout ------------------------------------------------------------------------------------------------------

    def on_resize(self) -> None:
        """Adapt to another size."""
        self._show_or_hide_log()
        self.call_after_refresh(self.draw)

    def _show_or_hide_log(self) -> None:
        is_shown = self._wants_log if self._wants_log is not None else self.size.height >= _MIN_LOG_SCREEN_HEIGHT
        if self._log.display != is_shown:
            self._log.display = is_shown
            self.reload_details()

    def on_tunnel_table_cursor_moved(self) -> None:
        """Show details and log of the tunnel under the cursor."""
        self.reload_details()
        self.draw_details()

    def reload_details(self, *, is_reconnected: bool = False) -> None:
        """Request details and log again: the cursor moved, the file changed, or the source is back."""
        self._loader.load_details(self._table.cursor)
        if self._log.display:
            self._loader.follow_log(None if self._is_log_of_all else self._table.cursor, must_restart=is_reconnected)
