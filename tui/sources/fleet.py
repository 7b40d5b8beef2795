"""All hosts of a broker as a source: reads what they publish, sends them commands."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, cast

from orchestrator.mqtt.broker import BrokerError
from orchestrator.mqtt.reader import FleetReader, NoAnswerError
from orchestrator.mqtt.session import BrokerClient
from orchestrator.mqtt.topics import EVERY_HOST, STATS, HostTopics
from tui.sources.base import (
    Disconnected,
    EventReceived,
    SourceError,
    SourceInfo,
)
from tui.sources.fleet_feed import MAX_LIVE_FLEET, FleetFeed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence

    from orchestrator.mqtt.broker import Broker
    from orchestrator.mqtt.fleet import Fleet
    from orchestrator.mqtt.payloads import ResponsePayload
    from orchestrator.mqtt.topics import ParsedTopic
    from orchestrator.status.json_types import (
        CommandResultJson,
        KickJson,
        PlanJson,
        ReloadJson,
        TrafficJson,
        TunnelTestJson,
        VisitorsJson,
    )
    from tui.model.messages import EventData, TunnelDetails
    from tui.sources.base import SourceMessage

_UPDATE_INTERVAL_S: Final = 0.25
"""Between two changes of the view."""
_LARGE_UPDATE_INTERVAL_S: Final = 0.5
"""The same for a large fleet, which takes longer to compare."""
_LARGE_FLEET: Final = 1000
"""Tunnels."""
_MAX_EVENTS: Final = 2000
_MAX_UNREAD_EVENTS: Final = 1000
"""Events queued for each reader of the log."""


class FleetMessages(Protocol):
    """What the source needs of the reader of a broker."""

    fleet: Fleet
    connection_error: str | None

    async def run(self) -> None:
        """Read messages without end."""

    async def set_extra_topics(self, topics: frozenset[str]) -> None:
        """Replace the additional subscriptions. Raises BrokerError."""

    async def send_command(
        self, host: str, op: str, target: str | None, *, member: Mapping[str, str] | None = None
    ) -> ResponsePayload:
        """Send a command to a host and return its response. Raises BrokerError, NoAnswerError."""


class FleetSource:
    """One broker. Tunnels have the names ``HOST/NAME``. Its tasks run while ``watch`` is iterated."""

    info = SourceInfo("broker", has_log=False)

    def __init__(
        self,
        broker: Broker,
        make_reader: Callable[..., FleetMessages] = FleetReader,
        *,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._broker = broker
        self._now = now
        self._wall = wall
        self._reader = make_reader(broker, on_message=self._note_change, on_event=self._add_event)
        self._feed: FleetFeed | None = None
        self._fed_fleet: Fleet | None = None
        self._visible: frozenset[str] = frozenset()
        self._topics: frozenset[str] = frozenset()
        self._events: deque[EventData] = deque(maxlen=_MAX_EVENTS)
        self._new_events: deque[EventData] = deque(maxlen=_MAX_UNREAD_EVENTS)
        self._log_queues: set[asyncio.Queue[EventData]] = set()
        self._reported_error = self._reader.connection_error
        """the last reported error; the initial one only means that no connection was tried yet"""

    @property
    def place(self) -> str:
        """The broker's URL, without user and password."""
        return str(self._broker)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Do nothing: nothing outlives ``watch``."""

    # -- messages ----------------------------------------------------------------------------------------------------

    async def watch(self) -> AsyncIterator[SourceMessage]:
        """Yield messages without end; the reader reconnects to the broker."""
        async with _background_tasks(self._reader.run(), self._maintain_subscriptions()) as tasks:
            while True:
                for message in self._next_messages():
                    yield message
                await asyncio.wait(tasks, timeout=self._interval, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    if task.done():
                        task.result()  # a task ends early only by a defect: raise it here

    @property
    def _interval(self) -> float:
        is_large = self._feed is not None and self._feed.tunnel_count > _LARGE_FLEET
        return _LARGE_UPDATE_INTERVAL_S if is_large else _UPDATE_INTERVAL_S

    def _next_messages(self) -> list[SourceMessage]:
        reader = self._reader
        if reader.connection_error is not None:
            if reader.connection_error == self._reported_error:
                return []
            self._reported_error = reader.connection_error
            return [Disconnected(reader.connection_error)]
        if self._feed is None or reader.fleet is not self._fed_fleet or self._reported_error is not None:
            self._reported_error = None
            self._fed_fleet = reader.fleet
            self._feed = FleetFeed(reader.fleet, self._now, self._wall)
        message = self._feed.next_message()
        messages: list[SourceMessage] = [] if message is None else [message]
        messages += map(EventReceived, self._new_events)
        self._new_events.clear()
        return messages

    def _note_change(self, spot: ParsedTopic) -> None:
        if self._feed is not None:
            self._feed.note_change(spot)

    def _add_event(self, host: str, event: dict[str, Any]) -> None:
        name = event.get("tunnel")
        named = cast("EventData", {**event, "host": host, "tunnel": f"{host}/{name}" if name else host})
        self._events.append(named)
        self._new_events.append(named)
        for queue in self._log_queues:
            if not queue.full():
                queue.put_nowait(named)

    # -- requests ----------------------------------------------------------------------------------------------------

    def set_visible(self, names: Collection[str]) -> None:
        """Subscribe to the statistics of these tunnels.

        Every busy tunnel publishes them each two seconds: those of ten thousand are too many to read.
        """
        self._visible = frozenset(names)

    async def _maintain_subscriptions(self) -> None:
        """Subscribe to the statistics of the visible tunnels; in a small fleet, of all."""
        while True:
            await asyncio.sleep(_UPDATE_INTERVAL_S)
            feed = self._feed
            if feed is None or self._reader.connection_error is not None:
                continue
            live = None if feed.tunnel_count <= MAX_LIVE_FLEET else self._visible
            feed.set_live(live)
            topics = frozenset({EVERY_HOST.of(STATS)} if live is None else map(_stats_topic, live))
            if topics != self._topics:
                self._topics = topics
                with contextlib.suppress(BrokerError):  # the connection is lost, and the reader reports it
                    await self._reader.set_extra_topics(topics)

    async def stream_log(self, names: Sequence[str], lines: int) -> AsyncIterator[EventData]:
        """Yield the events of some tunnels since the dashboard was opened, then each new one; hosts publish no log."""
        queue: asyncio.Queue[EventData] = asyncio.Queue(_MAX_UNREAD_EVENTS)
        self._log_queues.add(queue)
        try:
            for event in [event for event in self._events if not names or event["tunnel"] in names][-lines:]:
                yield event
            while True:
                event = await queue.get()
                if not names or event["tunnel"] in names:
                    yield event
        finally:
            self._log_queues.discard(queue)

    async def fetch_events(self, lines: int) -> list[EventData]:
        """Return the events since the dashboard was opened."""
        return list(self._events)[-lines:]

    async def fetch_tunnel(self, name: str) -> TunnelDetails:
        """Return a note on what the broker does not have."""
        host, _, tunnel = name.partition("/")
        note = f"URL, settings and log are not published to the broker; on {host}: nodepass-orch logs {tunnel}"
        return {"name": name, "note": note}

    async def fetch_visitors(self, names: Sequence[str]) -> VisitorsJson:
        """Raise SourceError: addresses of visitors are not published."""
        raise SourceError("visitors are not published to the broker: run nodepass-orch visitors on the host")

    async def kick(self, which: str, names: Sequence[str]) -> KickJson:
        """Raise SourceError, as ``fetch_visitors``."""
        raise SourceError("visitors are not published to the broker: run nodepass-orch kick on the host")

    async def test(self, name: str) -> TunnelTestJson:
        """Raise SourceError: a test is not a command of the broker."""
        raise SourceError("tests are made on the host: run nodepass-orch test there")

    async def fetch_plan(self) -> PlanJson:
        """Raise SourceError: hosts do not publish their plans."""
        raise SourceError("only the host knows what a reload would change: run nodepass-orch plan there")

    async def fetch_traffic(self, name: str, step: str, days: int) -> TrafficJson:
        """Raise SourceError: hosts do not publish their histories."""
        raise SourceError("only the host knows what its tunnels carried: run nodepass-orch traffic there")

    # -- commands ----------------------------------------------------------------------------------------------------

    async def send_command(self, verb: str, name: str, member: Mapping[str, str] | None = None) -> CommandResultJson:
        """Send a command for one tunnel, or one link or target of it, to its host and return the result."""
        host, _, tunnel = name.partition("/")
        return cast("CommandResultJson", await self._command(host, verb, tunnel, member))

    async def reload(self, host: str = "") -> ReloadJson:
        """Have a host reload its file; return the result per entry."""
        result = await self._command(host, "reload", None)
        return {"generation": 0, "ok": True, "error": None, "results": {}, **cast("ReloadJson", result)}

    async def _command(
        self, host: str, verb: str, target: str | None, member: Mapping[str, str] | None = None
    ) -> object:
        try:
            response = await self._reader.send_command(host, verb, target, member=member)
        except (BrokerError, NoAnswerError) as error:
            raise SourceError(str(error)) from None
        if not response.ok:
            raise SourceError(response.error or f"{host} refused the command without a reason")
        return response.result or {}


def _stats_topic(name: str) -> str:
    host, _, tunnel = name.partition("/")
    return HostTopics(host).of(STATS, tunnel)


@contextlib.asynccontextmanager
async def _background_tasks(*coroutines: Coroutine[Any, Any, None]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Run tasks until the end of the block, then cancel them."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def check_broker(broker: Broker) -> None:
    """Connect to the broker once. Raises BrokerError if it does not accept the connection."""
    async with BrokerClient(broker, is_reader=True).session():
        pass
