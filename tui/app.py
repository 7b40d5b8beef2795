"""The dashboard as an application: one source, one view, one main screen."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections import deque
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from textual import work
from textual.app import App
from textual.binding import Binding, BindingType
from textual.filter import LineFilter

from tui import acting, model
from tui.ascii import AsciiFilter
from tui.bars import Attached
from tui.commander import Commander
from tui.happenings import error_text, summary
from tui.keys import all_keys, load_keys
from tui.screens.main import MainScreen
from tui.screens.questions import Question
from tui.signals import on_leaving, on_stopping, stop_until_foreground
from tui.sources import ApiSource, Change, Happened, Lost, Status
from tui.themes import DARK, LIGHT

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from textual.worker import Worker

    from tui.model import Json, View
    from tui.sources import Heard, Source

_TICK: Final = 0.25  # seconds: how often the picture may change at the most
_NOTICE: Final = 12.0  # seconds for which the result of a reload stays
_HAPPENED: Final = 500

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
        is_read_only: bool = False,
        is_ascii: bool = False,
        keys: Mapping[str, str] | None = None,
        owns_daemon: bool = False,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        # without colour the terminal's own two are better than greys that somebody else chose
        super().__init__(ansi_color="NO_COLOR" in os.environ)
        self.source = source
        self.now = now
        """the monotonic clock"""
        self.wall = wall
        """seconds since the epoch"""
        self.view: View = model.View()
        self.keys = dict(keys or all_keys({}))
        self.notice: str | None = None
        """what the last reload did, for a while"""
        self.happened: deque[Json] = deque(maxlen=_HAPPENED)
        """events since somebody last looked at them"""
        self._is_read_only = is_read_only
        self._owns_daemon = owns_daemon
        self._filters_of_ours: list[LineFilter] = [AsciiFilter()] if is_ascii else []
        self._lost: str | None = None
        self._heard = now()
        self._notice_until = 0.0
        self._drawn = 0.0
        self._main = MainScreen(Commander(self))

    # -- knowing -----------------------------------------------------------------------------------------------------

    @property
    def is_read_only(self) -> bool:
        """Whether commands are barred, by the user's wish or by the daemon."""
        return self._is_read_only or self.view.is_read_only

    def attached(self) -> Attached:
        """How we hang on the daemon just now."""
        return Attached(self.source.place, self.is_read_only, self._lost, self.now() - self._heard)

    async def on_mount(self) -> None:
        """Dress, show the main screen, begin to listen."""
        self.register_theme(DARK)
        self.register_theme(LIGHT)
        self.theme = DARK.name
        self.set_keymap(self.keys)
        if self._driver is not None and self._driver.can_suspend:
            on_stopping(self.action_suspend_process)
        await self.push_screen(self._main)
        self._listen()
        self.set_interval(_TICK, self._tick)

    @work(exclusive=True, group="listen")
    async def _listen(self) -> None:
        async with aclosing(self.source.watch()) as heard:  # type: ignore[type-var]  # every async generator can be closed
            async for message in heard:
                self.hear(message)

    def hear(self, message: Heard) -> None:
        """Fold one message into what is known, and show it."""
        now = self.now()
        match message:
            case Lost(reason):
                self._lost = reason
            case Status(data):
                self.view = model.begin(data, model.moment(data.get("ts")) or self.wall(), now, self.view)
                self._lost, self._heard = None, now
                self._main.ask_anew()
            case Change(data):
                generation = self.view.status.get("generation")
                self.view = model.change(self.view, data, now)
                self._heard = now
                if self.view.status.get("generation") != generation:
                    self._main.ask_anew()
            case Happened(data):
                self._heard = now
                self._note(data)
        self._draw()

    def _note(self, event: Json) -> None:
        self.happened.append(event)
        results = event.get("results")
        if event.get("kind") == "reload" and results:
            self.announce(f"Generation {event.get('generation')}: {summary(results)}")

    def announce(self, text: str) -> None:
        """Show a notice under the header for a while."""
        self.notice, self._notice_until = text, self.now() + _NOTICE

    def tell_reload(self, result: Json) -> None:
        """What a reload of ours did."""
        if result.get("ok", True):
            self.announce(f"Generation {result.get('generation')}: {summary(result.get('results') or {})}")
        else:
            self.notify(error_text(result.get("error")), title="Not applied", severity="warning", markup=False)
        self._draw()

    def _tick(self) -> None:
        now = self.now()
        if self._lost is None and self.view.status:
            self.view = model.quiet(self.view, now)
        if self.notice and now > self._notice_until:
            self.notice = None
        if time.monotonic() - self._drawn > 0.9 * _TICK:  # a message may just have had it drawn
            self._draw()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        self._main.draw()

    def begin(self, work: Callable[[], Coroutine[Any, Any, None]], group: str, *, is_alone: bool = True) -> None:
        """Let something go on beside the screen; what its group was doing is ended first, unless it is not alone.

        It is given as a function: a coroutine that is ended before it began would be one that nobody awaits.
        """
        _: Worker[None] = self.run_worker(work, group=group, exclusive=is_alone)

    # -- leaving -----------------------------------------------------------------------------------------------------

    async def action_quit(self) -> None:
        """Leave; whoever started the tunnels with this dashboard is asked what shall become of them."""
        if not self._owns_daemon or self._lost is not None:
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

    def change_theme(self) -> None:
        """Light or dark."""
        self.theme = LIGHT.name if self.theme == DARK.name else DARK.name

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Our own variables, for themes that do not have them."""
        return DARK.variables

    def get_line_filters(self) -> Sequence[LineFilter]:
        """Textual's own, and ours for terminals that know ASCII alone."""
        return [*super().get_line_filters(), *self._filters_of_ours]


def run(
    where: Path | str,
    *,
    token: str | None = None,
    read_only: bool = False,
    ascii_only: bool = False,
    keys: Path | None = None,
    owns_daemon: bool = False,
    duration: float | None = None,
) -> str:
    """The dashboard on a daemon, until the user leaves it or ``duration`` seconds are over; LEAVE or END.

    ``where`` is the daemon's Unix socket, or the ``http://`` address of its API. Raises KeysError where the file of
    keys is wrong.
    """
    chosen = load_keys(keys) if keys else None
    # every change of the picture makes thousands of small objects that no cycle holds; looking for cycles among them
    # costs as much as everything else together
    gc.set_threshold(100_000, 20, 50)

    async def live() -> str:
        async with ApiSource(where, token) as source:
            app = Dashboard(source, is_read_only=read_only, is_ascii=ascii_only, keys=chosen, owns_daemon=owns_daemon)
            loop = asyncio.get_running_loop()
            on_leaving(partial(app.exit, LEAVE))  # which leaves the terminal as it was
            if duration is not None:
                loop.call_later(duration, app.exit, LEAVE)
            return await app.run_async() or LEAVE

    return asyncio.run(live())
