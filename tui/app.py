"""The dashboard as a Textual application: one source, one session, one main screen."""

from __future__ import annotations

import asyncio
import gc
import os
from contextlib import aclosing, suppress
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from rich.segment import Segment
from textual import work
from textual.app import App
from textual.binding import Binding, BindingType
from textual.filter import ANSIToTruecolor, LineFilter

from orchestrator.process.setup import run_event_loop
from tui.format.confirmations import confirm_quit
from tui.format.text import to_ascii
from tui.model.column_file import ColumnFile, default_column_file
from tui.model.keys import all_keys, load_keys
from tui.process_signals import call_on_suspend, call_on_termination, stop_until_foreground
from tui.screens.actions import ActionRunner
from tui.screens.dialogs import ConfirmDialog, DialogAnswer
from tui.screens.main import MainScreen
from tui.session import DashboardSession
from tui.sources.base import StatusReceived
from tui.themes import DARK, LIGHT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from textual.color import Color
    from textual.events import Key

    from tui.model.tunnels import StatusView
    from tui.sources.base import Source

_TICK_S: Final = 0.25
"""After this time without messages the screen is refreshed, because countdowns and ages change."""
_PAUSE_S: Final = 0.05
"""Between two parts of a refresh, so that other processes get the processor in between."""

LEAVE, END = "leave", "end"
"""The result of the dashboard: leave the tunnels running, or stop them."""


