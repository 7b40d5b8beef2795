"""What can be opened over the main screen."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from textual import work
from textual.screen import Screen

from tui.inquiry import HISTORY
from tui.keys import PILL_KEYS
from tui.screens.paths import AllPaths, Hosts, OnePath
from tui.screens.readings import Events, Lines, help_lines
from tui.selection import pills
from tui.sources import RefusedError
from tui.themes import other
from tui.widgets.kept import Kept

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tui.commander import Commander
    from tui.watch import Watch


class Overlays(Screen[None], Kept):
    """The main screen, as far as it opens others."""

    def __init__(self, watch: Watch, commander: Commander, keys: Mapping[str, str]) -> None:
        super().__init__()
        self._watch = watch
        self._commander = commander
        self._keys = keys

    def show_through(self) -> None:
        """What lies between this screen and the topmost one keeps an old picture of this one, unless it is told."""
        stack = self.app.screen_stack
        for between in stack[stack.index(self) + 1 : -1]:
            between.refresh()

    @property
    def is_read_only(self) -> bool:
        """Whether commands are barred, here or by the daemon."""
        return self._watch.is_read_only

    @property
    def chosen(self) -> str | None:
        """The tunnel under the cursor."""
        return None

    @work
    async def action_events(self) -> None:
        """What happened, and what happens."""
        try:
            events = await self._watch.source.events(HISTORY)
        except RefusedError as error:
            self._commander.complain(str(error))
            return
        self._watch.happened.clear()
        await self.app.push_screen(Events(events, self._watch.happened))

    def action_path(self) -> None:
        """The tunnel's path, with both ends."""
        if self.chosen is not None:
            self.app.push_screen(OnePath(self._watch, self.chosen))

    def action_paths(self) -> None:
        """All paths."""
        self.app.push_screen(AllPaths(self._watch, self.chosen or ""))

    def action_hosts(self) -> None:
        """The hosts of a fleet."""
        self.app.push_screen(Hosts(self._watch))

    def action_help(self) -> None:
        """All keys."""
        last_pill = PILL_KEYS[len(pills(is_fleet=self._watch.view.hosts is not None)) - 1]
        made = partial(help_lines, self._keys, last_pill=last_pill, is_read_only=self.is_read_only)
        self.app.push_screen(Lines("Help", made))

    def action_commands(self) -> None:
        """The palette."""
        self.app.action_command_palette()

    def action_theme(self) -> None:
        """Light or dark."""
        self.app.theme = other(self.app.theme)
