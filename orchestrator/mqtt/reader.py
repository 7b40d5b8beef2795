"""Reads all hosts of a broker, and sends commands to them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from orchestrator.errors import OrchestratorError
from orchestrator.mqtt import payloads
from orchestrator.mqtt.broker import BrokerError, publication_refused
from orchestrator.mqtt.commands import PING_OP
from orchestrator.mqtt.fleet import GONE, ONLINE, SILENT, Fleet
from orchestrator.mqtt.payloads import CommandPayload, ResponsePayload
from orchestrator.mqtt.session import BrokerClient, BrokerSession
from orchestrator.mqtt.topics import COMMAND, EVENT, EVERY_HOST, INFO, RESPONSE, STATE, STATS, STATUS, HostTopics, parse
from orchestrator.process.setup import garbage_collector_paused
from orchestrator.process.task_scope import StartTask, task_scope
from tunnel.model.times import format_timestamp
from tunnel.runtime.backoff import retry_delay

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from orchestrator.mqtt.broker import Broker
    from orchestrator.mqtt.broker_socket import ReceivedMessage
    from orchestrator.mqtt.topics import ParsedTopic
    from orchestrator.status.json_types import EventJson

RESPONSE_TIMEOUT_S: Final = 10.0
"""For the response of a host."""
PING_TIMEOUT_S: Final = 2.0
"""For the answer of a host that seems to be silent."""

# mosquitto drops what it cannot send for a client beyond 1,000 messages. Two subscriptions at a time, because a busy
# machine takes long to wake the broker and the reader in turn: each would wait for the other once per subscription.
_TUNNELS_PER_SUBSCRIPTION: Final = 400
_SUBSCRIPTIONS_AT_ONCE: Final = 2
_QUIET_AFTER_S: Final = 0.1  # without a retained message: all of them have arrived
_READ_TIMEOUT_S: Final = 30.0  # for all retained messages: a large fleet takes some time
_BATCH_INTERVAL_S: Final = 0.05  # between two batches: several messages on a topic in between are read once
_MAX_RETRY_DELAY_S: Final = 10.0
_VALID_FOR_S: Final = RESPONSE_TIMEOUT_S + 30.0  # of a command: longer than its sender waits, because clocks differ
_STABLE_AFTER_S: Final = 30.0  # after this time a lost connection counts as one that worked


class NoAnswerError(OrchestratorError):
    """A host did not answer; the message is a sentence."""


class _PendingResponse:
    """A response that is awaited from one host."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.response: asyncio.Future[ResponsePayload] = asyncio.get_running_loop().create_future()


