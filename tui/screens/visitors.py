"""The visitors of some tunnels over the main screen, with their rates; a key disconnects them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from textual import work
from textual.message import Message

from orchestrator.status.visitors import RateMeter
from tui.format.text import Line, plural
from tui.format.visitor_rows import (
    VISITOR_SORTS,
    choose_visitors,
    sort_at,
    visitor_heading,
    visitor_key,
    visitor_row,
)
from tui.screens.list_modal import ListModal
from tui.sources.base import SourceError
from tui.widgets.filter_input import FilterInput
from tui.widgets.list_table import ListTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textual import events
    from textual.app import ComposeResult
    from textual.binding import BindingType
    from textual.widgets import Input

    from orchestrator.status.json_types import VisitorJson
    from tui.screens.actions import ActionRunner
    from tui.session import DashboardSession

_MIN_PAUSE_S: Final = 1.0
_MAX_PAUSE_S: Final = 5.0
_READING_SHARE: Final = 10  # a list that takes long to read is read less often
_HINT: Final = "words or patterns (10.0.*) of address, tunnel, target, ID; !a not"


class VisitorTable(ListTable["VisitorJson"], inherit_bindings=False):
    """One row for each visitor; a click sorts by a title, or moves the cursor."""

    @dataclass
    class TitleClicked(Message):
        """The user clicked the title of a column."""

        sort: str

    @dataclass
    class RowClicked(Message):
        """The user clicked a row."""

        index: int

    def __init__(self) -> None:
        super().__init__()
        self.sort = VISITOR_SORTS[0]
        self.is_reversed = False

    def heading_line(self) -> Line:
        """Return the row of titles."""
        return visitor_heading(self.line_width, self.sort, is_reversed=self.is_reversed)

    def item_line(self, item: VisitorJson) -> Line:
        """Return the row of a visitor."""
        return visitor_row(item, self.line_width)

    def on_click(self, event: events.Click) -> None:
        """Sort by a title, or move the cursor to a row. The frame takes a line and a column, the padding another."""
        x, y = event.x - 2, event.y - 1
        if y == 0 and (sort := sort_at(self.line_width, x)):
            self.post_message(self.TitleClicked(sort))
        elif y > 0:
            self.post_message(self.RowClicked(self.scroll_offset.y + y - 1))


class VisitorListModal(ListModal):
    """The visitors of some tunnels, read every second while the list is open."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape,q", "leave"),
        ("enter", "accept_filter"),
        ("o", "sort"),
        ("O", "reverse"),
        ("slash", "filter"),
        ("x", "kick"),
        ("X", "kick_address"),
    ]

    def __init__(self, session: DashboardSession, actions: ActionRunner, names: Sequence[str]) -> None:
        """``names`` are the tunnels whose visitors are shown."""
        self._table = VisitorTable()
        title = f"Visitors of {names[0]}" if len(names) == 1 else f"Visitors of {len(names)} tunnels"
        super().__init__(title, self._table)
        self._session = session
        self._actions = actions
        self._names = list(names)
        self._meter = RateMeter()
        self._visitors: list[VisitorJson] = []
        self._is_read = False
        self._error = ""
        self._chosen: tuple[str, str | None, str | None] | None = None
        self._filter = FilterInput(id="visitor-filter")
        self.shown_tunnels = frozenset(names)

    def compose(self) -> ComposeResult:
        """Yield the table, and the filter below it."""
        yield self._table
        yield self._filter

    def on_mount(self) -> None:
        """Show the table, and read the list until the screen is closed."""
        super().on_mount()
        self._read_list()

    @work(exclusive=True, group="visitors")
    async def _read_list(self) -> None:
        loop = asyncio.get_running_loop()
        while self.is_attached:
            started_at = loop.time()
            try:
                visitors = (await self._session.source.fetch_visitors(self._names))["visitors"]
            except SourceError as error:
                self._error = str(error)
            else:
                self._meter.start_list()
                self._meter.measure(visitors)
                self._visitors, self._error, self._is_read = visitors, "", True
            self._update_if_attached()
            pause_s = _READING_SHARE * (loop.time() - started_at)
            await asyncio.sleep(min(max(_MIN_PAUSE_S, pause_s), _MAX_PAUSE_S))

    # -- what is shown -----------------------------------------------------------------------------------------------

    def update_lines(self) -> None:
        """Show the visitors as they were read last; the cursor follows its visitor to another row."""
        table = self._table
        shown = choose_visitors(self._visitors, self._filter.value, table.sort, is_reversed=table.is_reversed)
        keys = map(visitor_key, shown)
        cursor = next((index for index, key in enumerate(keys) if key == self._chosen), None)
        if cursor is None:  # that visitor has left: the next one moves up to its row
            cursor = min(table.cursor, max(0, len(shown) - 1))
            self._chosen = visitor_key(shown[cursor]) if shown and self._chosen is not None else None
        table.show_items(shown, cursor)
        table.border_subtitle = self._footer(len(shown)).replace("[", "\\[")

    def _footer(self, shown: int) -> str:
        if self._error:
            return self._error
        if not self._is_read:
            return "reading"
        total = len(self._visitors)
        count = plural(total, "visitor") if shown == total else f"{shown} of {plural(total, 'visitor')}"
        return f"{count} · / filter · o sort · O reverse · x kick · X kick its address · Esc closes"

    def choose(self, index: int) -> None:
        """Put the cursor on a visitor."""
        visitors = self._table.items
        self._chosen = visitor_key(visitors[index])
        self._table.show_items(visitors, index)

    def on_visitor_table_row_clicked(self, message: VisitorTable.RowClicked) -> None:
        """Move the cursor to the clicked row."""
        self.move_to(message.index)

    def on_visitor_table_title_clicked(self, message: VisitorTable.TitleClicked) -> None:
        """Sort by the clicked column, in reverse order if it is the present one."""
        table = self._table
        table.is_reversed = not table.is_reversed if table.sort == message.sort else False
        table.sort = message.sort
        self.update_lines()

    def action_sort(self) -> None:
        """Sort by the next column."""
        table = self._table
        table.sort = VISITOR_SORTS[(VISITOR_SORTS.index(table.sort) + 1) % len(VISITOR_SORTS)]
        table.is_reversed = False
        self.update_lines()

    def action_reverse(self) -> None:
        """Reverse the present order."""
        self._table.is_reversed = not self._table.is_reversed
        self.update_lines()

    # -- the filter --------------------------------------------------------------------------------------------------

    def action_filter(self) -> None:
        """Open the line in which the filter is edited."""
        self._filter.edit(self._filter.value, _HINT)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Apply the filter while it is edited."""
        event.stop()
        self._update_if_attached()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Keep the filter and close its input."""
        event.stop()
        self._close_filter()

    def on_filter_input_left(self) -> None:
        """Keep the filter and close its input: a click or Tab moved the focus away."""
        if self.focused is not self._filter:
            self._close_filter()

    def _close_filter(self) -> None:
        self._filter.display = False
        self._table.focus()

    def action_accept_filter(self) -> None:
        """Do nothing: Enter belongs to the filter, and must not close the list."""

    def action_leave(self) -> None:
        """Remove the filter; without one, close the list."""
        if self._filter.display or self._filter.value:
            self._filter.value = ""
            self._close_filter()
            self._update_if_attached()
        else:
            self.dismiss()

    # -- kick --------------------------------------------------------------------------------------------------------

    def action_kick(self) -> None:
        """Disconnect the visitor under the cursor, after a question."""
        if (visitor := self._under_cursor()) is not None:
            which = visitor["id"] or visitor["address"] or ""
            self._actions.kick(which, [visitor["tunnel"]], f"Disconnect {visitor['address'] or which}?")

    def action_kick_address(self) -> None:
        """Disconnect all visitors from the address under the cursor, after a question."""
        visitor = self._under_cursor()
        if visitor is None or visitor["address"] is None:
            return
        host = visitor["address"].rpartition(":")[0].strip("[]")
        self._actions.kick(host, self._names, f"Disconnect all visitors from {host}?")

    def _under_cursor(self) -> VisitorJson | None:
        visitors, cursor = self._table.items, self._table.cursor
        if cursor < len(visitors):
            return visitors[cursor]
        self._actions.show_error("No visitor is selected.")
        return None
