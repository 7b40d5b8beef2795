"""Where the events of all tunnels meet: kept for those who ask later, passed on to those who listen."""

from __future__ import annotations

import heapq
import time
from collections import deque
from contextlib import contextmanager
from itertools import count, islice
from typing import TYPE_CHECKING, Final

from tunnel.model.events import Event
from tunnel.model.spec import LogLevel

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from tunnel.model.events import EventSink

KEPT: Final = 500
"""Events remembered of each tunnel."""

KEPT_IN_ALL: Final = 5000
"""Events remembered of all tunnels together, and as many of the history."""

HOUSE: Final = ""
"""The tunnel's name in events of the supervisor itself."""

HISTORY: Final = frozenset({"state", "reload", "command", "restart", "worker"})
"""The kinds of events that tell what became of tunnels, as opposed to what they have to say."""

_Numbered = tuple[int, Event]
"""An event with its place among all: a clock may be put back."""

_MOST_TUNNELS: Final = 4096  # names may come and go for ever


def is_noteworthy(event: Event) -> bool:
    """Whether somebody who watches all tunnels wants to know of it."""
    return event.level >= LogLevel.WARN or (event.kind in HISTORY and event.level > LogLevel.DEBUG)


class Bus:
    """One per supervisor; used on its event loop only."""

    def __init__(self) -> None:
        self._rings: dict[str, deque[_Numbered]] = {}
        self._count = count()
        self._all: deque[Event] = deque(maxlen=KEPT_IN_ALL)
        self._history: deque[Event] = deque(maxlen=KEPT_IN_ALL)
        self._listeners: list[EventSink] = []
        self._onlookers: list[Callable[[str], None]] = []

    def publish(self, event: Event) -> None:
        """Keep the event and tell it to every listener."""
        self._ring(event.tunnel).append((next(self._count), event))
        self._all.append(event)
        if event.kind in HISTORY:
            self._history.append(event)
        for listener in tuple(self._listeners):
            listener(event)

    def tell(self, level: LogLevel, kind: str, text: str, *, tunnel: str = HOUSE, **data: object) -> None:
        """An event of the supervisor itself, or of what it does to a tunnel."""
        self.publish(Event(ts=time.time(), tunnel=tunnel, level=level, kind=kind, text=text, data=data))

    def subscribe(self, listener: EventSink) -> None:
        """Tell ``listener`` every event from now on; it must not raise."""
        self._listeners.append(listener)

    def unsubscribe(self, listener: EventSink) -> None:
        """Tell ``listener`` no more."""
        self._listeners.remove(listener)

    def stir(self, tunnel: str) -> None:
        """Something begins there, such as the first visitor after a while; no event, for it tells nothing to read."""
        for onlooker in self._onlookers:
            onlooker(tunnel)

    @contextmanager
    def onlooker(self, look: Callable[[str], None]) -> Iterator[None]:
        """Whoever need not look at all tunnels, because ``look`` is told the names of those where something begins."""
        self._onlookers.append(look)
        try:
            yield
        finally:
            self._onlookers.remove(look)

    def knows(self, tunnel: str) -> bool:
        """Whether that tunnel was ever heard of, even if it is gone."""
        return tunnel in self._rings

    def recent(self, tunnel: str) -> tuple[Event, ...]:
        """The last events of a tunnel, oldest first."""
        return tuple(event for _, event in self._rings.get(tunnel, ()))

    def last(self, count: int, wanted: Callable[[Event], bool], tunnels: Collection[str] = ()) -> list[Event]:
        """The last ``count`` wanted events of some tunnels (none: of all), oldest first."""
        return _newest(count, wanted, self._backwards(tunnels) if tunnels else reversed(self._all))

    def history(self, count: int) -> list[Event]:
        """The last ``count`` events of the kinds in HISTORY, oldest first."""
        return list(self._history)[-count:] if count else []

    def _backwards(self, tunnels: Collection[str]) -> Iterator[Event]:
        rings = (reversed(self._rings.get(name, ())) for name in tunnels)
        return (event for _, event in heapq.merge(*rings, key=_number, reverse=True))

    def _ring(self, tunnel: str) -> deque[_Numbered]:
        ring = self._rings.get(tunnel)
        if ring is None:
            if len(self._rings) >= _MOST_TUNNELS:
                del self._rings[min(self._rings, key=lambda name: _number(self._rings[name][-1]))]
            ring = self._rings[tunnel] = deque(maxlen=KEPT)
        return ring


def _number(entry: _Numbered) -> int:
    return entry[0]


def _newest(count: int, wanted: Callable[[Event], bool], backwards: Iterator[Event]) -> list[Event]:
    return list(islice(filter(wanted, backwards), count))[::-1]
