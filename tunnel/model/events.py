"""Events of a tunnel, and the log that creates them and limits repeated warnings."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tunnel.model.spec import LogLevel
from tunnel.model.times import format_timestamp

_THROTTLE_S: Final = 5.0  # a warning of one topic is emitted at most once in this time
_MAX_TOPICS: Final = 256  # a topic may contain a remote address, so their number is not bounded by the program


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One occurrence in the life of a tunnel, as a sentence. The consumers of the sink decide what to keep."""

    ts: float
    tunnel: str
    level: LogLevel
    kind: str
    """``state``, ``link``, ``listen``, ``visitor``, ``target``, ``refused``, ``pool``, ``restart``"""
    text: str
    data: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the event as one JSON object."""
        fixed = {
            "ts": format_timestamp(self.ts),
            "tunnel": self.tunnel,
            "level": self.level.name.lower(),
            "kind": self.kind,
            "text": self.text,
        }
        return {**fixed, **self.data, **fixed}  # the fixed keys come first, and data cannot replace them


EventSink = Callable[[Event], None]


class EventLog:
    """Creates the events of one tunnel and passes them to a sink.

    DEBUG events below ``level`` are not created at all. All others reach the sink at every level: the sink filters
    what it prints, because the command ``events`` shows state changes whatever the log level is.
    """

    __slots__ = ("_sink", "_throttled", "level", "tunnel")

    def __init__(self, tunnel: str, sink: EventSink, level: LogLevel = LogLevel.INFO) -> None:
        self.tunnel = tunnel
        self.level = level
        self._sink = sink
        self._throttled: dict[str, tuple[float, int]] = {}
        """topic → time of the last event and number of events suppressed since, the oldest topic first"""

    def log_debug(self, kind: str, text: str, **data: object) -> None:
        """Log a detail that helps to find a fault."""
        if self.level <= LogLevel.DEBUG:
            self.log(LogLevel.DEBUG, kind, text, **data)

    def log_info(self, kind: str, text: str, **data: object) -> None:
        """Log what an operator wants to know in normal operation."""
        self.log(LogLevel.INFO, kind, text, **data)

    def log_warn(self, kind: str, text: str, **data: object) -> None:
        """Log a fault that the tunnel recovers from without an operator, or a refusal."""
        self.log(LogLevel.WARN, kind, text, **data)

    def log_error(self, kind: str, text: str, **data: object) -> None:
        """Log a fault that an operator has to mend."""
        self.log(LogLevel.ERROR, kind, text, **data)

    def log(self, level: LogLevel, kind: str, text: str, **data: object) -> None:
        """Log an event whose level the caller computes."""
        self._sink(Event(ts=time.time(), tunnel=self.tunnel, level=level, kind=kind, text=text, data=data))

    def warn_throttled(self, kind: str, topic: str, text: str, **data: object) -> None:
        """Log a warning that remote peers can cause at will: once per topic and five seconds, with a count."""
        now = time.monotonic()
        last, suppressed = self._throttled.get(topic, (float("-inf"), 0))
        if now - last < _THROTTLE_S:
            self._throttled[topic] = (last, suppressed + 1)
            return
        self._throttled.pop(topic, None)  # append it again, so that the first topic is always the oldest
        self._throttled[topic] = (now, 0)
        if len(self._throttled) > _MAX_TOPICS:
            del self._throttled[next(iter(self._throttled))]
        self.log(LogLevel.WARN, kind, f"{text} ({suppressed} more were suppressed)" if suppressed else text, **data)
