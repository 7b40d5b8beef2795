"""Reads the whole fleet from a broker, and gives commands to its hosts."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

from orchestrator.mqtt import payloads
from orchestrator.mqtt.broker import BrokerError, Dialer, Session
from orchestrator.mqtt.fleet import ONLINE, Fleet, Json
from orchestrator.mqtt.outbox import Message
from orchestrator.mqtt.together import together
from orchestrator.mqtt.topics import EVERY_HOST, HostTopics, Spot, parse
from tunnel.model.times import format_timestamp
from tunnel.runtime.backoff import retry_delay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import aiomqtt

    from orchestrator.mqtt.broker import Broker

PATIENCE: Final = 10.0
"""Seconds for a host's answer."""

_AT_A_TIME: Final = 400  # tunnels asked for at once: brokers commonly drop what they are 1,000 messages ahead with
_QUIET: Final = 0.1  # seconds without a word, after which what is retained has been heard
_LONGEST_READING: Final = 30.0  # seconds for all that is retained: a large fleet takes some
_BREATH: Final = 0.05  # seconds between two batches: what is said several times in between is read once
_LONGEST_PAUSE: Final = 10.0
_GRACE: Final = 30.0  # seconds beyond our patience that a command is good for: clocks differ


class NoAnswerError(Exception):
    """A host did not answer; the message is a sentence."""


