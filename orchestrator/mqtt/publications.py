"""What a host publishes and when: the schedule per tunnel, the queue for the broker, and the removal of old topics."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from orchestrator.mqtt.payloads import STATS_KEYS, EventPayload, InfoPayload, StatePayload, StatsPayload, StatusPayload
from orchestrator.mqtt.topics import EVENT, INFO, STATE, STATS, STATUS, OutgoingMessage
from orchestrator.status.contract import field_names
from tunnel.model.snapshot import Snapshot
from tunnel.model.times import format_timestamp

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from orchestrator.history.traffic import HostTraffic
    from orchestrator.mqtt.commands import CommandHandler
    from orchestrator.mqtt.ha_discovery import HomeAssistantDiscovery
    from orchestrator.mqtt.payloads import DaemonRun
    from orchestrator.mqtt.topics import HostTopics
    from orchestrator.status.store import StatusDelta
    from orchestrator.supervisor.control import ControlService
    from tunnel.model.events import Event

REPEAT_INTERVAL_S: Final = 30.0
"""After this time an unchanged state is published again."""
SETTLE_DELAY_S: Final = 2.0
"""So long after a change the retained state is published once more: its numbers have settled by then."""
MIN_STATE_INTERVAL_S: Final = 1.0
"""Between two states of a tunnel, so that one that fails and retries does not flood the broker."""
STATS_INTERVAL_S: Final = 2.0
"""Between two statistics of a tunnel, at least."""
MAX_QUEUED_EVENTS: Final = 1000
"""Events kept while the broker does not accept them; the oldest are dropped first."""

_MESSAGES_PER_STEP: Final = 5  # payloads built without a pause for visitors: a third of a millisecond


# --- the queue --------------------------------------------------------------------------------------------------------


class PublishQueue:
    """Messages for the broker, bounded whatever the broker does: of each topic only the newest message is kept.

    Retained messages go first, then events in their order, then statistics.
    """

    def __init__(self, max_events: int = MAX_QUEUED_EVENTS) -> None:
        self._retained: dict[str, OutgoingMessage] = {}
        self._events: deque[OutgoingMessage] = deque()
        self._stats: dict[str, OutgoingMessage] = {}
        self._max_events = max_events
        self._is_filled = asyncio.Event()
        self._unconfirmed: set[str] = set()
        """topics of retained messages that were taken and that the broker has not confirmed yet"""
        self._is_confirmed = asyncio.Event()
        self._dropped = 0

    def __len__(self) -> int:
        return len(self._retained) + len(self._events) + len(self._stats)

    def add(self, message: OutgoingMessage) -> None:
        """Queue a message; it replaces an older one on the same topic unless it is an event."""
        if message.is_event:
            self._events.append(message)
            if len(self._events) > self._max_events:
                self._events.popleft()
                self._dropped += 1
        else:
            (self._retained if message.retain else self._stats)[message.topic] = message
        self._is_filled.set()

    def confirm(self, messages: list[OutgoingMessage]) -> None:
        """The broker has confirmed these messages."""
        self._unconfirmed.difference_update(message.topic for message in messages)
        self._is_confirmed.set()

    def put_back(self, messages: list[OutgoingMessage]) -> None:
        """Queue the unconfirmed events again, in their old place."""
        self._unconfirmed.clear()
        for message in reversed([message for message in messages if message.is_event]):
            if len(self._events) >= self._max_events:
                self._dropped += 1
            else:
                self._events.appendleft(message)
        if self._events:
            self._is_filled.set()

    def clear_current_values(self) -> None:
        """Drop everything but events: after a loss all current values are published again."""
        self._retained.clear()
        self._stats.clear()

    def take_next(self, limit: int) -> list[OutgoingMessage]:
        """Remove and return the next messages."""
        taken: list[OutgoingMessage] = []
        while len(taken) < limit and len(self):
            if self._retained:
                message = self._retained.pop(next(iter(self._retained)))
                self._unconfirmed.add(message.topic)
                taken.append(message)
            elif self._events:
                taken.append(self._events.popleft())
            else:
                taken.append(self._stats.pop(next(iter(self._stats))))
        return taken

    def take_dropped_count(self) -> int:
        """How many events were dropped since the last call."""
        count, self._dropped = self._dropped, 0
        return count

    async def wait_sent(self, topics: set[str]) -> None:
        """Wait until the broker has confirmed the retained messages that are queued on these topics."""
        while topics & self._unconfirmed or topics & self._retained.keys():
            self._is_confirmed.clear()
            await self._is_confirmed.wait()

    async def wait_filled(self) -> None:
        """Wait until there is a message."""
        while not len(self):
            self._is_filled.clear()
            await self._is_filled.wait()


# --- the schedule -----------------------------------------------------------------------------------------------------

_STATS_FIELDS: Final = frozenset(
    {"pool", "signals", "connections", "bytes", "rates", "cooldown", "quota", "rate_limits"}
)
"""Fields of a snapshot whose change makes new statistics worthwhile; the noise of a round trip does not."""
_STATE_FIELDS: Final = (
    frozenset(field_names(Snapshot)) - _STATS_FIELDS - {"rtt_ms", "refused", "counters", "targets", "links", "servers"}
)
"""Fields whose change makes a new state worthwhile; the health of targets changes the reason, their visitors do not."""


_MEMBER_FIELDS: Final = frozenset({"targets", "links", "servers"})
"""Fields that change with each visitor; a new state is worthwhile if a link or target came, went or changed state."""


def _members(snapshot: Snapshot) -> tuple[tuple[str, str], ...]:
    return (
        *((link.id, link.state) for link in snapshot.links),
        *((server.address, server.state) for server in snapshot.servers),
        *((target.address, target.state) for target in snapshot.targets),
    )


@dataclass(slots=True)
class _TunnelTimer:
    """What changed of one tunnel since its last messages, and when the next ones are due."""

    stats_at: float
    repeat_at: float = math.inf
    free_at: float = -math.inf
    has_new_state: bool = True
    has_new_stats: bool = False
    is_settled: bool = False
    members: tuple[tuple[str, str], ...] = ()
    """the links and targets with their states, as they were noted last"""


@dataclass(frozen=True, slots=True)
class DueMessages:
    """Names of the tunnels whose messages are due now."""

    states: tuple[str, ...]
    stats: tuple[str, ...]
    next_state_at: float
    """when a new state is due that comes too soon after the one before; infinite without one"""


class PublishSchedule:
    """Decides what is due: the state on change and from time to time, the numbers as they change. Pure.

    Times are seconds of one monotonic clock.
    """

    def __init__(self, uniform: Callable[[float, float], float]) -> None:
        self._timers: dict[str, _TunnelTimer] = {}
        self._uniform = uniform

    def reset(self) -> None:
        """Forget what was published; the next delta has to be a full one."""
        self._timers.clear()

    def apply(self, delta: StatusDelta[str, Snapshot], now: float) -> list[str]:
        """Take over what changed; the names of tunnels that are gone."""
        gone = [*delta.removed]
        if delta.is_full:
            gone += self._timers.keys() - delta.changed.keys()
        removed = [name for name in gone if self._timers.pop(name, None) is not None]
        for name, change in delta.changed.items():
            timer = self._timers.get(name)
            if timer is None:
                timer = self._timers[name] = _TunnelTimer(stats_at=now + STATS_INTERVAL_S)
                timer.members = _members(change.value)
                continue
            if change.fields is None or not _STATE_FIELDS.isdisjoint(change.fields):
                timer.has_new_state = True
            if change.fields is None or not _MEMBER_FIELDS.isdisjoint(change.fields):
                members = _members(change.value)
                timer.has_new_state = timer.has_new_state or members != timer.members
                timer.members = members
            if change.fields is not None and not _STATS_FIELDS.isdisjoint(change.fields):
                timer.has_new_stats = True
        return removed

    def allow_states(self, names: Iterable[str]) -> None:
        """The next states of these tunnels need not wait, however recent the last ones are."""
        for name in names:
            if (timer := self._timers.get(name)) is not None:
                timer.free_at = -math.inf

    def take_due(self, now: float) -> DueMessages:
        """What is due at ``now``; it counts as published."""
        states, stats, next_state_at = [], [], math.inf
        for name, timer in self._timers.items():
            if timer.has_new_state and now >= timer.free_at:
                timer.repeat_at, timer.is_settled = now + SETTLE_DELAY_S, False
                timer.has_new_state, timer.free_at = False, now + MIN_STATE_INTERVAL_S
                states.append(name)
            elif now >= timer.repeat_at:
                timer.repeat_at, timer.is_settled = now + self._repeat_interval(timer), True
                timer.has_new_state, timer.free_at = False, now + MIN_STATE_INTERVAL_S
                states.append(name)
            elif timer.has_new_stats and now >= timer.stats_at:
                timer.has_new_stats, timer.stats_at = False, now + STATS_INTERVAL_S
                stats.append(name)
            if timer.has_new_state:
                next_state_at = min(next_state_at, timer.free_at)
        return DueMessages(tuple(states), tuple(stats), next_state_at)

    def _repeat_interval(self, timer: _TunnelTimer) -> float:
        """Tunnels that changed all at once are spread over the whole interval: readers and broker see no bursts."""
        return REPEAT_INTERVAL_S if timer.is_settled else self._uniform(MIN_STATE_INTERVAL_S, REPEAT_INTERVAL_S)


# --- the publications -------------------------------------------------------------------------------------------------


class Publications:
    """Fills the queue of one host."""

    def __init__(
        self,
        control: ControlService,
        *,
        topics: HostTopics,
        run: DaemonRun,
        handler: CommandHandler,
        discovery: HomeAssistantDiscovery | None,
        uniform: Callable[[float, float], float],
    ) -> None:
        self.queue = PublishQueue()
        self.next_state_at = math.inf
        """when ``queue_due`` has another state to queue, unless more changes before; infinite without one"""
        self._traffic: HostTraffic | None = None
        self._control = control
        self._topics = topics
        self._run = run
        self._handler = handler
        self._discovery = discovery
        self._schedule = PublishSchedule(uniform)
        self._revision = 0
        self._info: InfoPayload | None = None
        self._info_at = 0.0
        self._seq = 0
        self._discovered: set[str] | None = None
        """tunnels whose discovery is published; None: not even that of the host"""
        self._old_topics: set[str] = set()

    def restart(self) -> None:
        """Begin a new connection: everything is published again but events, which wait in the queue."""
        self.queue.clear_current_values()
        self._schedule.reset()
        self._revision = 0
        self._info = None
        self._discovered = None
        self._old_topics.clear()

    def add_old_topic(self, topic: str) -> None:
        """One of our topics is retained from an earlier run: clear it unless it is published again."""
        self._old_topics.add(topic)

    def status_message(self, *, online: bool) -> OutgoingMessage:
        """The online or offline status; the latter is also the last will."""
        return self._topics.message(
            STATUS, StatusPayload.of_run(self._run, format_timestamp(time.time()), online=online)
        )

    def clear_topic(self, topic: str) -> None:
        """Remove what the broker retains there."""
        self.queue.add(OutgoingMessage(topic, b"", retain=True))

    def allow_states(self, names: Iterable[str]) -> None:
        """The next states of these tunnels need not wait, however recent the last ones are."""
        self._schedule.allow_states(names)

    def set_traffic(self, traffic: HostTraffic | None) -> None:
        """Publish what all tunnels together carried with the host's next info."""
        self._traffic = traffic

    def add_event(self, event: Event) -> None:
        """Queue an event for publication."""
        self.queue.add(self._topics.message(EVENT, EventPayload(event, self._run.boot)))

    def queue_due(self) -> Iterator[None]:
        """Queue what is due by the status store, in small steps: between two of them other tasks have their turn."""
        store, ts, now = self._control.store, format_timestamp(time.time()), time.monotonic()
        delta = store.changes_since(self._revision)
        self._revision = delta.revision
        removed = self._schedule.apply(delta, now)
        due = self._schedule.take_due(now)
        self.next_state_at = due.next_state_at
        self._queue_info(ts, now, len(store))
        if self._discovery is not None:
            self._queue_discovery(self._discovery, [*store])
        for number, name in enumerate((*due.states, *due.stats)):
            if number % _MESSAGES_PER_STEP == 0:
                yield
            snapshot = store.get(name)
            if snapshot is None:  # removed during a pause; the next delta says so
                continue
            if number < len(due.states):
                self._queue_state(snapshot, ts)
            else:
                self._queue_stats(snapshot, ts)
        for name in removed:
            self.clear_topic(self._topics.of(STATE, name))
        if self._old_topics:
            self._clear_old_topics([*store])

    def _queue_state(self, snapshot: Snapshot, ts: str) -> None:
        self._seq += 1
        payload = StatePayload(snapshot.as_json(), self._run.boot, self._seq, ts)
        self.queue.add(self._topics.message(STATE, payload, snapshot.name))

    def _queue_stats(self, snapshot: Snapshot, ts: str) -> None:
        payload = StatsPayload(snapshot.as_json(STATS_KEYS), self._run.boot, ts)
        self.queue.add(self._topics.message(STATS, payload, snapshot.name))

    def _queue_info(self, ts: str, now: float, tunnels: int) -> None:
        info = InfoPayload.of_run(
            self._run,
            self._control.info(),
            ts,
            tunnels=tunnels,
            commands=self._handler.disabled_reason() is None,
            discovery=None if self._discovery is None else self._discovery.prefix,
        )
        if self._traffic is not None:
            info = replace(info, bytes_today=self._traffic.today, bytes_month=self._traffic.month)
        is_changed = self._info is None or replace(info, ts=self._info.ts) != self._info
        if is_changed or now - self._info_at >= REPEAT_INTERVAL_S:
            self._info, self._info_at = info, now
            self.queue.add(self._topics.message(INFO, info))

    def _queue_discovery(self, discovery: HomeAssistantDiscovery, names: list[str]) -> None:
        """A configuration is cleared before the state that it reads, which would make no sense to its readers."""
        if self._discovered is None:
            self._discovered = set()
            for message in discovery.host_messages():
                self.queue.add(message)
        for name in names:
            if name not in self._discovered:
                for message in discovery.tunnel_messages(name):
                    self.queue.add(message)
        for name in self._discovered.difference(names):
            for message in discovery.tunnel_messages(name):
                self.clear_topic(message.topic)
        self._discovered = set(names)

    def _clear_old_topics(self, names: Collection[str]) -> None:
        """Clear what an earlier run left behind; discovery first, because its configurations read the states."""
        kept = {self._topics.of(STATE, name) for name in names}
        if self._discovery is not None:
            messages = [*self._discovery.host_messages()]
            for name in names:
                messages += self._discovery.tunnel_messages(name)
            kept |= {message.topic for message in messages}
        for topic in sorted(self._old_topics - kept, key=lambda topic: topic.startswith(self._topics.base)):
            self.clear_topic(topic)
        self._old_topics.clear()
