"""Loads what the stream of messages does not contain: the details of one tunnel, and the log."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final

from tui.sources.base import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual.dom import DOMNode
    from textual.worker import Worker

    from tui.model.messages import TunnelDetails
    from tui.sources.base import Source
    from tui.widgets.log import LogPane

MAX_EVENTS: Final = 300
"""Events requested."""

_CURSOR_DELAY_S: Final = 0.12
"""The cursor must stay on a tunnel this long before anything is requested."""
_NO_LOG_NOTE: Final = (
    "The log stays on its host (nodepass-orch logs). These are the events that the host publishes from now on."
)


class DetailLoader:
    """The details of one tunnel, and the log of one or of all. A new request cancels the previous one.

    Its tasks are workers of ``owner`` and end with it. ``on_loaded`` is called when details have arrived.
    """

    def __init__(self, owner: DOMNode, source: Source, log: LogPane, on_loaded: Callable[[], None]) -> None:
        self._owner = owner
        self._source = source
        self._log = log
        self._on_loaded = on_loaded
        self._details: TunnelDetails | None = None
        self._log_of: tuple[str | None] | None = None
        """whose log is being received: (name,), or (None,) for all tunnels; None if no log is"""

    def details_of(self, name: str | None) -> TunnelDetails | None:
        """Return the details of a tunnel; None until they have arrived."""
        return self._details if self._details and self._details.get("name") == name else None

    def load_details(self, name: str | None) -> None:
        """Request the details of a tunnel."""
        _: Worker[None] = self._owner.run_worker(partial(self._load_details, name), group="details", exclusive=True)

    def follow_log(self, name: str | None, *, must_restart: bool) -> None:
        """Show the log of a tunnel, or of all; a log that is already shown continues unless it must restart."""
        if self._log_of == (name,) and not must_restart:
            return
        self._log_of = (name,)
        _: Worker[None] = self._owner.run_worker(partial(self._follow_log, name), group="log", exclusive=True)

    async def _load_details(self, name: str | None) -> None:
        await asyncio.sleep(_CURSOR_DELAY_S)
        if name is None:
            return
        try:
            self._details = await self._source.fetch_tunnel(name)
        except SourceError:
            return  # the tunnel was removed or the connection lost: the stream reports both
        self._on_loaded()

    async def _follow_log(self, name: str | None) -> None:
        await asyncio.sleep(_CURSOR_DELAY_S)
        has_log = self._source.info.has_log
        title = f"{'Log' if has_log else 'Events'} {name or 'of all tunnels'}"
        self._log.start_log(title, has_names=name is None, note="" if has_log else _NO_LOG_NOTE)
        try:
            async for event in self._source.stream_log([name] if name else [], MAX_EVENTS):
                self._log.add_events([event])
        except SourceError:
            pass  # as above; after a reconnect the log is requested again
        self._log_of = None