class Reader:
    """One per broker and screen. ``fleet`` is the picture; ``trouble`` is why it may be old, or None."""

    def __init__(
        self,
        broker: Broker,
        *,
        stats: bool = False,
        on_word: Callable[[Spot], None] = lambda _: None,
        on_event: Callable[[str, Json], None] | None = None,
    ) -> None:
        self.broker = broker
        self.fleet = self._coming = Fleet()
        self.trouble: str | None = "not connected yet"
        self._dialer = Dialer(broker)
        self._session: Session | None = None
        self._reply = secrets.token_hex(8)
        self._asked: dict[str, asyncio.Future[Json]] = {}
        self._on_word = on_word
        self._on_event = on_event
        self._old_words = 0
        self._unread: dict[str, None] = {}  # hosts whose tunnels have not been asked for, in the order of their coming
        self._followed: set[str] = set()
        self._came = asyncio.Event()
        topics = [EVERY_HOST.status, EVERY_HOST.info]
        topics += [EVERY_HOST.stats] * stats + [EVERY_HOST.event] * (on_event is not None)
        self._topics: Iterable[str] = tuple(topics)
        self._besides: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Read for ever; a loss is shown in ``trouble`` and mended."""
        attempt = 0
        while True:
            try:
                async with self.reading() as lost:
                    attempt = 0
                    await lost
            except BrokerError as error:
                self.trouble = str(error)
            attempt += 1
            await asyncio.sleep(retry_delay(attempt, _LONGEST_PAUSE, random.uniform))

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[asyncio.Future[None]]:
        """A connection, entered when everything retained has been read. A loss ends the block with BrokerError.

        What it gives can be awaited by whoever only waits for that.
        """
        async with self._dialer.session(is_newest_enough=True) as session, together() as start:
            self._coming = Fleet()
            self._unread.clear()
            self._followed.clear()
            start(self._listen(session))
            start(self._follow(session))
            await session.subscribe(*self._topics, *self._besides)
            for _ in ("hosts", "tunnels"):
                # Its agreement comes after what it was asked for before, from most brokers; the rest speaks up soon.
                await session.subscribe(EVERY_HOST.answer(self._reply), qos=1, patience=_LONGEST_READING)
                await self._until_quiet()
            self.fleet, self._session, self.trouble = self._coming, session, None
            try:
                yield asyncio.get_running_loop().create_future()
            finally:
                self._session = None
                for waiting in self._asked.values():
                    if not waiting.done():
                        waiting.set_exception(BrokerError("the connection to the broker was lost before the answer"))

    async def _until_quiet(self) -> None:
        until = time.monotonic() + _LONGEST_READING
        heard = -1
        while (heard != self._old_words or self._unread) and time.monotonic() < until:
            heard = self._old_words
            await asyncio.sleep(_QUIET)

    async def hear_also(self, topics: frozenset[str]) -> None:
        """Hear these besides, such as statistics of tunnels that somebody looks at, and no others any more.

        Raises BrokerError.
        """
        left, new = self._besides - topics, topics - self._besides
        self._besides = topics
        if self._session is not None and left:
            await self._session.unsubscribe(*left)
        if self._session is not None and new:
            await self._session.subscribe(*new)

    async def _follow(self, session: Session) -> None:
        """Ask for the tunnels of each host that is heard of, a few hosts at a time.

        The tunnels of a whole large fleet at once are more than a broker keeps for one reader: it would drop some, and
        its agreement too.
        """
        while True:
            await self._came.wait()
            self._came.clear()
            while hosts := self._next_hosts():
                await session.subscribe(*(HostTopics(host).states for host in hosts), patience=_LONGEST_READING)
                for host in hosts:
                    del self._unread[host]

    def _next_hosts(self) -> list[str]:
        hosts: list[str] = []
        room = _AT_A_TIME
        for name in self._unread:
            known = self._coming.hosts.get(name)
            told = known.info.get("tunnels") if known else None
            room -= told if isinstance(told, int) and told > 0 else _AT_A_TIME
            if hosts and room < 0:
                break
            hosts.append(name)
        return hosts

    async def command(self, host: str, op: str, target: str | None, limit: float | None = None) -> Json:
        """Tell a host something; its answer: ``ok``, ``error``, ``result``. Raises BrokerError, NoAnswerError.

        ``limit`` is that of the drain which the command implies, in seconds.
        """
        if self._session is None:
            raise BrokerError(self.trouble or "there is no connection to the broker")
        known = self.fleet.hosts.get(host)
        presence = ONLINE if known is None else known.presence(time.monotonic())
        if presence != ONLINE:
            raise NoAnswerError(f"host {host!r} is {presence}: nobody is there to do it")
        id_ = secrets.token_hex(12)
        good_for = PATIENCE + _GRACE
        order = {
            "v": payloads.VERSION,
            "id": id_,
            "reply": self._reply,
            "op": op,
            "target": target,
            "exp": format_timestamp(time.time() + good_for),
            **({"boot": known.boot} if known is not None and known.boot else {}),
            **({"timeout": limit} if limit is not None else {}),
        }
        answered: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        self._asked[id_] = answered
        try:
            async with asyncio.timeout(PATIENCE):
                message = Message(HostTopics(host).command, payloads.encode(order))
                await self._session.publish(message, expires=good_for)
                return await answered
        except TimeoutError:
            why = "is its name right, and may this user write to it?" if known is None else "may this user write to it?"
            raise NoAnswerError(f"host {host!r} did not answer within {PATIENCE:g} s; {why}") from None
        finally:
            del self._asked[id_]

    async def _listen(self, session: Session) -> None:
        async for batch in session.batches():
            now, wall = time.monotonic(), time.time()
            for message in batch:
                self._take(message, now, wall)
            await asyncio.sleep(_BREATH)

    def _take(self, message: aiomqtt.Message, now: float, wall: float) -> None:
        self._old_words += bool(message.retain)
        spot = parse(str(message.topic))
        if spot is None:
            return
        if spot.host not in self._followed:
            self._followed.add(spot.host)
            self._unread[spot.host] = None
            self._came.set()
        if spot.kind == "rsp":
            self._answered(payloads.parsed(message.payload) or {})
        elif spot.kind == "event":
            event = payloads.decode(message.payload)
            if event is not None and self._on_event is not None:
                self._on_event(spot.host, event)
        elif self._coming.take(spot, message.payload, now, wall, is_retained=bool(message.retain)):
            self._on_word(spot)

    def _answered(self, answer: dict[str, Any]) -> None:
        waiting = self._asked.get(str(answer.get("id")))
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)