class FleetReader:
    """Keeps ``fleet`` up to date; ``connection_error`` is why it may be out of date, or None."""

    def __init__(
        self,
        broker: Broker,
        *,
        with_stats: bool = False,
        wants_tunnels: Callable[[str], bool] = lambda _: True,
        on_message: Callable[[ParsedTopic], None] = lambda _: None,
        on_event: Callable[[str, EventJson], None] | None = None,
    ) -> None:
        """``wants_tunnels`` says for the name of a host whether its tunnels are read too, or only what it is."""
        self.broker = broker
        self._wants_tunnels = wants_tunnels
        self.fleet = self._loading = Fleet()
        self.connection_error: str | None = "not connected yet"
        self._client = BrokerClient(broker, is_reader=True)
        self._session: BrokerSession | None = None
        self._reply = secrets.token_hex(8)
        self._pending: dict[str, _PendingResponse] = {}
        self._on_message = on_message
        self._on_event = on_event
        self._retained_count = 0
        self._batch_interval_s = 0.0
        self._unread_hosts: dict[str, None] = {}  # whose tunnels are not subscribed to yet, in the order of arrival
        self._open_subscriptions = 0  # to tunnels, without SUBACK yet
        self._known_hosts: set[str] = set()
        self._has_unread_hosts = asyncio.Event()
        topics = [STATUS, INFO]
        topics += [STATS] * with_stats + [EVENT] * (on_event is not None)
        self._topics = tuple(map(EVERY_HOST.of, topics))
        self._extra_topics: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Read until cancelled; a loss is shown in ``connection_error`` and retried."""
        attempt = 0
        while True:
            began = time.monotonic()
            try:
                async with self.connected() as forever:
                    await self.ask_silent_hosts()
                    await forever
            except BrokerError as error:
                self.connection_error = str(error)
            attempt = 1 if time.monotonic() - began > _STABLE_AFTER_S else attempt + 1
            await asyncio.sleep(retry_delay(attempt, _MAX_RETRY_DELAY_S, random.uniform))

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[asyncio.Future[None]]:
        """A connection for a block, entered when all retained messages have been read. A loss raises BrokerError.

        Gives a future that is never done, for a block that only waits for the loss.
        """
        async with self._client.session(keep_newest_only=True) as session, task_scope() as start:
            self._loading = Fleet()
            self._batch_interval_s = 0.0
            self._unread_hosts.clear()
            self._has_unread_hosts.clear()
            self._open_subscriptions = 0
            self._known_hosts.clear()
            start(self._receive(session))
            self._start_subscribing(session, start)
            with garbage_collector_paused():
                await self._read_retained(session)
            self.fleet, self._session, self.connection_error = self._loading, session, None
            self._batch_interval_s = _BATCH_INTERVAL_S
            session.read_at_intervals()
            try:
                yield asyncio.get_running_loop().create_future()
            finally:
                self._session = None
                for pending in self._pending.values():
                    if not pending.response.done():
                        pending.response.set_exception(
                            BrokerError("the connection to the broker was lost before the answer")
                        )

    async def _read_retained(self, session: BrokerSession) -> None:
        await session.subscribe(*self._topics, *self._extra_topics)
        for _ in ("hosts", "tunnels"):
            # From most brokers SUBACK arrives after the retained messages of earlier subscriptions.
            await session.subscribe(EVERY_HOST.of(RESPONSE, self._reply), qos=1, timeout_s=_READ_TIMEOUT_S)
            await self._wait_until_quiet()

    async def _wait_until_quiet(self) -> None:
        deadline = time.monotonic() + _READ_TIMEOUT_S
        count = -1
        while (count != self._retained_count or self._awaits_tunnels) and time.monotonic() < deadline:
            count = self._retained_count
            await asyncio.sleep(_QUIET_AFTER_S)

    @property
    def _awaits_tunnels(self) -> bool:
        return bool(self._unread_hosts or self._open_subscriptions)

    async def set_extra_topics(self, topics: frozenset[str]) -> None:
        """Subscribe to these too, such as statistics of the tunnels on the screen, and to no earlier ones any more.

        Raises BrokerError.
        """
        removed, added = self._extra_topics - topics, topics - self._extra_topics
        self._extra_topics = topics
        if self._session is not None and removed:
            await self._session.unsubscribe(*removed)
        if self._session is not None and added:
            await self._session.subscribe(*added)

    def _start_subscribing(self, session: BrokerSession, start: StartTask) -> None:
        for _ in range(_SUBSCRIPTIONS_AT_ONCE):
            start(self._subscribe_to_tunnels(session))

    async def _subscribe_to_tunnels(self, session: BrokerSession) -> None:
        """Subscribe to the tunnels of each host that is found, a few hosts at a time.

        The retained states of a whole large fleet are more than a broker queues for one client: it would drop some of
        them, and SUBACK too.
        """
        while True:
            await self._has_unread_hosts.wait()
            topics = [HostTopics(host).of(STATE) for host in self._take_hosts()]
            if not topics:
                continue  # another subscription has them
            self._open_subscriptions += 1
            await session.subscribe(*topics, timeout_s=_READ_TIMEOUT_S)
            self._open_subscriptions -= 1

    def _take_hosts(self) -> list[str]:
        """Remove some of the unread hosts: at least one, if there is one."""
        hosts: list[str] = []
        room = _TUNNELS_PER_SUBSCRIPTION
        for name in self._unread_hosts:
            host = self._loading.hosts.get(name)
            count = host.info.tunnels if host else None
            room -= count if count and count > 0 else _TUNNELS_PER_SUBSCRIPTION
            if hosts and room < 0:
                break
            hosts.append(name)
        for name in hosts:
            del self._unread_hosts[name]
        if not self._unread_hosts:
            self._has_unread_hosts.clear()
        return hosts

    async def send_command(
        self,
        host: str,
        op: str,
        target: str | None,
        drain_timeout_s: float | None = None,
        *,
        member: Mapping[str, str] | None = None,
    ) -> ResponsePayload:
        """Send a command to a host and wait for its response. Raises BrokerError, NoAnswerError.

        ``drain_timeout_s`` is the limit of the drain that the command implies; ``member`` is ``{"link": ID}`` or
        ``{"target": ADDRESS}`` if the command concerns only that one of the tunnel ``target``.
        """
        known = self.fleet.hosts.get(host)
        presence = ONLINE if known is None else known.presence(time.monotonic())
        if presence == GONE:
            raise NoAnswerError(f"host {host!r} is gone: it cannot execute commands")
        # A host that seems silent is asked all the same: its clock may differ from ours.
        wall = time.time()
        valid_until = wall + (0.0 if known is None else known.clock_lead_s(wall)) + _VALID_FOR_S
        command = CommandPayload(
            id=secrets.token_hex(12),
            op=op,
            target=target,
            reply=self._reply,
            exp=format_timestamp(valid_until),
            boot=None if known is None else known.boot,
            timeout=drain_timeout_s,
            link=(member or {}).get("link"),
            target_address=(member or {}).get("target"),
        )
        try:
            return await self._request(host, command, RESPONSE_TIMEOUT_S)
        except TimeoutError:
            hint = "may this user write to it?" if known else "check its name, and that this user may write to it"
            if presence == SILENT:
                hint = "it seems to be silent: no message of it is recent by this machine's clock"
            raise NoAnswerError(f"host {host!r} did not answer within {RESPONSE_TIMEOUT_S:g} s; {hint}") from None

    async def ask_silent_hosts(self, timeout_s: float = PING_TIMEOUT_S) -> None:
        """Ask the hosts that seem to be silent whether they are there: a retained message has no age but by clocks.

        Their answers change their presence and show by how much the clocks differ. Raises BrokerError.
        """
        now = time.monotonic()
        silent = [host.name for host in self.fleet if host.presence(now) == SILENT]
        await asyncio.gather(*(self._ping(name, timeout_s) for name in silent))

    async def _ping(self, host: str, timeout_s: float) -> None:
        ping = CommandPayload(id=secrets.token_hex(12), op=PING_OP, target=None, reply=self._reply)
        with contextlib.suppress(TimeoutError, NoAnswerError):  # then the host stays silent
            await self._request(host, ping, timeout_s)

    async def _request(self, host: str, command: CommandPayload, timeout_s: float) -> ResponsePayload:
        """Send a command and return the response. Raises BrokerError, NoAnswerError, TimeoutError."""
        if self._session is None:
            raise BrokerError(self.connection_error or "there is no connection to the broker")
        pending = self._pending[command.id] = _PendingResponse(host)
        try:
            async with asyncio.timeout(timeout_s):
                refused = await self._session.publish(
                    HostTopics(host).message(COMMAND, command), expires_after_s=_VALID_FOR_S
                )
                if refused is not None:
                    raise NoAnswerError(publication_refused(self.broker, refused.topic, refused.code))
                return await pending.response
        finally:
            del self._pending[command.id]

    async def _receive(self, session: BrokerSession) -> None:
        async for batch in session.receive_batches():
            now, wall = time.monotonic(), time.time()
            for message in batch:
                self._receive_message(message, now, wall)
            await asyncio.sleep(self._batch_interval_s)

    def _receive_message(self, message: ReceivedMessage, now: float, wall: float) -> None:
        self._retained_count += message.retain
        topic = parse(message.topic)
        if topic is None:
            return
        if topic.kind == RESPONSE.kind:
            self._receive_response(topic.host, message.payload)
        elif topic.kind == EVENT.kind:
            event = payloads.parse_event(message.payload)
            if event is not None and self._on_event is not None:
                self._on_event(topic.host, event)
        elif self._loading.apply_message(topic, message.payload, now, wall, is_retained=message.retain):
            self._note_host(topic.host)
            self._on_message(topic)

    def _note_host(self, host: str) -> None:
        """Subscribe to the tunnels of a new host. Only a valid message makes a host: topics may have any name."""
        if host not in self._known_hosts and host in self._loading.hosts:
            self._known_hosts.add(host)
            if self._wants_tunnels(host):
                self._unread_hosts[host] = None
                self._has_unread_hosts.set()

    def _receive_response(self, host: str, payload: object) -> None:
        data = payloads.parse_json(payload)
        response = ResponsePayload.from_json(data or {})
        pending = self._pending.get(response.id or "")
        if data is None:
            self._fail_unreadable(host)
        elif pending is not None and pending.host == host and not pending.response.done():
            known = self.fleet.hosts.get(host)
            if known is not None:
                known.note_live_message(time.monotonic(), time.time(), (response.result or {}).get("ts"))
            pending.response.set_result(response)

    def _fail_unreadable(self, host: str) -> None:
        """A response has no id that could be read: if the host owes only one, it is the response to that command."""
        owed = [one for one in self._pending.values() if one.host == host and not one.response.done()]
        if len(owed) == 1:
            limit = f"longer than {payloads.MAX_PAYLOAD_BYTES >> 10} KiB, or not JSON"
            text = f"host {host!r} has answered, but the answer is {limit}; see the result with: nodepass-orch fleet ps"
            owed[0].response.set_exception(NoAnswerError(text))
