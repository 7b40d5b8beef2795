"""What is asked of the source beyond the stream, because somebody looks at it just now."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final

from tui.sources import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tui.app import Dashboard
    from tui.model import Json
    from tui.widgets.log import LogPane

HISTORY: Final = 300
"""Events asked for."""

_CALM: Final = 0.12  # seconds for which the cursor rests before anything is asked about its tunnel


class Inquiry:
    """The details of one tunnel, and the log of one or of all. A new question ends the one before."""

    def __init__(self, app: Dashboard, log: LogPane, tell: Callable[[], None]) -> None:
        self._app = app
        self._log = log
        self._tell = tell
        self._details: Json | None = None

    def details_of(self, name: str | None) -> Json | None:
        """What is known of a tunnel; None until the answer has come."""
        return self._details if self._details and self._details.get("name") == name else None

    def ask_details(self, name: str | None) -> None:
        """Ask about a tunnel."""
        self._app.begin(partial(self._fetch, name), "details")

    def follow_log(self, name: str | None) -> None:
        """Show the log of a tunnel, or of all, and go on showing it."""
        self._app.begin(partial(self._follow, name), "log")

    async def _fetch(self, name: str | None) -> None:
        await asyncio.sleep(_CALM)
        if name is None:
            return
        try:
            self._details = await self._app.source.tunnel(name)
        except RefusedError:
            return  # the tunnel is gone, or the daemon is: the stream tells
        self._tell()

    async def _follow(self, name: str | None) -> None:
        await asyncio.sleep(_CALM)
        self._log.begin(f"Log {name or 'of all tunnels'}", is_named=name is None)
        try:
            async for event in self._app.source.logs([name] if name else [], HISTORY):
                self._log.add([event])
        except RefusedError:
            return  # as above; when the daemon returns, it is asked anew
