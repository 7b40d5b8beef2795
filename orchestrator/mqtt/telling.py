"""What a host says: its words, what is due of its tunnels, and the taking back of what is no more."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from orchestrator.mqtt import payloads
from orchestrator.mqtt.outbox import Message, Outbox
from orchestrator.mqtt.pacing import REPEAT, Pacing
from orchestrator.supervisor.supervisor import SCAN_BATCH_SIZE
from tunnel.model.times import format_timestamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from orchestrator.mqtt.discovery import Discovery
    from orchestrator.mqtt.steering import Steering
    from orchestrator.mqtt.topics import HostTopics
    from orchestrator.supervisor.control import ControlService
    from tunnel.model.events import Event
    from tunnel.model.snapshot import Snapshot

_AT_A_TIME: Final = 5  # words put together without a pause: a third of a millisecond


class Telling:
    """Fills the outbox of one host."""

    def __init__(
        self,
        control: ControlService,
        *,
        topics: HostTopics,
        origin: payloads.Origin,
        steering: Steering,
        discovery: Discovery | None,
        uniform: Callable[[float, float], float],
    ) -> None:
        self.outbox = Outbox()
        self._control = control
        self._topics = topics
        self._origin = origin
        self._steering = steering
        self._discovery = discovery
        self._pacing = Pacing(uniform)
        self._info: dict[str, Any] = {}
        self._info_at = 0.0
        self._seq = 0
        self._announced: set[str] = set()
        self._is_announced = False
        self._inherited: set[str] = set()

    def begin(self) -> None:
        """A new connection: all is told anew, but for events, which wait in the outbox."""
        self.outbox.forget()
        self._pacing.forget()
        self._info = {}
        self._announced.clear()
        self._is_announced = False
        self._inherited.clear()

    def inherit(self, topic: str) -> None:
        """Something of ours is retained there from before: it is taken back unless it is told again."""
        self._inherited.add(topic)

    def status(self, *, online: bool) -> Message:
        """Birth, last will and farewell."""
        word = payloads.status(self._origin, format_timestamp(time.time()), online=online)
        return Message(self._topics.status, payloads.encode(word), retain=True)

    def clear(self, topic: str) -> None:
        """Take back what is retained there."""
        self.outbox.put(Message(topic, b"", retain=True))

    def event(self, happened: Event) -> None:
        """Something that happened."""
        self.outbox.put(Message(self._topics.event, payloads.encode(payloads.event(self._origin, happened))))

    def due(self) -> Iterator[None]:
        """Put what is due into the outbox, a little at a time: in between it is for others to do something."""
        snapshots = []
        for number, seen in enumerate(self._control.supervisor.each(), 1):
            snapshots.append(seen)
            if number % SCAN_BATCH_SIZE == 0:
                yield
        ts, now = format_timestamp(time.time()), time.monotonic()
        due = self._pacing.next(snapshots, now)
        self._tell_info(ts, now, len(snapshots))
        if self._discovery is not None:
            self._announce(self._discovery, [seen.name for seen in snapshots])
        for number, seen in enumerate((*due.states, *due.stats)):
            if number % _AT_A_TIME == 0:
                yield
            self._tell(seen, ts, is_whole=number < len(due.states))
        for name in due.removed:
            self.clear(self._topics.state_of(name))
        if self._inherited:
            self._take_back({seen.name for seen in snapshots})

    def _tell(self, seen: Snapshot, ts: str, *, is_whole: bool) -> None:
        """The state of a tunnel, or its numbers alone."""
        if is_whole:
            self._seq += 1
            state = payloads.state(self._origin, seen.as_json(), self._seq, ts)
            self.outbox.put(Message(self._topics.state_of(seen.name), payloads.encode(state), retain=True))
        else:
            stats = payloads.stats(self._origin, seen.as_json(), ts)
            self.outbox.put(Message(self._topics.stats_of(seen.name), payloads.encode(stats), qos=0))

    def _take_back(self, names: set[str]) -> None:
        """What an earlier life left behind; configurations first, they read the states."""
        kept = {self._topics.state_of(name) for name in names}
        if self._discovery is not None:
            configurations = (self._discovery.of_host(), *map(self._discovery.of_tunnel, names))
            kept |= {message.topic for messages in configurations for message in messages}
        left = self._inherited - kept
        for topic in sorted(left, key=lambda topic: topic.startswith(self._topics.base)):
            self.clear(topic)
        self._inherited.clear()

    def _tell_info(self, ts: str, now: float, tunnels: int) -> None:
        info = payloads.info(
            self._origin,
            self._control.head(),
            ts,
            tunnels=tunnels,
            commands=self._steering.why_closed() is None,
            discovery=None if self._discovery is None else self._discovery.prefix,
        )
        if {**info, "ts": self._info.get("ts")} != self._info or now - self._info_at >= REPEAT:
            self._info, self._info_at = info, now
            self.outbox.put(Message(self._topics.info, payloads.encode(info), retain=True))

    def _announce(self, discovery: Discovery, names: list[str]) -> None:
        """Before a state is cleared its readers are: they could make nothing of it."""
        if not self._is_announced:
            self._is_announced = True
            for message in discovery.of_host():
                self.outbox.put(message)
        for name in names:
            if name not in self._announced:
                for message in discovery.of_tunnel(name):
                    self.outbox.put(message)
        for name in self._announced.difference(names):
            for message in discovery.of_tunnel(name):
                self.clear(message.topic)
        self._announced = set(names)
