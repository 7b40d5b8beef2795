"""The table of tunnels: only rows that are seen are made, only rows that changed are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from rich.cells import cell_len
from rich.style import Style
from textual.message import Message

from tui.rows import Layout, ages, heading, lay_out, row
from tui.selection import Selection
from tui.widgets.pane import Pane

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from textual import events
    from textual.binding import BindingType
    from textual.strip import Strip

    from tui.lines import Line
    from tui.model import Tunnel
    from tui.selection import Shortlist

_SETTLING: Final = 3.0  # seconds for which the cursor stays at the top, as long as nobody moves it


class TunnelTable(Pane, inherit_bindings=False):
    """One row per tunnel under a row of titles that stays; the cursor stays with its tunnel, wherever that moves."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"table--cursor", "table--cursor-away", "table--heading"}
    BINDINGS: ClassVar[list[BindingType]] = [
        ("up,k", "move(-1)"),
        ("down,j", "move(1)"),
        ("pageup", "page(-1)"),
        ("pagedown", "page(1)"),
        ("home,g", "to_first"),
        ("end,G", "to_last"),
    ]

    @dataclass
    class Moved(Message):
        """The cursor is on another tunnel, or on none."""

        name: str | None

    @dataclass
    class Opened(Message):
        """Somebody wants to see more of a tunnel."""

        name: str

    @dataclass
    class Sorted(Message):
        """Somebody clicked on a title."""

        sort: str

    @dataclass
    class Marked(Message):
        """Somebody clicked where the mark stands."""

        name: str

    def __init__(self, *, id: str) -> None:  # noqa: A002  Textual's name
        super().__init__(id=id, focusable=True)
        self._tunnels: Sequence[Tunnel] = ()
        self._places: Mapping[str, int] = {}
        self._selection = Selection()
        self._marked: frozenset[str] = frozenset()
        self._now = 0.0
        self._layout_of_row = Layout((), ())
        self._longest = (0, 0)
        self._laid_out_for = 0
        self._seen: dict[int, Line] = {}
        self._made: dict[str, tuple[Tunnel, Line]] = {}
        self._made_for: tuple[Layout, frozenset[str]] | None = None
        self._cursor: str | None = None
        self._cursor_row = 0
        self._is_steered = False
        self._settled_at = 0.0

    @property
    def cursor(self) -> str | None:
        """The name of the tunnel under the cursor."""
        return self._cursor

    @property
    def seen(self) -> set[str]:
        """The tunnels whose rows are on the screen, and the one under the cursor."""
        top = self.scroll_offset.y
        shown = {tunnel.name for tunnel in self._tunnels[top : top + max(0, self.size.height - 1)]}
        return shown if self._cursor is None else {*shown, self._cursor}

    def show_tunnels(self, shown: Shortlist, selection: Selection, marked: frozenset[str], now: float) -> None:
        """Show these tunnels in this order; ``now`` is the monotonic clock."""
        self._tunnels = shown.tunnels
        if shown.places is not self._places:
            if shown.places.keys() != self._places.keys():
                self._measure(shown.tunnels)
            self._places = shown.places
        self._selection, self._marked, self._now = selection, marked, now
        self.extend(len(self._tunnels) + 1)
        self._keep_cursor()
        self._draw_changed()

    def _measure(self, tunnels: Iterable[Tunnel]) -> None:
        hosts = {tunnel.host for tunnel in tunnels}
        longest = (
            max((cell_len(tunnel.label) for tunnel in tunnels), default=0),
            max(map(cell_len, hosts), default=0),
        )
        if longest != self._longest:
            self._longest = longest
            self._laid_out_for = 0

    def _draw_changed(self) -> None:
        """Make the visible rows, and have those drawn that are not as they were."""
        if self._laid_out_for != self.room:
            self._laid_out_for = self.room
            self._layout_of_row = lay_out(self.room, *self._longest)
        top = self.scroll_offset.y
        rows = self._rows(self._tunnels[top : top + max(0, self.size.height - 1)])
        seen = {-1: heading(self._layout_of_row, self._selection), **dict(enumerate(rows, top))}
        for index in seen.keys() | self._seen.keys():
            if seen.get(index) != self._seen.get(index):
                self._refresh_row(index)
        self._seen = seen

    def _rows(self, tunnels: Iterable[Tunnel]) -> Iterable[Line]:
        """Their rows; a tunnel that is as it was is not taken apart once more."""
        made_for = (self._layout_of_row, self._marked)
        before = self._made if made_for == self._made_for else {}
        self._made, self._made_for = {}, made_for
        for tunnel in tunnels:
            old, line = before.get(tunnel.name, (None, ()))
            if tunnel is not old or ages(tunnel):
                line = row(tunnel, self._layout_of_row, self._now, self._marked)
            self._made[tunnel.name] = (tunnel, line)
            yield line

    def _refresh_row(self, index: int) -> None:
        if index < 0:
            self.refresh_line(self.scroll_offset.y)
        else:
            self.refresh_line(index + 1)

    def line_at(self, y: int) -> Line:
        """The row of a tunnel; ``y`` counts the titles' row as 0."""
        index = y - 1
        if index >= len(self._tunnels):
            return ()
        line = self._seen.get(index)
        if line is None:
            line = self._seen[index] = row(self._tunnels[index], self._layout_of_row, self._now, self._marked)
        return line

    def row_style(self, y: int) -> Style:
        """The cursor's row has a colour of its own."""
        if self._cursor is None or y - 1 != self._cursor_row:
            return Style.null()
        return self.get_component_rich_style("table--cursor" if self.has_focus else "table--cursor-away", partial=True)

    def render_line(self, y: int) -> Strip:
        """The titles stay where they are, the rows move under them."""
        if y == 0:
            under = self.get_component_rich_style("table--heading", partial=True)
            return self.strip(heading(self._layout_of_row, self._selection), under, self.room)
        return super().render_line(y)

    # -- the cursor ------------------------------------------------------------------------------------------------

    def _keep_cursor(self) -> None:
        if not self._tunnels:
            self._put(None, 0)
        elif self._cursor is None or (not self._is_steered and self._now < self._settled_at):
            # what is wrong comes first, but hardly anything is known at first
            self._settled_at = self._settled_at or self._now + _SETTLING
            self._put(self._tunnels[0].name, 0)
        elif self._cursor in self._places:
            moved = self._places[self._cursor]
            if moved != self._cursor_row:
                self._put(self._cursor, moved)
        else:
            index = min(self._cursor_row, len(self._tunnels) - 1)
            self._put(self._tunnels[index].name, index)

    def _put(self, name: str | None, index: int) -> None:
        before, self._cursor_row = self._cursor_row, index
        is_other, self._cursor = name != self._cursor, name
        if before != index or is_other:
            self._refresh_row(before)
            self._refresh_row(index)
            self._into_view(index)
        if is_other:
            self.post_message(self.Moved(name))

    def _into_view(self, index: int) -> None:
        room, top = max(1, self.size.height - 1), self.scroll_offset.y
        if index < top:
            self.scroll_to(y=index, animate=False, force=True)
        elif index >= top + room:
            self.scroll_to(y=index - room + 1, animate=False, force=True)

    def move_to(self, name: str) -> bool:
        """Put the cursor on a tunnel; False where it is not shown."""
        self._is_steered = True
        if name not in self._places:
            return False
        self._put(name, self._places[name])
        return True

    def _move_by(self, step: int) -> None:
        self._is_steered = True
        if self._tunnels:
            index = min(max(0, self._cursor_row + step), len(self._tunnels) - 1)
            self._put(self._tunnels[index].name, index)

    def action_move(self, step: int) -> None:
        """One row up or down."""
        self._move_by(step)

    def action_page(self, step: int) -> None:
        """One page up or down."""
        self._move_by(step * max(1, self.size.height - 2))

    def action_to_first(self) -> None:
        """To the first tunnel."""
        self._move_by(-len(self._tunnels))

    def action_to_last(self) -> None:
        """To the last tunnel."""
        self._move_by(len(self._tunnels))

    # -- what Textual tells us -------------------------------------------------------------------------------------

    def on_resize(self) -> None:
        """Another width may have room for other columns."""
        self._into_view(self._cursor_row)
        self._draw_changed()

    def on_focus(self) -> None:
        """The cursor shows whether keys reach it."""
        self._refresh_row(self._cursor_row)

    def on_blur(self) -> None:
        """As above."""
        self._refresh_row(self._cursor_row)

    def on_click(self, event: events.Click) -> None:
        """A title sorts, the first place of a row marks, a second click opens."""
        if event.y == 0:
            column = self._layout_of_row.column_at(event.x)
            if column is not None:
                self.post_message(self.Sorted(column.sort or column.key))
            return
        index = self.scroll_offset.y + event.y - 1
        if index >= len(self._tunnels):
            return
        name = self._tunnels[index].name
        self._is_steered = True
        self._put(name, index)
        if event.x == 0:
            self.post_message(self.Marked(name))
        elif event.chain == 2:
            self.post_message(self.Opened(name))
