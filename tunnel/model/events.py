"""Events of a tunnel, and the log that creates them and limits repeated warnings."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Protocol

from tunnel.model.spec import LogLevel
from tunnel.model.times import format_timestamp
from tunnel.model.token_bucket import TokenBucket

_THROTTLE_S: Final = 5.0  # a warning of one topic is emitted at most once in this time
_PENDING_S: Final = 2 * _THROTTLE_S  # after that, what was suppressed is counted by a line of its own
_PACE_BURST: Final = 50
_PACE_PER_S: Final = 1.0
_MAX_TOPICS: Final = 256  # a topic may contain a remote address, so their number is not bounded by the program


VISITOR: Final = "visitor"
"""Key of the data of an event: the address of the visitor that it is about. Texts of events never contain one, so that
it can be left out where addresses must not go."""
OTHER_SERVICE: Final = "other_service"
"""Key of the data of an event about a client that wants a service which no tunnel of the port has."""
SUPPRESSED: Final = "suppressed"
"""Key of the data of an event that only counts how often an earlier one was repeated."""


class EventKind(enum.StrEnum):
    """What an event is about; EVENT_KINDS has the meaning of each."""

    STATE = "state"
    LINK = "link"
    LISTEN = "listen"
    VISITOR = "visitor"
    TARGET = "target"
    REFUSED = "refused"
    POOL = "pool"
    RETIRED = "retired"
    RESTART = "restart"
    START = "start"
    DEFECT = "defect"
    SUPERVISOR = "supervisor"
    CONFIG = "config"
    RELOAD = "reload"
    COMMAND = "command"
    WORKER = "worker"
    API = "api"
    MQTT = "mqtt"
    HISTORY = "history"
    QUOTA = "quota"
    LOG = "log"


@dataclass(frozen=True, slots=True)
class EventKindInfo:
    """One row of the table of event kinds."""

    meaning: str
    is_history: bool = False
    """whether events of this kind record what happened to a tunnel as a whole, which ``events`` shows"""


EVENT_KINDS: Final[Mapping[EventKind, EventKindInfo]] = MappingProxyType(
    {
        EventKind.STATE: EventKindInfo("the state of a tunnel changed, or an attempt failed", is_history=True),
        EventKind.LINK: EventKindInfo("a link was established or lost"),
        EventKind.LISTEN: EventKindInfo("an address accepts connections, or pauses"),
        EventKind.VISITOR: EventKindInfo("visitors were disconnected"),
        EventKind.TARGET: EventKindInfo("a target failed or answers again"),
        EventKind.REFUSED: EventKindInfo("a connection attempt or a visitor was refused"),
        EventKind.POOL: EventKindInfo("data connections cannot be made, or use another port"),
        EventKind.RETIRED: EventKindInfo("a former engine, which another one has replaced, changed its state"),
        EventKind.RESTART: EventKindInfo("a defect ended an engine; another one starts", is_history=True),
        EventKind.START: EventKindInfo("a warning about the configuration of a single tunnel"),
        EventKind.DEFECT: EventKindInfo("a defect of the program outside an engine"),
        EventKind.SUPERVISOR: EventKindInfo("the daemon starts or shuts down"),
        EventKind.CONFIG: EventKindInfo("a warning about the configuration file"),
        EventKind.RELOAD: EventKindInfo("the configuration was read again", is_history=True),
        EventKind.COMMAND: EventKindInfo("a tunnel received a command", is_history=True),
        EventKind.WORKER: EventKindInfo("a worker process started or ended", is_history=True),
        EventKind.API: EventKindInfo("the local API listens, or has a fault"),
        EventKind.MQTT: EventKindInfo("the connection to the broker, or a command over it"),
        EventKind.HISTORY: EventKindInfo("the traffic history cannot be written, or is written again"),
        EventKind.QUOTA: EventKindInfo("a quota is nearly used or used up, or has room again", is_history=True),
        EventKind.LOG: EventKindInfo("events were dropped"),
    }
)
"""Every kind of event with its row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One occurrence in the life of a tunnel, as a sentence. The consumers of the sink decide what to keep."""

    ts: float
    tunnel: str
    level: LogLevel
    kind: EventKind
    text: str
    data: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the event as one JSON object."""
        fixed = {
            "ts": format_timestamp(self.ts),
            "tunnel": self.tunnel,
            "level": self.level.name.lower(),
            "kind": self.kind.value,
            "text": self.text,
        }
        return {**fixed, **self.data, **fixed}  # the fixed keys come first, and data cannot replace them


EventSink = Callable[[Event], None]


class PendingTimer(Protocol):
    """A timer that was started."""

    def cancel(self) -> None:
        """Stop the timer, unless it has ended: nothing is called then."""


CallLater = Callable[[float, Callable[[], None]], PendingTimer]
"""Starts a timer: the delay in seconds, and what is called then."""


@dataclass(slots=True)
class _ThrottledTopic:
    """The last line of a topic, and what was suppressed since."""

    written_at: float
    """on the monotonic clock"""
    level: LogLevel
    kind: EventKind
    text: str
    suppressed: int = 0


