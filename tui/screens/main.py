"""The main screen: what is shown of the view, and what keys do with it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final

from textual.binding import Binding, BindingType
from textual.widgets import Input

from tui import acting
from tui.bars import banner_lines, filter_line, first_lines, footer_bar, header_line, none_match, pill_bar
from tui.details import detail_lines
from tui.inquiry import Inquiry
from tui.keys import DEEDS, PILL_KEYS
from tui.lines import wrap
from tui.palette import Commands
from tui.screens.overlays import Overlays
from tui.screens.questions import Reading
from tui.screens.readings import Lines
from tui.selection import ALL, PILLS, Selection, Shortlist, pills
from tui.widgets.brief import BriefPane
from tui.widgets.choices import ChoiceBar
from tui.widgets.kept import Columns, Rows
from tui.widgets.log import LogPane
from tui.widgets.pane import Pane
from tui.widgets.table import TunnelTable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from textual.app import ComposeResult
    from textual.command import Provider
    from textual.events import Key

    from tui.commander import Commander
    from tui.lines import Line
    from tui.model import Tunnel, View
    from tui.watch import Watch

_WIDE: Final = 110
"""Columns from which on the details stand beside the table; on a narrower screen they lie over it."""
_HIGH: Final = 30
"""Rows from which on the log is shown without being asked for."""


class MainScreen(Overlays):
    """Header, pills, table, details, log, footer."""

    COMMANDS: ClassVar[set[type[Provider] | Callable[[], type[Provider]]]] = {Commands}
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(deed.keys, deed.name, deed.help, id=deed.name, show=False) for deed in DEEDS),
        *(Binding(key, f"pill('{name}')", show=False) for key, (name, _) in zip(PILL_KEYS, PILLS, strict=False)),
    ]

    def __init__(self, watch: Watch, commander: Commander, keys: Mapping[str, str]) -> None:
        super().__init__(watch, commander, keys)
        self._selection = Selection()
        self._marked: frozenset[str] = frozenset()
        self._frozen: tuple[View, float] | None = None
        self._shortlist = Shortlist()
        self._footer_for = (0, False)
        self._detail_wanted = True
        self._log_wanted: bool | None = None
        self._log_is_of_all = False
        self._typing_log = False
        self._header, self._pills, self._filter = Pane(id="header"), ChoiceBar(id="pills"), Pane(id="filter")
        self._typing = Input(id="typing", compact=True, select_on_focus=False)
        self._banner, self._footer = Pane(id="banner"), ChoiceBar(id="footer")
        self._table, self._empty, self._log = TunnelTable(id="table"), Pane(id="empty"), LogPane(id="log")
        self._detail, self._brief = Pane(id="detail", focusable=True), BriefPane(id="brief")

    def compose(self) -> ComposeResult:
        """Everything that can ever be seen here; what is not wanted is hidden."""
        yield from (self._header, self._pills, self._filter, self._typing, self._banner)
        with Columns(id="body"):
            with Rows(id="left"):
                yield from (self._table, self._empty, self._brief, self._log)
            yield self._detail
        yield self._footer

    def on_mount(self) -> None:
        """The keys belong to the table."""
        self._inquiry = Inquiry(self, self._watch.source, self._log, self.draw)
        self._table.focus()
        self._typing.display = False

    # -- the pieces ------------------------------------------------------------------------------------------------

    @property
    def chosen(self) -> str | None:
        """The tunnel under the cursor."""
        return self._table.cursor

    @property
    def keys(self) -> Mapping[str, str]:
        """The keys of each deed."""
        return self._keys

    @property
    def names(self) -> list[str]:
        """The names of all tunnels."""
        return list(self._watch.view.tunnels)

    @property
    def _shown(self) -> list[Tunnel]:
        return self._shortlist.tunnels

    @property
    def _is_fleet(self) -> bool:
        return self._watch.view.hosts is not None

    def _shown_now(self) -> tuple[View, float]:
        """The view on the screen, and the monotonic clock that goes with it."""
        return self._frozen or (self._watch.view, self._watch.now())

    # -- drawing ---------------------------------------------------------------------------------------------------

    def draw(self) -> None:
        """Show all that is known now; costs little where nothing changed."""
        self.draw_table()
        self.draw_bars()
        self.draw_details()

    @property
    def _can_draw(self) -> bool:
        return self.is_mounted and bool(self.size.width) and self in self.app.screen_stack  # or else it comes, or goes

    def draw_table(self) -> None:
        """Show the table as it is now, and what lies over it."""
        if not self._can_draw:
            return
        view, now = self._shown_now()
        self._shortlist.update(view.tunnels, self._selection)
        self._marked &= view.tunnels.keys()
        self._draw_rows(view, now)
        over = self.app.screen
        closely = set() if self._table.cursor is None else {self._table.cursor}
        if isinstance(over, Reading):
            over.refill()
            closely |= over.looked_at
        self._watch.look_at({*self._table.seen, *self._marked, *closely}, closely)

    def draw_bars(self) -> None:
        """The same of the lines around the table, which has been drawn before."""
        if not self._can_draw:
            return
        (view, _), width = self._shown_now(), self.size.width
        attached = replace(self._watch.attached(), is_frozen=self._frozen is not None)
        self._header.show([header_line(view, attached, width)])
        self._pills.show_choices(*pill_bar(view, self._shortlist.counts, self._selection.pill, width))
        line = filter_line(self._selection, len(self._shown), len(view.tunnels), len(self._marked), width)
        self._filter.show([line])
        lines = banner_lines(view, attached, self._watch.notice, width)
        if self._banner.display != bool(lines):
            self._banner.display = bool(lines)
        self._banner.show(lines)
        if self._footer_for != (width, self.is_read_only):
            self._footer_for = (width, self.is_read_only)
            self._footer.show_choices(*footer_bar(self._keys, width, is_read_only=self.is_read_only))
        self.set_class(attached.lost is not None, "-stale")
        self.show_through()

    def draw_details(self) -> None:
        """The same of the tunnel under the cursor, and of the log."""
        if not self._can_draw:
            return
        view, now = self._shown_now()
        detail = self._detail
        wanted = self._detail_wanted and self.size.width >= _WIDE and bool(view.tunnels)
        if detail.display != wanted:
            detail.display = wanted
        if wanted:
            detail.show(self._details(self._table.cursor, max(20, detail.room)))
        brief = view.tunnels.get(self._table.cursor or "") if self._shown and not wanted else None
        self._brief.show_tunnel(brief, self.size, now, self._watch.wall())
        self._log.flush()

    def _draw_rows(self, view: View, now: float) -> None:
        empty, table = self._empty, self._table
        is_empty = not self._shown
        if empty.display != is_empty or table.display == is_empty:
            empty.display, table.display = is_empty, not is_empty
            if not is_empty and not self._typing.display:
                table.focus()
        if is_empty:
            width = empty.size.width or self.size.width
            lines = (
                none_match(self._selection, width) if view.tunnels else first_lines(view, self._watch.attached(), width)
            )
            empty.show(lines)
        table.show_tunnels(self._shortlist, self._selection, self._marked, now)

    def _details(self, name: str | None, width: int) -> list[Line]:
        if name is None:
            return [(("No tunnel is chosen.", "dim"),)]
        view, now = self._shown_now()
        tunnel = view.tunnels.get(name)
        if tunnel is None:
            return [((part, "warn"),) for part in wrap(f"{name} is gone.", width)]
        return detail_lines(tunnel, self._inquiry.details_of(name), width, now, self._watch.wall())

    def on_resize(self) -> None:
        """Another size has room for other things."""
        log = self._log_wanted if self._log_wanted is not None else self.size.height >= _HIGH
        if self._log.display != log:
            self._log.display = log
            self.ask_anew()
        self.call_after_refresh(self.draw)

    # -- asking for more than the stream tells -----------------------------------------------------------------------

    def on_tunnel_table_moved(self) -> None:
        """Details and log follow the cursor."""
        self.ask_anew()
        self.draw_details()

    def ask_anew(self, *, is_back: bool = False) -> None:
        """The cursor moved, the daemon has another file, or it is back: what was asked for is old."""
        self._inquiry.ask_details(self._table.cursor)
        if self._log.display:
            self._inquiry.follow_log(None if self._log_is_of_all else self._table.cursor, is_anew=is_back)

    # -- looking -----------------------------------------------------------------------------------------------------

    def _select(self, selection: Selection) -> None:
        self._selection = selection
        self.draw()

    def on_choice_bar_chosen(self, message: ChoiceBar.Chosen) -> None:
        """A click on a pill or on a key of the footer."""
        if message.bar == "pills":
            self.action_pill(message.name)
        else:
            self.do(message.name)

    def on_tunnel_table_sorted(self, message: TunnelTable.Sorted) -> None:
        """A click on a title."""
        self._select(self._selection.sorted_by(message.sort))

    def on_tunnel_table_opened(self) -> None:
        """A double click on a row."""
        self.action_detail()

    def on_tunnel_table_marked(self, message: TunnelTable.Marked) -> None:
        """A click on the mark."""
        self._mark({message.name})

    def action_pill(self, name: str) -> None:
        """Filter by state; the chosen one again shows all."""
        if name not in pills(is_fleet=self._is_fleet):
            return
        self._select(replace(self._selection, pill=ALL if name == self._selection.pill else name))

    def action_next_pill(self) -> None:
        """The next filter by state."""
        self._select(self._selection.next_pill(1, is_fleet=self._is_fleet))

    def action_previous_pill(self) -> None:
        """The one before."""
        self._select(self._selection.next_pill(-1, is_fleet=self._is_fleet))

    def action_sort(self) -> None:
        """By the next column."""
        self._select(self._selection.next_sort(is_fleet=self._is_fleet))

    def action_reverse(self) -> None:
        """The other way round."""
        self._select(self._selection.sorted_by(self._selection.sort))

    def action_clear(self) -> None:
        """Escape: out of the text, then out of everything that narrows the view."""
        if self._typing.display:
            self._sift("")
            self._end_typing()
            return
        self._watch.notice = None
        self._marked = frozenset()
        self._table.focus()
        self._select(Selection(sort=self._selection.sort, is_reversed=self._selection.is_reversed))

    def action_freeze(self) -> None:
        """Hold the picture; events go on arriving."""
        self._frozen = None if self._frozen else (self._watch.view, self._watch.now())
        self.draw()

    def action_filter(self) -> None:
        """Type a filter for the table."""
        self._begin_typing(
            is_log=False, text=self._selection.text, hint="filter: words of name, address, tag; a|b is either"
        )

    def action_log_filter(self) -> None:
        """Type a filter for the log."""
        self._show_log(is_shown=True)
        self._begin_typing(is_log=True, text=self._log.sieve.text, hint="filter the log")

    def _begin_typing(self, *, is_log: bool, text: str, hint: str) -> None:
        self._typing_log = is_log
        typing = self._typing
        typing.placeholder = hint
        typing.value = text
        typing.display = True
        self._filter.display = False
        self.set_focus(typing)  # at once, for the next key may be on its way

    def takes(self, key: Key) -> bool:
        """Whether a key that nobody took was on its way to the table when the filter began: then it belongs to that."""
        is_late = self.is_active and self.focused is self._typing and key.is_printable
        if is_late:
            self._typing.insert_text_at_cursor(key.character or "")
        return is_late

    def _end_typing(self) -> None:
        self._typing.display = False
        self._filter.display = True
        self._table.focus()
        self.draw()

    def on_input_changed(self, event: Input.Changed) -> None:
        """The filter works while it is typed."""
        if self._typing.display:
            self._sift(event.value)

    def _sift(self, text: str) -> None:
        if self._typing_log:
            self._log.sift(replace(self._log.sieve, text=text))
        else:
            self._select(replace(self._selection, text=text))

    def on_input_submitted(self) -> None:
        """Enter keeps the filter."""
        self._end_typing()

    def action_detail(self) -> None:
        """Beside the table where there is room, over it where there is not."""
        if self.size.width >= _WIDE:
            self._detail_wanted = not self._detail_wanted
            self.draw()
        elif self._table.cursor is not None:
            name = self._table.cursor
            self.app.push_screen(Lines(name, partial(self._details, name), is_live=True))

    def action_log(self) -> None:
        """Show or hide the log."""
        self._show_log(is_shown=not self._log.display)

    def _show_log(self, *, is_shown: bool) -> None:
        if self._log.has_focus and not is_shown:
            self._table.focus()
        self._log_wanted = is_shown
        self.on_resize()

    def action_log_level(self) -> None:
        """From the next level on."""
        self._show_log(is_shown=True)
        self._log.sift(self._log.sieve.next_level())

    def action_log_scope(self) -> None:
        """Of the tunnel under the cursor, or of all."""
        self._log_is_of_all = not self._log_is_of_all
        self._show_log(is_shown=True)
        self.ask_anew()

    def action_log_pause(self) -> None:
        """Hold it, or follow."""
        self._log.pause(not self._log.is_paused)

    async def action_quit(self) -> None:
        """Leave."""
        await self.app.action_quit()

    # -- marking -----------------------------------------------------------------------------------------------------

    def _mark(self, names: Collection[str]) -> None:
        self._marked ^= frozenset(names)
        self.draw()

    def action_mark(self) -> None:
        """Mark the tunnel under the cursor, or not any more, and go on to the next."""
        if self._table.cursor is not None:
            self._mark({self._table.cursor})
            self._table.action_move(1)

    def action_mark_all(self) -> None:
        """All that are shown; none, where all are."""
        names = frozenset(tunnel.name for tunnel in self._shown)
        self._marked = self._marked - names if names <= self._marked else self._marked | names
        self.draw()

    def _targets(self) -> list[Tunnel]:
        """The marked tunnels, else the one under the cursor, as they are now."""
        tunnels = self._watch.view.tunnels
        names = sorted(self._marked) or [self._table.cursor or ""]
        return [tunnels[name] for name in names if name in tunnels]

    # -- acting ------------------------------------------------------------------------------------------------------

    def do(self, deed: str) -> None:
        """What a key does, by the deed's name."""
        self.call_later(self.run_action, deed)

    def tell(self, verb: str, name: str) -> None:
        """A command, or a look, for one tunnel."""
        tunnel = self._watch.view.tunnels.get(name)
        if tunnel is None:
            self._commander.complain(f"{name} is gone")
        elif verb == "copy":
            self._commander.copy(name)
        elif verb == "show":
            if not self._table.move_to(name):
                self._select(Selection())
                self._table.move_to(name)
        else:
            self._commander.give(verb, [tunnel])

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Commands are barred where somebody may only look."""
        return None if action in _COMMANDS and self.is_read_only else super().check_action(action, parameters)

    def action_start_stop(self) -> None:
        """Start what rests, or stop what runs."""
        self._commander.give(*acting.toggled(self._targets()))

    def action_restart(self) -> None:
        """Restart."""
        self._commander.give("restart", self._targets())

    def action_drain(self) -> None:
        """Accept nobody new."""
        self._commander.give("drain", self._targets())

    def action_retry(self) -> None:
        """Try again now."""
        self._commander.give("retry", self._targets())

    def action_reload(self) -> None:
        """Read the file again."""
        self._commander.reload(self._targets())

    def action_plan(self) -> None:
        """What a reload would change."""
        self._commander.plan()

    def action_copy(self) -> None:
        """The URL of the tunnel under the cursor."""
        if self._table.cursor is not None:
            self._commander.copy(self._table.cursor)


_COMMANDS: Final = frozenset(deed.name for deed in DEEDS if deed.is_command)
