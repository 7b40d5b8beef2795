"""The dashboard as an application: one source, one view, one main screen."""

from __future__ import annotations

import asyncio
import gc
import os
from contextlib import aclosing, suppress
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from textual import work
from textual.app import App
from textual.binding import Binding, BindingType
from textual.filter import ANSIToTruecolor, LineFilter

from tui import acting
from tui.ascii import AsciiFilter
from tui.commander import Commander
from tui.keys import all_keys, load_keys
from tui.screens.main import MainScreen
from tui.screens.questions import Question
from tui.signals import on_leaving, on_stopping, stop_until_foreground
from tui.sources import Status
from tui.themes import DARK, LIGHT
from tui.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from textual.events import Key

    from tui.model import View
    from tui.sources import Source

_TICK: Final = 0.25  # seconds of silence after which time alone changes the picture
_BREATH: Final = 0.05  # seconds between two pieces of it: whoever shares the processor has it in between

LEAVE, END = "leave", "end"
"""How the dashboard was left: the tunnels shall run on, or end."""


class Dashboard(App[str]):
    """Always a client: it knows what its source tells, and changes nothing but through it."""

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
        **watching: Any,  # noqa: ANN401  what Watch takes besides the source
    ) -> None:
        # without colour the terminal's own two are better than greys that somebody else chose
        super().__init__(ansi_color="NO_COLOR" in os.environ)
        self._watch = Watch(source, **watching)
        self._keys = dict(keys or all_keys({}))
        self._owns_daemon = owns_daemon
        self._filters_of_ours: list[LineFilter] = [AsciiFilter()] if is_ascii else []
        self._news = asyncio.Event()
        self._main = MainScreen(self._watch, Commander(self, self._watch), self._keys)

    @property
    def view(self) -> View:
        """What is known."""
        return self._watch.view

    @property
    def now(self) -> float:
        """The monotonic clock that goes with it."""
        return self._watch.now()

    async def on_mount(self) -> None:
        """Dress, show the main screen, begin to listen."""
        self.register_theme(DARK)
        self.register_theme(LIGHT)
        self.theme = DARK.name
        self.set_keymap(self._keys)
        if self._driver is not None and self._driver.can_suspend:
            on_stopping(self.action_suspend_process)
        await self.push_screen(self._main)
        self._listen()
        self._paint()

    @work(exclusive=True, group="listen")
    async def _listen(self) -> None:
        async with aclosing(self._watch.source.watch()) as heard:  # type: ignore[type-var]  # every async generator can be closed
            async for message in heard:
                if self._watch.hear(message):
                    self._main.ask_anew(is_back=isinstance(message, Status))
                    self._main.draw()  # at once and as a whole: a piece of what was before would not go with the rest
                self._news.set()

    @work(exclusive=True, group="paint")
    async def _paint(self) -> None:
        main = self._main
        for draw_more in cycle((main.draw_bars, main.draw_details)):  # each every other time is often enough
            with suppress(TimeoutError):
                async with asyncio.timeout(_TICK):
                    await self._news.wait()
            self._news.clear()
            self._watch.tick()
            for draw in (main.draw_table, draw_more):
                draw()
                await asyncio.sleep(_BREATH)

    def on_key(self, event: Key) -> None:
        """A key for which no widget had a use; it is not a command where somebody is typing."""
        if self._main.takes(event):
            event.prevent_default()

    # -- leaving -----------------------------------------------------------------------------------------------------

    async def action_quit(self) -> None:
        """Leave; whoever started the tunnels with this dashboard is asked what shall become of them."""
        if not self._owns_daemon or self._watch.is_lost:
            self.exit(LEAVE)
        elif not isinstance(self.screen, Question):
            self._ask_how()

    @work(exclusive=True, group="quit")
    async def _ask_how(self) -> None:
        ending = f"kill {self.view.status.get('pid')}" if self.view.is_read_only else "nodepass-orch down"
        asked = acting.leave_question(list(self.view.tunnels.values()), ending, self.size.width)
        answers = [(LEAVE, "Leave running"), (END, asked.answer)]
        answer = await self.push_screen_wait(Question(asked.title, asked.lines, answers))
        if answer is not None:
            self.exit(answer)

    def action_suspend_process(self) -> None:
        """Stop until ``fg``."""
        if self._driver is not None and self._driver.can_suspend:
            with self.suspend():
                stop_until_foreground()

    def action_command_palette(self) -> None:
        """Commands are the main screen's; over another one there are none."""
        if self.screen is self._main:
            super().action_command_palette()

    # -- looks -------------------------------------------------------------------------------------------------------

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Our own variables, for themes that do not have them."""
        return DARK.variables

    def get_line_filters(self) -> Sequence[LineFilter]:
        """Textual's own, and ours for terminals that know ASCII alone.

        One of Textual's looks for colours that have but a name, and for dim text. Only a lost daemon's tunnels are dim;
        else the main screen is all colours of a theme, and each of its lines is spared the look.
        """
        filters = super().get_line_filters()
        if self.screen_stack and self.screen is self._main and not self._main.has_class("-stale"):
            filters = [one for one in filters if not isinstance(one, ANSIToTruecolor)]
        return [*filters, *self._filters_of_ours]


def run(
    source: Source,
    *,
    read_only: bool = False,
    ascii_only: bool = False,
    keys: Path | None = None,
    owns_daemon: bool = False,
    duration: float | None = None,
) -> str:
    """The dashboard on a source, until the user leaves it or ``duration`` seconds are over; LEAVE or END.

    Raises KeysError where the file of keys is wrong.
    """
    chosen = load_keys(keys) if keys else None
    # every change of the picture makes thousands of small objects that no cycle holds; looking for cycles among them
    # costs as much as everything else together
    gc.set_threshold(100_000, 20, 50)

    async def live() -> str:
        try:
            app = Dashboard(source, is_read_only=read_only, is_ascii=ascii_only, keys=chosen, owns_daemon=owns_daemon)
            loop = asyncio.get_running_loop()
            on_leaving(partial(app.exit, LEAVE))  # which leaves the terminal as it was
            if duration is not None:
                loop.call_later(duration, app.exit, LEAVE)
            return await app.run_async() or LEAVE
        finally:
            await source.close()

    return asyncio.run(live())