class AsciiFilter(LineFilter):
    """Replaces every character that is not ASCII, whether it is drawn by us or by Textual."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """Return the segments, as wide as before."""
        return [
            segment if segment.text.isascii() else Segment(to_ascii(segment.text), segment.style, segment.control)
            for segment in segments
        ]


class Dashboard(App[str]):
    """A client: it knows what its source sends, and changes nothing but through commands."""

    CSS_PATH = "app.tcss"
    ENABLE_COMMAND_PALETTE = True
    COMMANDS: ClassVar = set()  # the main screen has its own
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c", "quit", show=False, priority=True),
        Binding("ctrl+q", "quit", show=False, priority=True),
        Binding("ctrl+z", "suspend_process", show=False, priority=True),
    ]

    def __init__(
        self,
        source: Source,
        *,
        is_ascii: bool = False,
        keys: Mapping[str, str] | None = None,
        owns_daemon: bool = False,
        column_file: Path | None = None,
        **session_options: Any,  # noqa: ANN401  those of DashboardSession
    ) -> None:
        """``keys`` are those in use, by the name of the action; ``owns_daemon``: quitting asks whether to stop it.

        ``column_file`` keeps the choice of columns.
        """
        # without colours, the terminal's own two are better than arbitrary greys
        super().__init__(ansi_color="NO_COLOR" in os.environ)
        self._session = DashboardSession(source, **session_options)
        self._keys = dict(keys or all_keys({}))
        self._owns_daemon = owns_daemon
        self._own_filters: list[LineFilter] = [AsciiFilter()] if is_ascii else []
        self._message_received = asyncio.Event()
        self._main = MainScreen(self._session, ActionRunner(self, self._session), self._keys, ColumnFile(column_file))
        self.register_theme(DARK)
        self.register_theme(LIGHT)
        self.theme = DARK.name  # before the first screen exists, which would be styled twice

    @property
    def view(self) -> StatusView:
        """All that is known now."""
        return self._session.view

    @property
    def now(self) -> float:
        """The monotonic clock of the view."""
        return self._session.now()

    async def on_mount(self) -> None:
        """Show the main screen and start the two workers: one receives messages, one draws."""
        self.set_keymap(self._keys)
        if self._driver is not None and self._driver.can_suspend:
            call_on_suspend(self.action_suspend_process)
        await self.push_screen(self._main)
        self._receive_messages()
        self._draw_regularly()

    @work(exclusive=True, group="messages")
    async def _receive_messages(self) -> None:
        async with aclosing(self._session.source.watch()) as messages:  # type: ignore[type-var]  # every async generator can be closed
            async for message in messages:
                if self._session.apply(message):
                    self._main.reload_details(is_reconnected=isinstance(message, StatusReceived))
                    self._main.draw()  # at once and completely: parts of two different states do not fit together
                self._message_received.set()

    @work(exclusive=True, group="drawing")
    async def _draw_regularly(self) -> None:
        main = self._main
        for draw_rest in cycle((main.draw_bars, main.draw_details)):  # each at every second refresh is often enough
            with suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._message_received.wait()
            self._message_received.clear()
            self._session.tick()
            for draw in (main.draw_table, draw_rest):
                draw()
                await asyncio.sleep(_PAUSE_S)

    def on_key(self, event: Key) -> None:
        """Handle a key that no widget handled; it must not run an action while a filter is edited."""
        if self._main.accept_late_key(event):
            event.prevent_default()

    # -- quitting ----------------------------------------------------------------------------------------------------

    async def action_quit(self) -> None:
        """Quit; ask what to do with the tunnels if they were started with this dashboard."""
        if not self._owns_daemon or self._session.is_disconnected:
            self.exit(LEAVE)
        elif not isinstance(self.screen, ConfirmDialog):
            self._confirm_quit()

    @work(exclusive=True, group="quit")
    async def _confirm_quit(self) -> None:
        stop_command = f"kill {self.view.status.get('pid')}" if self.view.is_read_only else "nodepass-orch down"
        confirmation = confirm_quit(list(self.view.tunnels.values()), stop_command, self.size.width)
        answers = [DialogAnswer(LEAVE, "Leave running", "y"), DialogAnswer(END, confirmation.answer, "s")]
        answer = await self.push_screen_wait(ConfirmDialog(confirmation.title, confirmation.lines, answers))
        if answer is not None:
            self.exit(answer)

    def action_suspend_process(self) -> None:
        """Suspend the process until ``fg``."""
        if self._driver is not None and self._driver.can_suspend:
            with self.suspend():
                stop_until_foreground()

    def action_command_palette(self) -> None:
        """Open the command palette, which belongs to the main screen: not over another one."""
        if self.screen is self._main:
            super().action_command_palette()

    # -- appearance --------------------------------------------------------------------------------------------------

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Return our own variables, for themes that lack them."""
        return DARK.variables

    def get_line_filters(self) -> Sequence[LineFilter]:
        """Return Textual's filters and ours.

        One of Textual's searches every line for named colours and dim text. The main screen has only colours of the
        theme, unless the daemon is disconnected and its tunnels are dim: otherwise the search is skipped.
        """
        filters = super().get_line_filters()
        if self.screen_stack and self.screen is self._main and not self._main.has_class("-stale"):
            filters = [one for one in filters if not isinstance(one, ANSIToTruecolor)]
        return [*filters, *self._own_filters]


def run(
    source: Source,
    *,
    read_only: bool = False,
    ascii_only: bool = False,
    keys: Path | None = None,
    owns_daemon: bool = False,
    duration: float | None = None,
) -> str:
    """Run the dashboard until the user quits or after ``duration`` seconds; return LEAVE or END. Closes the source.

    Raises KeyFileError if the key file is wrong.
    """
    chosen = load_keys(keys) if keys else None
    # every refresh makes thousands of small objects without cycles; searching them for cycles would cost as much as
    # everything else together
    gc.set_threshold(100_000, 20, 50)

    async def run_app() -> str:
        try:
            app = Dashboard(
                source, is_read_only=read_only, is_ascii=ascii_only, keys=chosen, owns_daemon=owns_daemon,
                column_file=default_column_file(os.environ),
            )  # fmt: skip
            loop = asyncio.get_running_loop()
            call_on_termination(partial(app.exit, LEAVE))  # restores the terminal
            if duration is not None:
                loop.call_later(duration, app.exit, LEAVE)
            return await app.run_async() or LEAVE
        finally:
            await source.close()

    return run_event_loop(run_app())
