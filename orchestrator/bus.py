"""Where the events of all tunnels meet: kept for those who ask later, passed on to those who listen."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Final

from tunnel.spec import LogLevel
from tunnel.state import Event

if TYPE_CHECKING:
    from tunnel.journal import EventSink

KEPT: Final = 500
"""Events remembered of each tunnel."""

HOUSE: Final = ""
"""The tunnel's name in events of the supervisor itself."""


class Bus:
    """One per supervisor; used on its event loop only."""

    def __init__(self) -> None:
        self._rings: dict[str, deque[Event]] = {}
        self._listeners: list[EventSink] = []

    def publish(self, event: Event) -> None:
        """Keep the event and tell it to every listener."""
        ring = self._rings.get(event.tunnel)
        if ring is None:
            ring = self._rings[event.tunnel] = deque(maxlen=KEPT)
        ring.append(event)
        for listener in tuple(self._listeners):
            listener(event)

    def tell(self, level: LogLevel, kind: str, text: str, **data: object) -> None:
        """An event of the supervisor itself."""
        self.publish(Event(ts=time.time(), tunnel=HOUSE, level=level, kind=kind, text=text, data=data))

    def subscribe(self, listener: EventSink) -> None:
        """Tell ``listener`` every event from now on; it must not raise."""
        self._listeners.append(listener)

    def recent(self, tunnel: str) -> tuple[Event, ...]:
        """The last events of a tunnel, oldest first."""
        return tuple(self._rings.get(tunnel, ()))
