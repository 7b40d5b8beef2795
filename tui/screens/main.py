"""The main screen: what keys and the mouse do. Each action of ``tui.model.keys`` is a method ``action_NAME``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final

from textual import work
from textual.binding import Binding, BindingType

from tui.format.columns import sortable_columns
from tui.format.confirmations import choose_toggle
from tui.format.help import help_lines
from tui.model.keys import ACTIONS, STATE_FILTER_KEYS
from tui.model.selection import Selection
from tui.model.states import ALL, STATE_FILTERS, state_filters
from tui.screens.actions import NO_TUNNEL
from tui.screens.columns import ColumnsModal
from tui.screens.detail_loader import MAX_EVENTS
from tui.screens.main_view import MainView
from tui.screens.members import MemberListModal
from tui.screens.palette import CommandProvider
from tui.screens.routes import HostsModal, RouteListModal, RouteModal
from tui.screens.texts import EventsModal, LinesModal
from tui.screens.traffic import TrafficModal
from tui.screens.visitors import VisitorListModal
from tui.sources.base import SourceError
from tui.themes import opposite_theme
from tui.widgets.filter_input import InputPurpose

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from textual.command import Provider
    from textual.events import Key
    from textual.timer import Timer
    from textual.widgets import Input

    from tui.model.column_file import ColumnFile
    from tui.model.tunnels import Tunnel
    from tui.screens.actions import ActionRunner
    from tui.session import DashboardSession
    from tui.widgets.bars import ChoiceBar
    from tui.widgets.table import TunnelTable

FILTER_HINT: Final = "words or patterns (edge-*) of name, address, tag; a|b either, !a not, host:a tag:a state:a"

_LARGE_TABLE: Final = 2000
"""Tunnels beyond which a filter is applied when the typing pauses: of 50,000, each letter takes up to a second."""
_TYPING_PAUSE_S: Final = 0.15


class MainScreen(MainView):
    """The main view with its actions."""

    COMMANDS: ClassVar[set[type[Provider] | Callable[[], type[Provider]]]] = {CommandProvider}
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(action.keys, action.name, action.help, id=action.name, show=False) for action in ACTIONS),
        *(
            Binding(key, f"state_filter('{name}')", show=False)
            for key, (name, _) in zip(STATE_FILTER_KEYS, STATE_FILTERS, strict=False)
        ),
    ]

    def __init__(
        self, session: DashboardSession, actions: ActionRunner, keys: Mapping[str, str], column_file: ColumnFile
    ) -> None:
        super().__init__(session, keys)
        self._actions = actions
        self._column_file = column_file
        self._hidden_columns = column_file.load()
        self._table.hide_columns(self._hidden_columns)
        self._typing_timer: Timer | None = None
        """until the text that is being typed becomes the filter"""

    # -- for the command palette -------------------------------------------------------------------------------------

    @property
    def action_keys(self) -> Mapping[str, str]:
        """The keys in use, by the name of the action."""
        return self._keys

    @property
    def tunnel_names(self) -> list[str]:
        """The names of all tunnels."""
        return list(self._session.view.tunnels)

    def run_key_action(self, name: str) -> None:
        """Run an action by its name."""
        self.call_later(self.run_action, name)

    def run_verb(self, verb: str, name: str) -> None:
        """Show a tunnel, copy its URL, or send it a command."""
        tunnel = self._session.view.tunnels.get(name)
        if tunnel is None:
            self._actions.show_error(f"{name} was removed")
        elif verb == "copy":
            self._actions.copy_url(name)
        elif verb == "show":
            if not self._table.move_to(name):
                self._select(Selection())
                self._table.move_to(name)
        else:
            self._actions.send_command(verb, [tunnel])

    # -- which tunnels are shown -------------------------------------------------------------------------------------

    def _select(self, selection: Selection) -> None:
        self._selection = selection
        self.draw()

    def on_choice_bar_chosen(self, message: ChoiceBar.Chosen) -> None:
        """Set the state filter, or run the action of the footer, that was clicked."""
        if message.bar == "state-filters":
            self.action_state_filter(message.name)
        elif message.name == "filter":
            self.action_filter()  # at once: the next key belongs to the filter
        else:
            self.run_key_action(message.name)

    def on_tunnel_table_sort_requested(self, message: TunnelTable.SortRequested) -> None:
        """Sort by the clicked column, in reverse order if it is the present one."""
        self._select(self._selection.sorted_by(message.sort))

    def action_state_filter(self, name: str) -> None:
        """Filter by state; choosing the present filter again shows all tunnels."""
        if name not in state_filters(is_fleet=self._session.is_fleet):
            self._actions.show_error(f"No tunnel can be {name}: only a host of a fleet can.")
            return
        self._select(replace(self._selection, state_filter=ALL if name == self._selection.state_filter else name))

    def action_next_state_filter(self) -> None:
        """Choose the next filter by state."""
        self._select(self._selection.next_state_filter(1, is_fleet=self._session.is_fleet))

    def action_previous_state_filter(self) -> None:
        """Choose the previous filter by state."""
        self._select(self._selection.next_state_filter(-1, is_fleet=self._session.is_fleet))

    def action_sort(self) -> None:
        """Sort by the next column."""
        self._select(self._selection.next_sort(sortable_columns(is_fleet=self._session.is_fleet)))

    def action_reverse(self) -> None:
        """Reverse the present order."""
        self._select(self._selection.sorted_by(self._selection.sort))

    def action_columns(self) -> None:
        """Choose the columns of the table."""
        self.app.push_screen(ColumnsModal(self._hidden_columns, self._hide_columns))

    def _hide_columns(self, hidden: frozenset[str]) -> None:
        self._hidden_columns = hidden
        self._table.hide_columns(hidden)
        self.draw()
        if problem := self._column_file.save(hidden):
            self._actions.show_error(problem)

    def action_clear(self) -> None:
        """Close the filter input and remove its filter; otherwise remove all filters, the marks and the notice."""
        if self._filter_input.display:
            self._apply_filter_text("")
            self._close_filter_input()
            return
        self._session.clear_notice()
        self._marked = frozenset()
        self._table.focus()
        self._select(Selection(sort=self._selection.sort, is_reversed=self._selection.is_reversed))

    def action_freeze(self) -> None:
        """Freeze the screen while messages continue to arrive, or continue."""
        self._frozen = None if self._frozen else (self._session.view, self._session.now())
        self.draw()

    # -- text filters ------------------------------------------------------------------------------------------------

    def action_filter(self) -> None:
        """Edit the text filter of the table."""
        self._edit_filter(self._selection.text, FILTER_HINT, InputPurpose.TABLE_FILTER)

    def action_log_filter(self) -> None:
        """Edit the text filter of the log."""
        self._set_log_shown(is_shown=True)
        hint = "filter the log: a text or a pattern; !a not"
        self._edit_filter(self._log.log_filter.text, hint, InputPurpose.LOG_FILTER)

    def on_log_pane_search_requested(self) -> None:
        """Edit the text that is searched for in the log."""
        self._edit_filter(
            self._log.search_text, "search in the log; then n, N: next, previous", InputPurpose.LOG_SEARCH
        )

    def _edit_filter(self, text: str, hint: str, purpose: InputPurpose) -> None:
        self._filter.display = False
        self._filter_input.edit(text, hint, purpose)

    def accept_late_key(self, key: Key) -> bool:
        """Insert a key into the filter input that was sent to the table before the input had the focus.

        Returns whether it was such a key, which must not run an action.
        """
        is_late = self.is_active and self.focused is self._filter_input and key.is_printable
        if is_late:
            self._filter_input.insert_late_key(key)
        return is_late

    def _close_filter_input(self) -> None:
        has_focus = self.focused is self._filter_input
        self._filter_input.display = False
        self._filter.display = True
        if has_focus:
            is_search = self._filter_input.purpose is InputPurpose.LOG_SEARCH
            (self._log if is_search else self._table).focus()
        self.draw()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Apply the filter while it is edited; in a large fleet, when the typing pauses."""
        if not self._filter_input.display:
            return
        is_slow = self._filter_input.purpose is InputPurpose.TABLE_FILTER and self._table_size > _LARGE_TABLE
        if not is_slow:
            self._apply_filter_text(event.value)
        elif self._typing_timer is None:
            self._typing_timer = self.set_timer(_TYPING_PAUSE_S, self._apply_typed_text)
        else:
            self._typing_timer.reset()

    @property
    def _table_size(self) -> int:
        return len(self._session.view.tunnels)

    def _apply_typed_text(self) -> None:
        """Apply what was typed since the filter was applied last, if anything was."""
        timer, self._typing_timer = self._typing_timer, None
        if timer is not None and self._filter_input.display:
            timer.stop()
            self._apply_filter_text(self._filter_input.value)

    def _apply_filter_text(self, text: str) -> None:
        match self._filter_input.purpose:
            case InputPurpose.LOG_SEARCH:
                self._log.search(text)
            case InputPurpose.LOG_FILTER:
                self._log.set_filter(replace(self._log.log_filter, text=text))
            case InputPurpose.TABLE_FILTER:
                self._select(replace(self._selection, text=text))

    def on_filter_input_left(self) -> None:
        """Keep the filter and close its input: a click or Tab moved the focus away."""
        if self.focused is not self._filter_input:
            self._apply_typed_text()
            self._close_filter_input()

    def on_input_submitted(self) -> None:
        """Keep the filter and close its input."""
        self._apply_typed_text()
        self._close_filter_input()

    # -- details and log ---------------------------------------------------------------------------------------------

    def on_tunnel_table_opened(self) -> None:
        """Show the details of the tunnel that was double-clicked."""
        self.action_detail()

    def action_detail(self) -> None:
        """Show or hide the details next to the table; on a narrow screen show them over it."""
        if self._has_room_for_details:
            self._wants_details = not self._wants_details
            self.draw()
        elif (name := self._cursor_or_notice()) is not None:
            self.app.push_screen(LinesModal(name, partial(self._detail_lines, name), is_live=True))

    def action_log(self) -> None:
        """Show or hide the log."""
        self._set_log_shown(is_shown=not self._log.display)

    def _set_log_shown(self, *, is_shown: bool) -> None:
        if self._log.has_focus and not is_shown:
            self._table.focus()
        self._wants_log = is_shown
        self.on_resize()

    def action_log_level(self) -> None:
        """Show the log from the next level upwards."""
        self._set_log_shown(is_shown=True)
        self._log.set_filter(self._log.log_filter.next_level())

    def action_log_scope(self) -> None:
        """Show the log of the tunnel under the cursor, or of all tunnels."""
        self._is_log_of_all = not self._is_log_of_all
        self._set_log_shown(is_shown=True)
        self.reload_details()

    def action_log_pause(self) -> None:
        """Pause the log, or follow it again."""
        self._log.toggle_pause()

    # -- other screens -----------------------------------------------------------------------------------------------

    @work
    async def action_events(self) -> None:
        """Show the page of events."""
        try:
            events = await self._session.source.fetch_events(MAX_EVENTS)
        except SourceError as error:
            self._actions.show_error(str(error))
            return
        self._session.new_events.clear()
        await self.app.push_screen(EventsModal(events, self._session.new_events))

    def action_route(self) -> None:
        """Show the route of the tunnel under the cursor."""
        if (name := self._cursor_or_notice()) is not None:
            self.app.push_screen(RouteModal(self._session, name))

    def action_routes(self) -> None:
        """Show the list of all routes."""
        self.app.push_screen(RouteListModal(self._session, self._table.cursor or ""))

    def action_visitors(self) -> None:
        """Show the visitors of the chosen tunnels."""
        if names := [tunnel.name for tunnel in self._targets()]:
            self.app.push_screen(VisitorListModal(self._session, self._actions, names))
        else:
            self._actions.show_error(NO_TUNNEL)

    def action_members(self) -> None:
        """Show the links and targets of the tunnel under the cursor."""
        if (name := self._cursor_or_notice()) is not None:
            self.app.push_screen(MemberListModal(self._session, self._actions, name))

    def action_traffic(self) -> None:
        """Show the traffic of the tunnel under the cursor by hour, day and month."""
        if (name := self._cursor_or_notice()) is not None:
            self.app.push_screen(TrafficModal(self._session, name))

    def action_hosts(self) -> None:
        """Show the hosts of a fleet."""
        self.app.push_screen(HostsModal(self._session))

    def action_help(self) -> None:
        """Show the help page."""
        is_fleet, is_read_only = self._session.is_fleet, self.is_read_only
        make_lines = partial(help_lines, self._keys, is_fleet=is_fleet, is_read_only=is_read_only)
        self.app.push_screen(LinesModal("Help", make_lines))

    def action_commands(self) -> None:
        """Open the command palette."""
        self.app.action_command_palette()

    def action_theme(self) -> None:
        """Switch between the light and the dark theme."""
        self.app.theme = opposite_theme(self.app.theme)

    async def action_quit(self) -> None:
        """Quit the whole dashboard."""
        await self.app.action_quit()

    # -- marks -------------------------------------------------------------------------------------------------------

    def _toggle_marks(self, names: Collection[str]) -> None:
        self._marked ^= frozenset(names)
        self.draw()

    def on_tunnel_table_mark_requested(self, message: TunnelTable.MarkRequested) -> None:
        """Toggle the mark that was clicked."""
        self._toggle_marks({message.name})

    def action_mark(self) -> None:
        """Toggle the mark of the tunnel under the cursor and move to the next one."""
        if (name := self._cursor_or_notice()) is not None:
            self._toggle_marks({name})
            self._table.action_move(1)

    def action_mark_all(self) -> None:
        """Mark all tunnels that are shown; if all of them are marked, remove their marks."""
        names = frozenset(tunnel.name for tunnel in self._visible_tunnels.tunnels)
        self._marked = self._marked - names if names <= self._marked else self._marked | names
        self.draw()

    def _cursor_or_notice(self) -> str | None:
        """Return the tunnel under the cursor, or say that there is none."""
        if self._table.cursor is None:
            self._actions.show_error(NO_TUNNEL)
        return self._table.cursor

    def _targets(self) -> list[Tunnel]:
        """Return the marked tunnels, or the one under the cursor, as they are now."""
        tunnels = self._session.view.tunnels
        names = sorted(self._marked) or [self._table.cursor or ""]
        return [tunnels[name] for name in names if name in tunnels]

    # -- commands ----------------------------------------------------------------------------------------------------

    def action_start_stop(self) -> None:
        """Stop the running tunnels, or start them if none runs."""
        self._actions.send_command(*choose_toggle(self._targets()))

    def action_restart(self) -> None:
        """Restart the chosen tunnels."""
        self._actions.send_command("restart", self._targets())

    def action_drain(self) -> None:
        """Drain the chosen tunnels."""
        self._actions.send_command("drain", self._targets())

    def action_retry(self) -> None:
        """End the cooldown of the chosen tunnels."""
        self._actions.send_command("retry", self._targets())

    def action_reload(self) -> None:
        """Reload the file of the daemon, or of the hosts of the chosen tunnels."""
        self._actions.reload(self._targets())

    def action_test(self) -> None:
        """Test the way through the tunnel under the cursor."""
        if (name := self._cursor_or_notice()) is not None:
            self._actions.test(name)

    def action_edit(self) -> None:
        """Open the user's editor at the entry of the tunnel under the cursor."""
        if (name := self._cursor_or_notice()) is not None:
            self._actions.edit(name)

    def action_plan(self) -> None:
        """Show what a reload would change."""
        self._actions.show_plan()

    def action_copy(self) -> None:
        """Copy the URL of the tunnel under the cursor."""
        if (name := self._cursor_or_notice()) is not None:
            self._actions.copy_url(name)
