"""All hosts of a broker as a source of the dashboard: what they publish comes in, commands go out."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final, Protocol, Self

from orchestrator.mqtt.broker import BrokerError
from orchestrator.mqtt.reader import FleetReader, NoAnswerError
from orchestrator.mqtt.session import BrokerClient
from orchestrator.mqtt.topics import EVERY_HOST, STATS, HostTopics
from tui.hosts import FEW, HostsPicture
from tui.sources import Change, Happened, Lost, Nature, RefusedError, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Sequence
    from typing import Any

    from orchestrator.mqtt.broker import Broker
    from orchestrator.mqtt.fleet import Fleet
    from orchestrator.mqtt.payloads import ResponsePayload
    from orchestrator.mqtt.topics import ParsedTopic
    from tui.model import Json
    from tui.sources import Heard

_INTERVAL: Final = 0.25  # seconds between two changes of the picture
_SLOW: Final = 0.5  # the same where there is much to look through
_MANY: Final = 1000  # tunnels
_KEPT: Final = 2000  # events
_UNREAD: Final = 1000  # events that wait for whoever follows the log

BROKER: Final = Nature("broker", tells_log=False)


class Reads(Protocol):
    """What is wanted of a reader."""

    fleet: Fleet
    connection_error: str | None

    async def run(self) -> None:
        """Read for ever."""

    async def set_extra_topics(self, topics: frozenset[str]) -> None:
        """Hear these besides. Raises BrokerError."""

    async def send_command(self, host: str, op: str, target: str | None) -> ResponsePayload:
        """Send a command to a host; its response. Raises BrokerError, NoAnswerError."""


class FleetSource:
    """One broker. Tunnels are called ``HOST/NAME``."""

    nature = BROKER

    def __init__(
        self,
        broker: Broker,
        make: Callable[..., Reads] = FleetReader,
        *,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._broker = broker
        self._now = now
        self._wall = wall
        self._reader = make(broker, on_message=self._word, on_event=self._event)
        self._picture: HostsPicture | None = None
        self._pictured: Fleet | None = None
        self._looked_at: frozenset[str] = frozenset()
        self._topics: frozenset[str] = frozenset()
        self._events: deque[Json] = deque(maxlen=_KEPT)
        self._fresh: deque[Json] = deque(maxlen=_UNREAD)
        self._following: set[asyncio.Queue[Json]] = set()
        self._trouble = self._reader.connection_error
        """what was last told of it; at first it is only that nobody has tried yet"""

    @property
    def place(self) -> str:
        """The broker's URL, without user and password."""
        return str(self._broker)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """There is nothing that outlives ``watch``."""

    # -- what comes in -----------------------------------------------------------------------------------------------

    async def watch(self) -> AsyncIterator[Heard]:
        """Everything that happens on the hosts; a loss of the broker is mended by the reader."""
        async with _beside(self._reader.run(), self._attend()) as working:
            while True:
                for heard in self._heard():
                    yield heard
                await asyncio.wait(working, timeout=self._pause, return_when=asyncio.FIRST_COMPLETED)
                for ended in working:
                    if ended.done():
                        ended.result()  # neither ends by itself: it is a defect, and shall be seen

    @property
    def _pause(self) -> float:
        return _SLOW if self._picture is not None and self._picture.count > _MANY else _INTERVAL

    def _heard(self) -> list[Heard]:
        reader = self._reader
        if reader.connection_error is not None:
            if reader.connection_error == self._trouble:
                return []
            self._trouble = reader.connection_error
            return [Lost(reader.connection_error)]
        heard: list[Heard] = []
        if self._picture is None or reader.fleet is not self._pictured or self._trouble is not None:
            self._trouble = None
            self._pictured = reader.fleet
            self._picture = HostsPicture(reader.fleet, self._now, self._wall)
            heard.append(Status(self._picture.whole()))
        elif (data := self._picture.changes()) is not None:
            heard.append(Change(data))
        heard += map(Happened, self._fresh)
        self._fresh.clear()
        return heard

    def _word(self, spot: ParsedTopic) -> None:
        if self._picture is not None:
            self._picture.hear(spot)

    def _event(self, host: str, event: dict[str, Any]) -> None:
        name = event.get("tunnel")
        told = {**event, "host": host, "tunnel": f"{host}/{name}" if name else host}
        self._events.append(told)
        self._fresh.append(told)
        for queue in self._following:
            if not queue.full():
                queue.put_nowait(told)

    # -- what is looked at -------------------------------------------------------------------------------------------

    def follow(self, names: Collection[str]) -> None:
        """Statistics come every two seconds from each tunnel that is busy: of ten thousand, nobody reads them all."""
        self._looked_at = frozenset(names)

    async def _attend(self) -> None:
        """Have the broker send the numbers of what is looked at."""
        while True:
            await asyncio.sleep(_INTERVAL)
            picture = self._picture
            if picture is None or self._reader.connection_error is not None:
                continue
            live = None if picture.count <= FEW else self._looked_at
            picture.follow(live)
            topics = frozenset({EVERY_HOST.of(STATS)} if live is None else map(_stats_of, live))
            if topics != self._topics:
                self._topics = topics
                with contextlib.suppress(BrokerError):  # the connection is over, and the reader sees it too
                    await self._reader.set_extra_topics(topics)

    async def logs(self, names: Sequence[str], lines: int) -> AsyncIterator[Json]:
        """What happened to some tunnels since the dashboard was opened, then what happens; the log is not told."""
        queue: asyncio.Queue[Json] = asyncio.Queue(_UNREAD)
        self._following.add(queue)
        try:
            for event in [event for event in self._events if not names or event["tunnel"] in names][-lines:]:
                yield event
            while True:
                event = await queue.get()
                if not names or event["tunnel"] in names:
                    yield event
        finally:
            self._following.discard(queue)

    async def events(self, lines: int) -> list[Json]:
        """What happened since the dashboard was opened."""
        return list(self._events)[-lines:]

    async def tunnel(self, name: str) -> Json:
        """What else there is to say of it."""
        host, _, tunnel = name.partition("/")
        note = f"URL, settings and log are not told to the broker; on {host}: nodepass-orch logs {tunnel}"
        return {"name": name, "note": note}

    # -- what goes out -----------------------------------------------------------------------------------------------

    async def command(self, verb: str, name: str) -> Json:
        """Tell one tunnel; what its host answers."""
        host, _, tunnel = name.partition("/")
        return await self._tell(host, verb, tunnel)

    async def plan(self) -> Json:
        """Hosts do not tell it."""
        raise RefusedError("what a reload would change is known on the host alone: nodepass-orch plan")

    async def reload(self, host: str = "") -> Json:
        """Have a host read its file again; the result per entry."""
        return await self._tell(host, "reload", None)

    async def _tell(self, host: str, verb: str, target: str | None) -> Json:
        try:
            answer = await self._reader.send_command(host, verb, target)
        except (BrokerError, NoAnswerError) as error:
            raise RefusedError(str(error)) from None
        if not answer.ok:
            raise RefusedError(answer.error or f"{host} refused the command without a reason")
        return dict(answer.result or {})


def _stats_of(name: str) -> str:
    host, _, tunnel = name.partition("/")
    return HostTopics(host).of(STATS, tunnel)


@contextlib.asynccontextmanager
async def _beside(*works: Coroutine[Any, Any, None]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Tasks that end with the block."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def greet(broker: Broker) -> None:
    """See whether the broker lets us in. Raises BrokerError."""
    async with BrokerClient(broker).session():
        pass
