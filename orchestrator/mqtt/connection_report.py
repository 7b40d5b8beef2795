"""What users see of the connection with the broker: its state, events about its changes, and when to try again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orchestrator.mqtt import broker as errors
from orchestrator.mqtt.broker import CREDENTIAL_CODES, TAKEN_OVER_CODE, BrokerError, BrokerState, BrokerStatus
from orchestrator.mqtt.commands import EVENT_KIND
from orchestrator.mqtt.topics import parse
from tunnel.model.spec import LogLevel
from tunnel.runtime.backoff import retry_delay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from orchestrator.mqtt.broker import Broker
    from orchestrator.mqtt.session import RefusedPublication
    from orchestrator.status.contract import BrokerInfo
    from orchestrator.supervisor.event_bus import EventBus

CAUTIOUS_DELAY_S: Final = 10.0
"""Minimum pause where an immediate attempt would disturb another client or the broker."""

_MAX_DELAY_S: Final = 2.0  # between two attempts: a broker that is back has received everything within five
_MAX_DELAY_AFTER_ONLINE_S: Final = 10.0  # where it ends connections early: each one costs it the whole state
_MAX_REPEATED_DELAY_S: Final = 300.0  # where it ends them again and again for one reason
_STABLE_AFTER_S: Final = 30.0  # after this time a lost connection counts as one that worked
_UNRELATED_AFTER_S: Final = 90.0  # after this time the same reason is another occasion: all states were repeated


class ConnectionReporter:
    """The state of the connection, and events about its changes: each problem once until it is over."""

    def __init__(self, bus: EventBus, broker: Broker, host: str) -> None:
        self._bus = bus
        self._broker = broker
        self._host = host
        self._status = BrokerStatus()
        self._reported: set[str] = set()
        self._refused: dict[str, dict[str, int]] = {}
        """reason code of each topic that the broker does not accept, by the kind of the topic"""
        self.is_online = False
        """whether messages are being published, though the broker may refuse some"""

    def info(self) -> BrokerInfo:
        """The status as ``ps --json`` shows it."""
        return self._status.info(str(self._broker), self._host)

    def report_problem(self, state: BrokerState, reason: str) -> None:
        """Nothing is published now."""
        self.is_online = False
        self._refused.clear()
        self._status.set_state(state, reason)
        self._warn_once(reason, reason)

    def report_online(self) -> None:
        """The host is online; after a problem the event waits for ``report_stable``."""
        self.is_online = True
        self._status.set_state(BrokerState.ONLINE)
        if not self._reported:
            self.emit(LogLevel.INFO, f"published to {self._broker} as {self._host}")

    def report_stable(self) -> None:
        """The connection has lasted for a while: problems before it are over."""
        if self._reported and not self._refused:
            self._reported.clear()
            self.emit(LogLevel.INFO, f"published to {self._broker} as {self._host} again")

    def report_publications(self, topics: Iterable[str], refused: Iterable[RefusedPublication | None]) -> None:
        """The broker has confirmed messages on these topics, or refused them."""
        is_changed = False
        for topic, one in zip(topics, refused, strict=True):
            if one is None and not self._refused:
                continue  # as nearly always
            parsed = parse(topic)
            kind = topic.partition("/")[0] if parsed is None else parsed.kind  # else it is one of Home Assistant's
            known = self._refused.get(kind, {})
            if (None if one is None else one.code) != known.get(topic):
                is_changed = True
                if one is None:
                    del known[topic]
                else:
                    self._refused.setdefault(kind, {})[topic] = one.code
        if is_changed:
            self._refused = {kind: codes for kind, codes in self._refused.items() if codes}
            self._show_refused()

    def _show_refused(self) -> None:
        if not self._refused:
            self._status.set_state(BrokerState.ONLINE)
            return
        reasons = []
        for kind, codes in self._refused.items():
            (topic, code), others = next(iter(codes.items())), len(codes) - 1
            reasons.append(errors.publication_refused(self._broker, topic, code, others))
            self._warn_once(f"{kind} {code}", errors.publication_refused(self._broker, topic, code))
        self._status.set_state(BrokerState.REFUSED, "; ".join(reasons))

    def _warn_once(self, key: str, reason: str) -> None:
        if key not in self._reported:
            self._reported.add(key)
            self.emit(LogLevel.WARN, f"{reason}; tunnels are not affected")

    def emit(self, level: LogLevel, text: str) -> None:
        """Emit an event about the broker."""
        self._bus.emit(level, EVENT_KIND, text)


@dataclass(slots=True)
class RetryPolicy:
    """How long to wait after each connection. ``uniform`` is ``random.uniform``."""

    uniform: Callable[[float, float], float]
    _attempt: int = 0
    _last_code: int | None = None
    _repeated: int = 0
    """how often in a row the broker's DISCONNECT had the same reason"""

    def delay_after_error(self, error: BrokerError, lasted_s: float, *, was_online: bool) -> float:
        """Return the seconds until the next attempt, after a connection that lasted ``lasted_s`` seconds.

        The pause grows while the broker ends connections for the same reason: it rejects one of our messages, and at
        each attempt every reader sees the host come and go.
        """
        is_same = was_online and error.code is not None and error.code == self._last_code
        self._repeated = self._repeated + 1 if is_same and lasted_s < _UNRELATED_AFTER_S else 0
        if was_online:
            self._last_code = error.code
        pause_s = CAUTIOUS_DELAY_S if error.code in {*CREDENTIAL_CODES, TAKEN_OVER_CODE} else 0.0
        if self._repeated:
            bound = min(_MAX_REPEATED_DELAY_S, 2.0 ** min(self._repeated, 16))
            pause_s = max(pause_s, self.uniform(bound / 2, bound))
        return pause_s + self._next_delay(lasted_s, _MAX_DELAY_AFTER_ONLINE_S if was_online else _MAX_DELAY_S)

    def delay_after_defect(self, lasted_s: float) -> float:
        """Seconds until the next attempt, after a defect in this program."""
        return CAUTIOUS_DELAY_S + self._next_delay(lasted_s, _MAX_DELAY_S)

    def _next_delay(self, lasted_s: float, cap: float) -> float:
        self._attempt = 1 if lasted_s > _STABLE_AFTER_S else self._attempt + 1
        return retry_delay(self._attempt, cap, self.uniform)
