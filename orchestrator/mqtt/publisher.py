"""One host on the broker: its birth, its tunnels, its events, and its commands; for as long as the daemon lives.

Nothing here touches a tunnel: a broker that is slow, deaf or gone costs a bounded amount of memory and a few attempts.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from orchestrator.mqtt import payloads
from orchestrator.mqtt.broker import CREDENTIALS, TAKEN_OVER, BrokerError
from orchestrator.mqtt.configurations import Configurations
from orchestrator.mqtt.rivals import Presence, RivalError, Verdict
from orchestrator.mqtt.standing import BrokerState, Record
from orchestrator.mqtt.telling import Telling
from orchestrator.mqtt.together import together
from orchestrator.mqtt.topics import HostTopics, parse
from orchestrator.supervisor.crash_reports import describe_crash
from orchestrator.supervisor.event_bus import HISTORY_KINDS, is_noteworthy
from tunnel.model.events import EventLog
from tunnel.model.spec import LogLevel
from tunnel.runtime.backoff import retry_delay

if TYPE_CHECKING:
    import aiomqtt

    from orchestrator.mqtt.broker import Dialer, Session
    from orchestrator.mqtt.discovery import Discovery
    from orchestrator.mqtt.outbox import Message
    from orchestrator.mqtt.steering import Steering
    from orchestrator.supervisor.control import ControlService
    from tunnel.model.events import Event

KIND: Final = "mqtt"
"""The kind of events that tell of the broker; they are not told to the broker."""

_LONGEST_PAUSE: Final = 2.0  # seconds between two attempts: a broker that is there again hears all within five
_LONGEST_REST: Final = 10.0  # and between two connections that a broker ended soon: each costs it the whole truth
_WARY_PAUSE: Final = 10.0  # and at the least, where trying again at once would only annoy
_LOOK: Final = 1.0  # seconds between two looks at all tunnels, if no event calls for one
_PAUSE: Final = 0.002  # seconds for visitors between two turns of one look
_BLINK: Final = 0.1  # seconds between two looks at the least, and so many times what a look takes:
_SHARE: Final = 20
_AT_ONCE: Final = 20  # messages that wait for their confirmation; brokers commonly take no more
_ECHO: Final = 5.0  # seconds for our own birth to come back to us
_FAREWELL: Final = 2.0  # seconds for the last words
_BACK: Final = 5.0  # seconds after which a connection that followed on trouble is worth a word
_STEADY: Final = 30.0  # seconds after which a connection that is lost is not one that never worked


class Publisher:
    """The life of a host on the broker. ``run`` until ``close``."""

    def __init__(
        self,
        control: ControlService,
        dialer: Dialer,
        *,
        host: str,
        origin: payloads.Origin,
        steering: Steering,
        discovery: Discovery | None = None,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.host = host
        self._control = control
        self._dialer = dialer
        self._topics = HostTopics(host)
        self._steering = steering
        self._event_log = EventLog("", control.bus.publish)
        self._uniform = uniform
        self._telling = Telling(
            control, topics=self._topics, origin=origin, steering=steering, discovery=discovery, uniform=uniform
        )
        self._configurations = Configurations(self._topics, host, discovery)
        self._presence = Presence(origin)
        self._standing = Record()
        self._look = asyncio.Event()
        self._echoed = asyncio.Event()
        self._closing = asyncio.Event()
        self._told: set[str] = set()
        """the troubles that were said, until their end is said too: each is said once, however often it comes"""

    def status(self) -> dict[str, Any]:
        """What ``ps --json`` shows of the broker."""
        return {**self._standing.as_json(), "broker": str(self._dialer.broker), "host": self.host}

    # --- the life -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep a connection; whatever goes wrong is told and tried again."""
        self._control.bus.subscribe(self._hear)
        attempt = 0
        try:
            while not self._closing.is_set():
                began = time.monotonic()
                pause, longest = 0.0, _LONGEST_PAUSE
                try:
                    await self._live()
                except RivalError as rival:
                    self._trouble(rival.state, str(rival))
                    await self._watch_rival()
                    continue
                except BrokerError as error:
                    if self._standing.is_online:
                        longest = _LONGEST_REST
                    self._trouble(error.state, str(error))
                    pause = _WARY_PAUSE if error.code in CREDENTIALS or error.code == TAKEN_OVER else 0.0
                except Exception as error:  # noqa: BLE001  a defect here must not reach the tunnels
                    self._trouble(BrokerState.FAILED, describe_crash(error))
                    pause = _WARY_PAUSE
                attempt = 1 if time.monotonic() - began > _STEADY else attempt + 1
                await self._rest(pause + retry_delay(attempt, longest, self._uniform))
        finally:
            self._control.bus.unsubscribe(self._hear)

    def close(self) -> None:
        """Say the last words, as far as the broker takes them, and end."""
        self._closing.set()
        self._look.set()

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()

    async def _live(self) -> None:
        """One connection, from birth to loss."""
        will = self._telling.status(online=False)
        async with self._dialer.session(will=will) as session, together() as start:
            self._presence.begin()
            self._echoed.clear()
            self._telling.begin()
            start(self._listen(session))
            await session.subscribe(self._topics.status, qos=1)
            # Its agreement comes after what is retained: whoever is here already has been heard by then.
            await session.subscribe(self._topics.states, self._topics.info)
            await session.subscribe(self._topics.command, qos=1, as_published=True)
            self._presence.check(self.host)
            await self._configurations.look_for(session, self._event_log)
            await session.publish(self._telling.status(online=True))
            await self._birth_heard()
            self._presence.born()
            await session.unsubscribe(self._topics.states, self._topics.info)
            self._standing.enter(BrokerState.ONLINE)
            entered = time.monotonic()
            if not self._told:
                self._say(LogLevel.INFO, f"published to {self._dialer.broker} as {self.host}")
            start(self._configurations.settle(session, self._event_log))
            start(self._steering.obey(session))
            start(self._pump(session))
            while not self._closing.is_set():
                spent = await self._tell()
                if self._told and time.monotonic() - entered >= _BACK:
                    self._told.clear()
                    self._say(LogLevel.INFO, f"published to {self._dialer.broker} as {self.host} again")
                await asyncio.sleep(max(_BLINK, _SHARE * spent))
                await self._until_next_look()
            try:
                async with asyncio.timeout(_FAREWELL):
                    await self._farewell(session)
            except TimeoutError:
                session.hang_up()  # the broker says for us that we are gone

    async def _tell(self) -> float:
        """Put what is due into the outbox, in several turns of the loop; the seconds of it that this took."""
        spent, began = 0.0, time.monotonic()
        for _ in self._telling.due():
            spent += time.monotonic() - began
            await asyncio.sleep(_PAUSE)
            began = time.monotonic()
        return spent + time.monotonic() - began

    async def _birth_heard(self) -> None:
        """A broker that keeps our words to itself confirms them all the same."""
        try:
            async with asyncio.timeout(_ECHO):
                await self._echoed.wait()
        except TimeoutError:
            broker = self._dialer.broker
            who = f"user {broker.username!r}" if broker.username else "a client without a user"
            raise BrokerError(
                f"the broker {broker} drops what is published to {self._topics.base}/: let {who} write and read there",
                min(CREDENTIALS),
                BrokerState.REFUSED,
            ) from None

    async def _until_next_look(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK):
                await self._look.wait()
        self._look.clear()

    async def _farewell(self, session: Session) -> None:
        await self._tell()
        while batch := self._telling.outbox.take(_AT_ONCE):
            await publish_all(session, batch)
        await session.publish(self._telling.status(online=False))

    async def _watch_rival(self) -> None:
        """Another host has our name: without a word or a will of ours, wait until it is gone."""
        try:
            async with self._dialer.session(is_onlooker=True) as session, together() as start:
                self._presence.watch(time.monotonic())
                start(self._listen(session))
                await session.subscribe(self._topics.status, self._topics.info, self._topics.states)
                while self._presence.is_occupied(time.monotonic()) and not self._closing.is_set():
                    await self._rest(_LOOK)
        except (BrokerError, RivalError) as error:
            self._trouble(error.state, str(error))
            await self._rest(self._uniform(_LOOK, _WARY_PAUSE))

    # --- what is told ---------------------------------------------------------------------------------------------

    def _hear(self, event: Event) -> None:
        if event.kind == KIND:
            return
        if event.kind in HISTORY_KINDS:
            self._look.set()
        if is_noteworthy(event):
            self._telling.event(event)

    async def _pump(self, session: Session) -> None:
        while True:
            await self._telling.outbox.filled()
            if self._telling.outbox.dropped:
                count, self._telling.outbox.dropped = self._telling.outbox.dropped, 0
                self._say(
                    LogLevel.WARN, f"{count} events were not published: the broker took none of them for too long"
                )
            batch = self._telling.outbox.take(_AT_ONCE)
            try:
                await publish_all(session, batch)
            except BaseException:
                self._telling.outbox.put_back(batch)
                raise

    # --- what is heard --------------------------------------------------------------------------------------------

    async def _listen(self, session: Session) -> None:
        async for batch in session.batches():
            for message in batch:
                self._take(message)

    def _take(self, message: aiomqtt.Message) -> None:
        spot = parse(str(message.topic))
        is_retained = bool(message.retain)
        if spot is None and message.payload and self._configurations.hear(str(message.topic), is_retained=is_retained):
            self._telling.inherit(str(message.topic))
        if spot is None or spot.host != self.host:
            return
        if spot.kind == "cmd":
            if message.payload:  # our own clearing comes back as well, and is not to be cleared again
                self._steering.take(message.payload, is_retained=is_retained)
                if is_retained:
                    self._telling.clear(self._topics.command)
            return
        payload = payloads.decode(message.payload)
        if spot.kind == "state" and is_retained:
            self._telling.inherit(str(message.topic))
        if spot.kind == "info" and is_retained and payload is not None:
            self._configurations.were_at(payload.get("discovery"))
        verdict = self._presence.heard(self.host, spot.kind, payload or {}, time.monotonic(), is_retained=is_retained)
        if verdict is Verdict.ECHO:
            self._echoed.set()
        elif verdict is Verdict.CHALLENGED:
            self._event_log.warn_throttled(
                KIND, "rival", f"another host came as {self.host!r} on this broker, and has to yield"
            )
        if (
            verdict in {Verdict.CHALLENGED, Verdict.CONTRADICTED}
            and self._standing.is_online
            and not self._closing.is_set()
        ):
            self._telling.outbox.put(self._telling.status(online=True))

    # --- how it stands --------------------------------------------------------------------------------------------

    def _trouble(self, state: BrokerState, reason: str) -> None:
        self._standing.enter(state, reason)
        if reason not in self._told:
            self._told.add(reason)
            self._say(LogLevel.WARN, f"{reason}; tunnels are not concerned")

    def _say(self, level: LogLevel, text: str) -> None:
        self._control.bus.emit(level, KIND, text)


async def publish_all(session: Session, batch: list[Message]) -> None:
    """Publish together, so that a long way costs its time only once. Raises the first error."""
    results = await asyncio.gather(
        *(_in_turn(session, message, turn) for turn, message in enumerate(batch)), return_exceptions=True
    )
    for result in results:
        if isinstance(result, BaseException):
            raise result


async def _in_turn(session: Session, message: Message, turn: int) -> None:
    """Publish in that turn of the loop from now, so that visitors need not wait for the whole batch."""
    for _ in range(turn):
        await asyncio.sleep(0)
    await session.publish(message)
