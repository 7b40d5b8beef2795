"""Distributes the events of all tunnels to subscribers, and keeps the latest ones for later readers."""

from __future__ import annotations

import heapq
import time
from collections import deque
from contextlib import contextmanager
from itertools import count, islice
from typing import TYPE_CHECKING, Final

from tunnel.model.events import EVENT_KINDS, Event, EventKind
from tunnel.model.spec import LogLevel

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from tunnel.model.events import EventSink

MAX_EVENTS_PER_TUNNEL: Final = 500
"""Events kept of each tunnel."""

MAX_EVENTS: Final = 5000
"""Events kept of all tunnels together, and as many of the history."""

SUPERVISOR: Final = ""
"""The tunnel name in events of the supervisor itself."""

HISTORY_KINDS: Final = frozenset(kind for kind, info in EVENT_KINDS.items() if info.is_history)
"""Event kinds that record what happened to a tunnel as a whole, as opposed to details of its work."""

_SequencedEvent = tuple[int, Event]
"""An event with its sequence number: the clock of its timestamp may be set back."""

_MAX_TUNNELS: Final = 4096  # reloads may add and remove names without end


def is_noteworthy(event: Event) -> bool:
    """Whether an event belongs in an overview of all tunnels."""
    return event.level >= LogLevel.WARN or (event.kind in HISTORY_KINDS and event.level > LogLevel.DEBUG)


class EventBus:
    """One per supervisor; used on its event loop only."""

    def __init__(self) -> None:
        self._by_tunnel: dict[str, deque[_SequencedEvent]] = {}
        self._sequence = count()
        self._all: deque[Event] = deque(maxlen=MAX_EVENTS)
        self._history: deque[Event] = deque(maxlen=MAX_EVENTS)
        self._subscribers: list[EventSink] = []
        self._activity_subscribers: list[Callable[[str], None]] = []

    # --- publishing -----------------------------------------------------------------------------------------------

    def publish(self, event: Event) -> None:
        """Keep the event and pass it to every subscriber."""
        self._events_of(event.tunnel).append((next(self._sequence), event))
        self._all.append(event)
        if event.kind in HISTORY_KINDS:
            self._history.append(event)
        for subscriber in tuple(self._subscribers):
            subscriber(event)

    def emit(self, level: LogLevel, kind: EventKind, text: str, *, tunnel: str = SUPERVISOR, **data: object) -> None:
        """Publish an event of the supervisor, or of what the supervisor does to a tunnel."""
        self.publish(Event(ts=time.time(), tunnel=tunnel, level=level, kind=kind, text=text, data=data))

    def notify_activity(self, tunnel: str) -> None:
        """Notify that a tunnel becomes busy, such as by its first visitor. There is nothing to log, so no event."""
        for subscriber in self._activity_subscribers:
            subscriber(tunnel)

    # --- subscribing ----------------------------------------------------------------------------------------------

    def subscribe(self, subscriber: EventSink) -> None:
        """Call ``subscriber``, which must not raise, with every event from now on."""
        self._subscribers.append(subscriber)

    def unsubscribe(self, subscriber: EventSink) -> None:
        """Stop calling a subscriber."""
        self._subscribers.remove(subscriber)

    @contextmanager
    def subscribe_activity(self, subscriber: Callable[[str], None]) -> Iterator[None]:
        """Call ``subscriber`` with the name of each tunnel that becomes busy, until the context ends."""
        self._activity_subscribers.append(subscriber)
        try:
            yield
        finally:
            self._activity_subscribers.remove(subscriber)

    # --- reading what is kept -------------------------------------------------------------------------------------

    def has_events_of(self, tunnel: str) -> bool:
        """Whether there are events of that tunnel, even if it is gone."""
        return tunnel in self._by_tunnel

    def events_of(self, tunnel: str) -> tuple[Event, ...]:
        """The kept events of one tunnel, oldest first."""
        return tuple(event for _, event in self._by_tunnel.get(tunnel, ()))

    def last_events(self, limit: int, is_wanted: Callable[[Event], bool], tunnels: Collection[str] = ()) -> list[Event]:
        """The last ``limit`` wanted events of these tunnels (none given: of all), oldest first."""
        newest_first = self._newest_first(tunnels) if tunnels else reversed(self._all)
        return list(islice(filter(is_wanted, newest_first), limit))[::-1]

    def last_history(self, limit: int) -> list[Event]:
        """The last ``limit`` events of the kinds in HISTORY_KINDS, oldest first."""
        return list(self._history)[-limit:] if limit else []

    def _newest_first(self, tunnels: Collection[str]) -> Iterator[Event]:
        kept = (reversed(self._by_tunnel.get(name, ())) for name in tunnels)
        return (event for _, event in heapq.merge(*kept, key=_sequence_number, reverse=True))

    def _events_of(self, tunnel: str) -> deque[_SequencedEvent]:
        kept = self._by_tunnel.get(tunnel)
        if kept is None:
            if len(self._by_tunnel) >= _MAX_TUNNELS:
                del self._by_tunnel[min(self._by_tunnel, key=lambda name: _sequence_number(self._by_tunnel[name][-1]))]
            kept = self._by_tunnel[tunnel] = deque(maxlen=MAX_EVENTS_PER_TUNNEL)
        return kept


def _sequence_number(entry: _SequencedEvent) -> int:
    return entry[0]
