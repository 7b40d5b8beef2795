"""What a host publishes and when: the schedule per tunnel, the queue for the broker, and the removal of old topics."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final

from orchestrator.mqtt.payloads import STATS_KEYS, EventPayload, InfoPayload, StatePayload, StatsPayload, StatusPayload
from orchestrator.mqtt.topics import EVENT, INFO, STATE, STATS, STATUS, Message
from orchestrator.status.scanner import SCAN_BATCH_SIZE
from tunnel.model.snapshot import Snapshot
from tunnel.model.times import format_timestamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from orchestrator.mqtt.commands import CommandHandler
    from orchestrator.mqtt.ha_discovery import HomeAssistantDiscovery
    from orchestrator.mqtt.payloads import DaemonRun
    from orchestrator.mqtt.topics import HostTopics
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
        self._retained: dict[str, Message] = {}
        self._events: deque[Message] = deque()
        self._stats: dict[str, Message] = {}
        self._max_events = max_events
        self._is_filled = asyncio.Event()
        self._dropped = 0

    def __len__(self) -> int:
        return len(self._retained) + len(self._events) + len(self._stats)

    def add(self, message: Message) -> None:
        """Queue a message; it replaces an older one on the same topic unless it is an event."""
        if message.is_event:
            self._events.append(message)
            if len(self._events) > self._max_events:
                self._events.popleft()
                self._dropped += 1
        else:
            (self._retained if message.retain else self._stats)[message.topic] = message
        self._is_filled.set()

    def put_back(self, messages: list[Message]) -> None:
        """Queue the unconfirmed events again, in their old place."""
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

    def take_next(self, limit: int) -> list[Message]:
        """Remove and return the next messages."""
        taken: list[Message] = []
        while len(taken) < limit and len(self):
            if self._retained:
                taken.append(self._retained.pop(next(iter(self._retained))))
            elif self._events:
                taken.append(self._events.popleft())
            else:
                taken.append(self._stats.pop(next(iter(self._stats))))
        return taken

    def take_dropped_count(self) -> int:
        """How many events were dropped since the last call."""
        count, self._dropped = self._dropped, 0
        return count

    async def wait_filled(self) -> None:
        """Wait until there is a message."""
        while not len(self):
            self._is_filled.clear()
            await self._is_filled.wait()


# --- the schedule -----------------------------------------------------------------------------------------------------

_NUMBERS: Final = frozenset({*STATS_KEYS, "refused"})
_LASTING: Final = tuple(field.name for field in fields(Snapshot) if field.name not in _NUMBERS)


@dataclass(frozen=True, slots=True)
class _Published:
    """What was published of one tunnel, and when the next message is due."""

    lasting: tuple[object, ...]
    numbers: tuple[object, ...]
    repeat_at: float
    stats_at: float
    free_at: float
    is_settled: bool = False
    whole: Snapshot | None = None
    """the snapshot of which everything is published"""


@dataclass(frozen=True, slots=True)
class DueMessages:
    """What to publish now."""

    states: tuple[Snapshot, ...]
    stats: tuple[Snapshot, ...]
    removed: tuple[str, ...]


class PublishSchedule:
    """Decides what is due: the state on change and from time to time, the numbers as they change. Pure.

    Times are seconds of one monotonic clock.
    """

    def __init__(self, uniform: Callable[[float, float], float]) -> None:
        self._published: dict[str, _Published] = {}
        self._uniform = uniform

    def reset(self) -> None:
        """Forget what was published: everything is due."""
        self._published.clear()

    def next(self, snapshots: Iterable[Snapshot], now: float) -> DueMessages:
        """What is due at ``now``; it counts as published."""
        states, stats = [], []
        known, self._published = self._published, {}
        for snapshot in snapshots:
            published = known.pop(snapshot.name, None)
            if published is not None and published.whole is snapshot and now < published.repeat_at:
                self._published[snapshot.name] = published  # nearly always, where there are hundreds
                continue
            lasting, numbers = _lasting(snapshot), _numbers(snapshot)
            if published is None:
                published = _Published(
                    lasting, numbers, now + SETTLE_DELAY_S, now + STATS_INTERVAL_S, now + MIN_STATE_INTERVAL_S
                )
                states.append(snapshot)
            elif published.lasting != lasting and now >= published.free_at:
                published = replace(
                    published,
                    lasting=lasting,
                    repeat_at=now + SETTLE_DELAY_S,
                    free_at=now + MIN_STATE_INTERVAL_S,
                    is_settled=False,
                )
                states.append(snapshot)
            elif now >= published.repeat_at:
                # tunnels that changed all at once are spread from here on
                is_settled = published.is_settled
                wait = REPEAT_INTERVAL_S if is_settled else self._uniform(REPEAT_INTERVAL_S / 2, REPEAT_INTERVAL_S)
                published = replace(
                    published,
                    lasting=lasting,
                    repeat_at=now + wait,
                    free_at=now + MIN_STATE_INTERVAL_S,
                    is_settled=True,
                )
                states.append(snapshot)
            elif published.numbers != numbers and now >= published.stats_at:
                published = replace(published, numbers=numbers, stats_at=now + STATS_INTERVAL_S)
                stats.append(snapshot)
            is_whole = (published.lasting, published.numbers) == (lasting, numbers)
            self._published[snapshot.name] = replace(published, whole=snapshot if is_whole else None)
        return DueMessages(tuple(states), tuple(stats), tuple(known))


def _lasting(snapshot: Snapshot) -> tuple[object, ...]:
    return tuple(getattr(snapshot, name) for name in _LASTING)


def _numbers(snapshot: Snapshot) -> tuple[Any, ...]:
    """What makes new statistics worthwhile: neither the clock of a cooldown nor the noise of a round trip."""
    return (snapshot.pool, snapshot.signals, snapshot.connections, snapshot.bytes, snapshot.cooldown.attempt)


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
        self._control = control
        self._topics = topics
        self._run = run
        self._handler = handler
        self._discovery = discovery
        self._schedule = PublishSchedule(uniform)
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
        self._info = None
        self._discovered = None
        self._old_topics.clear()

    def add_old_topic(self, topic: str) -> None:
        """One of our topics is retained from an earlier run: clear it unless it is published again."""
        self._old_topics.add(topic)

    def status_message(self, *, online: bool) -> Message:
        """The online or offline status; the latter is also the last will."""
        return self._topics.message(
            STATUS, StatusPayload.of_run(self._run, format_timestamp(time.time()), online=online)
        )

    def clear_topic(self, topic: str) -> None:
        """Remove what the broker retains there."""
        self.queue.add(Message(topic, b"", retain=True))

    def add_event(self, event: Event) -> None:
        """Queue an event for publication."""
        self.queue.add(self._topics.message(EVENT, EventPayload(event, self._run.boot)))

    def queue_due(self) -> Iterator[None]:
        """Queue what is due, in small steps; between two steps other tasks of the loop have their turn."""
        snapshots = []
        for number, snapshot in enumerate(self._control.supervisor.each(), 1):
            snapshots.append(snapshot)
            if number % SCAN_BATCH_SIZE == 0:
                yield
        ts, now = format_timestamp(time.time()), time.monotonic()
        due = self._schedule.next(snapshots, now)
        self._queue_info(ts, now, len(snapshots))
        if self._discovery is not None:
            self._queue_discovery(self._discovery, [snapshot.name for snapshot in snapshots])
        for number, snapshot in enumerate((*due.states, *due.stats)):
            if number % _MESSAGES_PER_STEP == 0:
                yield
            if number < len(due.states):
                self._queue_state(snapshot, ts)
            else:
                self._queue_stats(snapshot, ts)
        for name in due.removed:
            self.clear_topic(self._topics.of(STATE, name))
        if self._old_topics:
            self._clear_old_topics({snapshot.name for snapshot in snapshots})

    def _queue_state(self, snapshot: Snapshot, ts: str) -> None:
        self._seq += 1
        payload = StatePayload(snapshot.as_json(), self._run.boot, self._seq, ts)
        self.queue.add(self._topics.message(STATE, payload, snapshot.name))

    def _queue_stats(self, snapshot: Snapshot, ts: str) -> None:
        payload = StatsPayload(snapshot.as_json(), self._run.boot, ts)
        self.queue.add(self._topics.message(STATS, payload, snapshot.name))

    def _queue_info(self, ts: str, now: float, tunnels: int) -> None:
        info = InfoPayload.of_run(
            self._run,
            self._control.head(),
            ts,
            tunnels=tunnels,
            commands=self._handler.disabled_reason() is None,
            discovery=None if self._discovery is None else self._discovery.prefix,
        )
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

    def _clear_old_topics(self, names: set[str]) -> None:
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
