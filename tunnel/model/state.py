"""The states of a tunnel, the table of transitions, and what others may see: snapshots and events.

Snapshots and events are immutable and serialisable, because they may cross a process border (a worker, the local API,
the broker) before anyone looks at them.
"""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tunnel.model.spec import LogLevel


class State(enum.StrEnum):
    """What a tunnel is doing."""

    STARTING = "starting"
    WAITING = "waiting"
    """a server that is up and has no client yet"""
    CONNECTING = "connecting"
    UP = "up"
    """link alive, at least one idle data connection, visitors can be served"""
    COOLDOWN = "cooldown"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"
    """cannot work as it is written; somebody has to mend something"""


_ENDINGS: Final = frozenset({State.DRAINING, State.STOPPED, State.FAILED})

TRANSITIONS: Final[Mapping[State, frozenset[State]]] = MappingProxyType(
    {
        State.STARTING: frozenset({State.WAITING, State.CONNECTING, State.COOLDOWN}) | _ENDINGS,
        State.WAITING: frozenset({State.CONNECTING, State.COOLDOWN}) | _ENDINGS,
        State.CONNECTING: frozenset({State.UP, State.WAITING, State.COOLDOWN}) | _ENDINGS,
        State.UP: frozenset({State.CONNECTING, State.WAITING, State.COOLDOWN}) | _ENDINGS,
        State.COOLDOWN: frozenset({State.STARTING, State.CONNECTING, State.WAITING, State.UP}) | _ENDINGS,
        State.DRAINING: frozenset({State.STOPPED, State.FAILED}),
        State.STOPPED: frozenset({State.STARTING}),
        State.FAILED: frozenset({State.STARTING, State.STOPPED}),
    }
)


class ImpossibleTransitionError(AssertionError):
    """The engine tried to go from a state to one that cannot follow it: a defect, never the user's doing."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A state, since when (seconds since the epoch), and why, in a sentence for people."""

    state: State = State.STARTING
    since: float = field(default_factory=time.time)
    reason: str | None = None

    def to(self, state: State, reason: str | None = None) -> Standing:
        """The next standing; itself where nothing changes. Raises ImpossibleTransitionError."""
        if state is self.state:
            return self if reason == self.reason else replace(self, reason=reason)
        if state not in TRANSITIONS[self.state]:
            raise ImpossibleTransitionError(f"{self.state} cannot become {state}")
        return Standing(state, time.time(), reason)


def timestamp(seconds: float) -> str:
    """A moment as RFC 3339 in UTC with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _View:
    """A part of a snapshot."""

    __slots__: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Its part of the object that ``ps --json`` shows."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolView(_View):
    """The pool in numbers."""

    idle: int = 0
    capacity: int = 0
    """idle ones wanted just now"""
    dialing: int = 0
    min: int
    max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalsView(_View):
    """Visitors that wait for a data connection, and signals sent or received in all."""

    queued: int = 0
    limit: int
    total: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionsView(_View):
    """Visitors served: now, ever, in vain, and at most at once."""

    active: int = 0
    total: int = 0
    failed: int = 0
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BytesView(_View):
    """Bytes relayed: ``in`` came from visitors, ``out`` went to them."""

    from_visitors: int = field(default=0, metadata={"json": "in"})
    to_visitors: int = field(default=0, metadata={"json": "out"})

    def as_json(self) -> dict[str, Any]:
        """Its part of the object that ``ps --json`` shows."""
        return {"in": self.from_visitors, "out": self.to_visitors}


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedView(_View):
    """What strangers tried and did not get, counted since the start."""

    handshakes: int = 0
    """control channels whose proof or greeting was wrong"""
    prefaces: int = 0
    """data connections whose preface was forged, replayed or late"""
    silent: int = 0
    """connections closed because they said nothing in time, or to make room for others"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CooldownView(_View):
    """The wait before the next attempt."""

    remaining_s: float = 0.0
    attempt: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A tunnel at one moment. Unknown is None, never a made-up number. Addresses are texts, moments RFC 3339."""

    name: str
    role: str
    direction: str | None = None
    state: State
    reason: str | None = None
    since: str
    tunnel_addr: str
    target_addr: str
    data_addr: str | None = None
    peer: str | None = None
    link: str | None = None
    """public random id, the same at both ends of a link"""
    auth: str
    data_tls: int
    tags: tuple[str, ...] = ()
    worker: int = 0
    pool: PoolView
    signals: SignalsView
    connections: ConnectionsView
    bytes: BytesView
    refused: RefusedView
    rtt_ms: float | None = None
    cooldown: CooldownView
    restarts: int = 0
    last_error: str | None = None
    last_error_at: str | None = None

    def as_json(self, names: Iterable[str] | None = None) -> dict[str, Any]:
        """The object that ``ps --json`` shows for this tunnel, or only the fields of these names."""
        return {name: _plain(getattr(self, name)) for name in names or self.__slots__}


def _plain(value: object) -> object:
    if isinstance(value, _View):
        return value.as_json()
    if isinstance(value, State):
        return value.value
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a tunnel, once, as a sentence. Whoever listens decides what to keep."""

    ts: float
    tunnel: str
    level: LogLevel
    kind: str
    """``state``, ``link``, ``listen``, ``visitor``, ``target``, ``refused``, ``pool``, ``restart``"""
    text: str
    data: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The event as one JSON object."""
        frame = {
            "ts": timestamp(self.ts),
            "tunnel": self.tunnel,
            "level": self.level.name.lower(),
            "kind": self.kind,
            "text": self.text,
        }
        return {**frame, **self.data, **frame}  # the frame comes first, and no data can pose as it
