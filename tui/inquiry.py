"""What is asked of the source beyond the stream, because somebody looks at it just now."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final

from tui.beside import begin
from tui.sources import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual.dom import DOMNode

    from tui.model import Json
    from tui.sources import Source
    from tui.widgets.log import LogPane

HISTORY: Final = 300
"""Events asked for."""

_CALM: Final = 0.12  # seconds for which the cursor rests before anything is asked about its tunnel
_NO_LOG: Final = (
    "The log stays on its host (nodepass-orch logs). Here is what happens from now on, as the broker is told."
)


class Inquiry:
    """The details of one tunnel, and the log of one or of all. A new question ends the one before."""

    def __init__(self, owner: DOMNode, source: Source, log: LogPane, tell: Callable[[], None]) -> None:
        self._owner = owner
        self._source = source
        self._log = log
        self._tell = tell
        self._details: Json | None = None
        self._followed: tuple[str | None] | None = None
        """whose log is coming in, in a tuple of its own; None: no log is"""

    def details_of(self, name: str | None) -> Json | None:
        """What is known of a tunnel; None until the answer has come."""
        return self._details if self._details and self._details.get("name") == name else None

    def ask_details(self, name: str | None) -> None:
        """Ask about a tunnel."""
        begin(self._owner, partial(self._fetch, name), "details")

    def follow_log(self, name: str | None, *, is_anew: bool) -> None:
        """Show the log of a tunnel, or of all, and go on showing it; a log that is shown already goes on, or anew."""
        if self._followed == (name,) and not is_anew:
            return
        self._followed = (name,)
        begin(self._owner, partial(self._follow, name), "log")

    async def _fetch(self, name: str | None) -> None:
        await asyncio.sleep(_CALM)
        if name is None:
            return
        try:
            self._details = await self._source.tunnel(name)
        except RefusedError:
            return  # the tunnel is gone, or the daemon is: the stream tells
        self._tell()

    async def _follow(self, name: str | None) -> None:
        await asyncio.sleep(_CALM)
        tells = self._source.nature.tells_log
        title = f"{'Log' if tells else 'Events'} {name or 'of all tunnels'}"
        self._log.begin(title, is_named=name is None, note="" if tells else _NO_LOG)
        try:
            async for event in self._source.logs([name] if name else [], HISTORY):
                self._log.add([event])
        except RefusedError:
            pass  # as above; when the daemon returns, it is asked anew
        self._followed = None
