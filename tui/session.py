"""What the dashboard knows from its source: the view, the connection, recent events, the present notice."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from tui.format.event_format import reload_notice
from tui.model.connection import ConnectionStatus
from tui.model.tunnels import StatusView, advance_clock, apply_change, apply_status, parse_timestamp
from tui.sources.base import Disconnected, EventReceived, SourceHeartbeat, StatusChanged, StatusReceived

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from orchestrator.status.json_types import EntryResultJson
    from tui.model.messages import EventData
    from tui.sources.base import Source, SourceMessage

_NOTICE_S: Final = 12.0
"""How long the result of a reload is shown."""
_MAX_NEW_EVENTS: Final = 500


class DashboardSession:
    """One per dashboard; independent of any screen. Only ``apply``, ``tick`` and ``set_visible`` change the view."""

    def __init__(
        self,
        source: Source,
        *,
        is_read_only: bool = False,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.source = source
        self.now = now
        """the monotonic clock"""
        self.wall = wall
        """seconds since the epoch"""
        self.view = StatusView()
        self.notice: str | None = None
        """what the last reload did, for a while"""
        self.new_events: deque[EventData] = deque(maxlen=_MAX_NEW_EVENTS)
        """events since the page of events last read them"""
        self._is_read_only = is_read_only
        self._error: str | None = None
        self._received_at = now()
        self._notice_until = 0.0

    @property
    def is_read_only(self) -> bool:
        """Whether commands are blocked, by the user's choice or by the daemon."""
        return self._is_read_only or self.view.is_read_only

    @property
    def read_only_reason(self) -> str:
        """Why commands are blocked, and what enables them; empty if they are not."""
        if self.view.is_read_only:
            return "the daemon accepts no commands; it was started with up --read-only"
        return (
            "this dashboard was opened with --read-only; open it without, to send commands"
            if self._is_read_only
            else ""
        )

    @property
    def is_fleet(self) -> bool:
        """Whether the source has several hosts."""
        return self.view.hosts is not None

    @property
    def is_disconnected(self) -> bool:
        """Whether the source does not answer now."""
        return self._error is not None

    def connection(self) -> ConnectionStatus:
        """Return the present state of the connection."""
        source, silent_for = self.source, self.now() - self._received_at
        peer_name = source.info.peer_name
        return ConnectionStatus(source.place, self.is_read_only, self._error, silent_for, peer_name=peer_name)

    def apply(self, message: SourceMessage) -> bool:
        """Apply one message; return whether details are outdated: the source is back, or its file or fault changed."""
        now = self.now()
        if isinstance(message, Disconnected):
            self._error = message.reason
            return False
        self._received_at = now
        match message:
            case StatusReceived(data):
                at = parse_timestamp(data.get("ts")) or self.wall()
                self.view = apply_status(data, at, now, self.view)
                self._error = None
                return True
            case StatusChanged(data):
                before = _file_version(self.view)
                self.view = apply_change(self.view, data, now)
                return _file_version(self.view) != before
            case EventReceived(data):
                self._add_event(data)
            case SourceHeartbeat():
                pass
        return False

    def _add_event(self, event: EventData) -> None:
        self.new_events.append(event)
        if event.get("kind") == "reload" and (results := event.get("results")):
            self.show_reload_result(event.get("host") or "", event.get("generation"), results)

    def show_notice(self, text: str) -> None:
        """Show a notice under the header for a while."""
        self.notice, self._notice_until = text, self.now() + _NOTICE_S

    def clear_notice(self) -> None:
        """Close the present notice at once."""
        self.notice = None

    def show_reload_result(self, host: str, generation: int | None, results: Mapping[str, EntryResultJson]) -> None:
        """Show what a reload did; ``host`` is empty for a single daemon."""
        text = reload_notice(generation, results)
        self.show_notice(f"{host}: {text}" if host else text[0].upper() + text[1:])

    def set_visible(self, names: Collection[str], detailed: Collection[str]) -> None:
        """Set the tunnels that are on the screen, and those of them whose history is."""
        if detailed != self.view.on_screen:
            self.view = replace(self.view, on_screen=detailed)
        self.source.set_visible(names)

    def tick(self) -> None:
        """Let time pass: without messages rates fall to zero, and notices expire."""
        now = self.now()
        if self._error is None and self.view.status:
            self.view = advance_clock(self.view, now)
        if self.notice and now > self._notice_until:
            self.notice = None


def _file_version(view: StatusView) -> tuple[object, object]:
    """Return what a reload changes, and what an invalid file changes."""
    return view.status.get("generation"), view.status.get("config")