class EventLog:
    """Creates the events of one tunnel and passes them to a sink.

    DEBUG events below ``level`` are not created at all. All others reach the sink at every level: the sink filters
    what it prints, because the command ``events`` shows state changes whatever the log level is.
    """

    __slots__ = ("_call_later", "_pacing", "_sink", "_throttled", "_timer", "level", "tunnel")

    def __init__(
        self, tunnel: str, sink: EventSink, level: LogLevel = LogLevel.INFO, call_later: CallLater | None = None
    ) -> None:
        """With ``call_later``, events that were suppressed are counted by a line also if no other one follows."""
        self.tunnel = tunnel
        self.level = level
        self._sink = sink
        self._pacing: dict[str, tuple[TokenBucket, int]] = {}  # by topic: its bucket, and events suppressed since
        self._throttled: dict[str, _ThrottledTopic] = {}  # by topic, the oldest first
        self._call_later = call_later
        self._timer: PendingTimer | None = None  # while something was suppressed

    def log_debug(self, kind: EventKind, text: str, **data: object) -> None:
        """Log a detail that helps to find a fault."""
        if self.level <= LogLevel.DEBUG:
            self.log(LogLevel.DEBUG, kind, text, **data)

    def log_info(self, kind: EventKind, text: str, **data: object) -> None:
        """Log what an operator wants to know in normal operation."""
        self.log(LogLevel.INFO, kind, text, **data)

    def log_warn(self, kind: EventKind, text: str, **data: object) -> None:
        """Log a fault that the tunnel recovers from without an operator, or a refusal."""
        self.log(LogLevel.WARN, kind, text, **data)

    def log_error(self, kind: EventKind, text: str, **data: object) -> None:
        """Log a fault that an operator has to mend."""
        self.log(LogLevel.ERROR, kind, text, **data)

    def log(self, level: LogLevel, kind: EventKind, text: str, **data: object) -> None:
        """Log an event whose level the caller computes."""
        self._sink(Event(ts=time.time(), tunnel=self.tunnel, level=level, kind=kind, text=text, data=data))

    def log_paced(self, level: LogLevel, kind: EventKind, topic: str, text: str, **data: object) -> None:
        """Log what is of interest each time, but what a peer can cause at will: a burst, then one a second.

        ``topic`` is a fixed word of the program.
        """
        now = time.monotonic()
        bucket, suppressed = self._pacing.get(topic) or (TokenBucket(_PACE_PER_S, _PACE_BURST, now), 0)
        is_due = bucket.take_token(now)
        self._pacing[topic] = (bucket, 0 if is_due else suppressed + 1)
        if is_due:
            self.log(level, kind, _with_suppressed(text, suppressed), **data)

    def suppresses(self, topic: str) -> bool:
        """Count a warning if ``warn_throttled`` would suppress it; return whether so. Saves the making of its text."""
        last = self._throttled.get(topic)
        if last is None or time.monotonic() - last.written_at >= _THROTTLE_S:
            return False
        last.suppressed += 1
        if self._timer is None and self._call_later is not None:
            self._timer = self._call_later(_PENDING_S, self._on_timer)
        return True

    def warn_throttled(self, kind: EventKind, topic: str, text: str, **data: object) -> None:
        """Log a warning that remote peers can cause at will: once per topic and five seconds, with a count."""
        self.log_throttled(LogLevel.WARN, kind, topic, text, **data)

    def log_throttled(self, level: LogLevel, kind: EventKind, topic: str, text: str, **data: object) -> None:
        """Log an event that remote peers can cause at will, as ``warn_throttled`` does."""
        if self.suppresses(topic):
            return
        last = self._throttled.pop(topic, None)  # appended again, so that the first topic is always the oldest
        self._throttled[topic] = _ThrottledTopic(time.monotonic(), level, kind, text)
        if len(self._throttled) > _MAX_TOPICS:
            del self._throttled[next(iter(self._throttled))]
        self.log(level, kind, _with_suppressed(text, 0 if last is None else last.suppressed), **data)

    def _on_timer(self) -> None:
        self._timer = None
        self._write_suppressed(time.monotonic() - _PENDING_S)
        if self._call_later is not None and any(topic.suppressed for topic in self._throttled.values()):
            self._timer = self._call_later(_PENDING_S, self._on_timer)

    def _write_suppressed(self, written_before: float) -> None:
        """Write how many events were suppressed, for each topic without a line since then (monotonic clock)."""
        for topic in self._throttled.values():
            if topic.suppressed and topic.written_at <= written_before:
                text, count, topic.suppressed = topic.text, topic.suppressed, 0
                were = f"{count} more {'was' if count == 1 else 'were'} suppressed"
                self.log(topic.level, topic.kind, f"{were} after this: {text}", **{SUPPRESSED: count})

    def close(self) -> None:
        """Write what was suppressed and not counted yet, and start no more timers. Calling it twice is allowed."""
        self._call_later = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._write_suppressed(float("inf"))


def _with_suppressed(text: str, count: int) -> str:
    """Return the text with the number of events that were suppressed since the last one, if there were any."""
    return f"{text} ({count} more {'was' if count == 1 else 'were'} suppressed)" if count else text
