"""A tunnel's voice: sentences with a gravity, handed to whoever listens, and never a flood of the same one."""

from __future__ import annotations

import time
from collections.abc import Callable

from tunnel.model.spec import LogLevel
from tunnel.model.state import Event

EventSink = Callable[[Event], None]

_REPEAT_AFTER = 5.0  # seconds: the same complaint is made at most this often, with a count
_TOPICS = 256  # topics may name a stranger's address, and there are many strangers


class Journal:
    """Makes events of one tunnel and passes them on.

    Events below ``level`` are not even made if they are mere detail (DEBUG); the rest always reaches the sink, which
    filters what it prints, because ``events`` shows state changes whatever the log level says.
    """

    __slots__ = ("_held", "_sink", "level", "tunnel")

    def __init__(self, tunnel: str, sink: EventSink, level: LogLevel = LogLevel.INFO) -> None:
        self.tunnel = tunnel
        self.level = level
        self._sink = sink
        self._held: dict[str, tuple[float, int]] = {}

    def debug(self, kind: str, text: str, **data: object) -> None:
        """Detail for somebody who looks for a fault."""
        if self.level <= LogLevel.DEBUG:
            self._emit(LogLevel.DEBUG, kind, text, data)

    def info(self, kind: str, text: str, **data: object) -> None:
        """What an operator wants to know when all is well."""
        self._emit(LogLevel.INFO, kind, text, data)

    def warn(self, kind: str, text: str, **data: object) -> None:
        """Something is wrong and mends itself, or is refused."""
        self._emit(LogLevel.WARN, kind, text, data)

    def error(self, kind: str, text: str, **data: object) -> None:
        """Something is wrong and somebody should look."""
        self._emit(LogLevel.ERROR, kind, text, data)

    def say(self, level: LogLevel, kind: str, text: str, **data: object) -> None:
        """An event of the level that the caller decides."""
        self._emit(level, kind, text, data)

    def complain(self, kind: str, topic: str, text: str, **data: object) -> None:
        """A warning that strangers or visitors can cause at will: once per topic and five seconds, with a count."""
        now = time.monotonic()
        last, held = self._held.get(topic, (float("-inf"), 0))
        if now - last < _REPEAT_AFTER:
            self._held[topic] = (last, held + 1)
            return
        self._held.pop(topic, None)  # to the end: the first is always the one complained of longest ago
        self._held[topic] = (now, 0)
        if len(self._held) > _TOPICS:
            del self._held[next(iter(self._held))]
        self._emit(LogLevel.WARN, kind, f"{text} ({held} more like it before)" if held else text, data)

    def _emit(self, level: LogLevel, kind: str, text: str, data: dict[str, object]) -> None:
        self._sink(Event(ts=time.time(), tunnel=self.tunnel, level=level, kind=kind, text=text, data=data))
