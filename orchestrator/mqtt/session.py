"""MQTT sessions with a broker: aiomqtt over a connection of our own, with errors as sentences."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import aiomqtt
from aiomqtt.exceptions import MqttConnectError
from paho.mqtt.client import MQTT_CLEAN_START_FIRST_ONLY, Client
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from orchestrator.mqtt import broker as errors
from orchestrator.mqtt.broker import BrokerError
from orchestrator.mqtt.broker_socket import (
    CLOSE_TIMEOUT_S,
    KEEPALIVE_S,
    MAX_PACKET_BYTES,
    STEP_TIMEOUT_S,
    BrokerSocket,
    PacketSplitter,
    ReceivedMessage,
)
from orchestrator.process.task_scope import task_scope

if TYPE_CHECKING:
    from orchestrator.mqtt.broker import Broker
    from orchestrator.mqtt.topics import OutgoingMessage

_MAX_BUFFERED: Final = 20_000  # received messages, or topics, that wait to be handled
_CONFIRM_TIMEOUT_S: Final = 2 * STEP_TIMEOUT_S  # for PUBACK
_READ_INTERVAL_S: Final = 0.02  # between two reads of a reader that has read what is retained
_TRIES_PER_OLD_VERSION: Final = 3  # of so many attempts without CONNACK the last one is with version 3.1.1
_TRIES_PER_OLD_VERSION_IF_V5_SEEN: Final = 60
_TRIES_PER_OLD_VERSION_OF_READER: Final = 2  # a reader loses nothing with version 3.1.1
_VERSION_REFUSED_CODES: Final = frozenset({1, 132})  # CONNACK of a broker that does not speak the version
_FIRST_FAILURE_CODE: Final = 128  # of SUBACK and PUBACK

_LOG: Final = logging.getLogger("nodepass-orch.mqtt")
_LOG.addHandler(logging.NullHandler())  # complaints of the library reach users as our own sentences
_LOG.propagate = False


class ReceiveBuffer:
    """Received messages that wait to be handled: those with QoS 0, and those of the library, whose queue it is.

    With ``keep_newest_only`` a newer message replaces an older one on its topic, for topics that have a current value.
    """

    _REPLACEABLE: Final = ("/state", "/stats", "/info", "/status")

    def __init__(self, limit: int = _MAX_BUFFERED, *, keep_newest_only: bool) -> None:
        self._limit = limit
        self._keep_newest_only = keep_newest_only
        self._messages: dict[str | int, ReceivedMessage] = {}
        self._count = 0
        self._is_filled = asyncio.Event()

    def qsize(self) -> int:
        """The number of messages."""
        return len(self._messages)

    def put_nowait(self, message: aiomqtt.Message) -> None:
        """Add a message of the library. Raises QueueFull, and the library drops the message."""
        if not self.add(ReceivedMessage(message.topic.value, message.payload, bool(message.retain))):
            raise asyncio.QueueFull

    def add(self, message: ReceivedMessage) -> bool:
        """Add a message; False if there is no room for it."""
        topic = message.topic
        self._count += 1
        key = topic if self._keep_newest_only and topic.endswith(self._REPLACEABLE) else self._count
        if key not in self._messages and len(self._messages) >= self._limit:
            return False
        self._messages.pop(key, None)  # moves to the end: no topic overtakes one that has waited longer
        self._messages[key] = message
        self._is_filled.set()
        return True

    async def get(self) -> ReceivedMessage:
        """Wait for a message and remove it."""
        await self._wait_filled()
        return self._messages.pop(next(iter(self._messages)))

    async def get_all(self) -> list[ReceivedMessage]:
        """Wait for messages and remove them all: without a task per message, which the library makes."""
        await self._wait_filled()
        messages, self._messages = list(self._messages.values()), {}
        return messages

    async def _wait_filled(self) -> None:
        while not self._messages:
            self._is_filled.clear()
            await self._is_filled.wait()


@dataclass(frozen=True, slots=True)
class RefusedPublication:
    """A message that the broker did not accept: the reason code of its PUBACK (MQTT 5, section 3.4.2.1)."""

    topic: str
    code: int


class _ConfirmingClient(aiomqtt.Client):
    """The library's client, with the reason codes of PUBACK, which it drops."""

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  the library's own
        self._confirmations: dict[int, asyncio.Future[int]] = {}
        super().__init__(*arguments, **options)
        self.discard_errors()

    def discard_errors(self) -> None:
        """Retrieve the errors that the library holds, or will hold, for its next caller.

        asyncio reports an error that is never retrieved. The library replaces a future while it logs in or out, and
        drops the error of the former one.
        """
        for held in (self._connected, self._disconnected):
            held.add_done_callback(_retrieve_error)

    async def publish_confirmed(
        self, message: OutgoingMessage, properties: Properties | None, timeout_s: float
    ) -> int | None:
        """Publish; return the reason code of PUBACK, None with QoS 0. Raises MqttError, TimeoutError."""
        info = self._client.publish(message.topic, message.payload, message.qos, message.retain, properties)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise aiomqtt.MqttCodeError(info.rc, "Could not publish message")
        if message.qos == 0:
            return None
        confirmation: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._confirmations[info.mid] = confirmation
        try:
            async with asyncio.timeout(timeout_s):
                return await confirmation
        finally:
            self._confirmations.pop(info.mid, None)

    def _on_publish(
        self, client: Client, userdata: object, mid: int, reason_code: ReasonCode, properties: Properties
    ) -> None:
        confirmation = self._confirmations.get(mid)
        if confirmation is not None and not confirmation.done():
            confirmation.set_result(_code_value(reason_code) or 0)
        super()._on_publish(client, userdata, mid, reason_code, properties)

    def _on_disconnect(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  the library's own
        if not self._connected.cancelled():  # the library would raise CancelledError in a callback of the event loop
            super()._on_disconnect(*arguments, **options)


class BrokerSession:
    """One MQTT session, until its connection ends. Every method raises BrokerError."""

    def __init__(
        self,
        client: _ConfirmingClient,
        connection: BrokerSocket,
        buffer: ReceiveBuffer,
        broker: Broker,
        *,
        is_v5: bool,
    ) -> None:
        self._client = client
        self._connection = connection
        self._buffer = buffer
        self._broker = broker
        self._is_v5 = is_v5

    def abort(self) -> None:
        """End the connection without DISCONNECT, which would withdraw our last will."""
        self._connection.abort()

    async def publish(
        self, message: OutgoingMessage, *, expires_after_s: float | None = None
    ) -> RefusedPublication | None:
        """Publish; with QoS 1 the broker has confirmed it on return, or refused it, which only version 5 reports.

        ``expires_after_s``: how long the broker may hold the message for a subscriber.
        """
        properties = None
        if expires_after_s is not None and self._is_v5:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho has no annotation there
            properties.MessageExpiryInterval = max(1, int(expires_after_s))
        with self._translate_errors():
            code = await self._client.publish_confirmed(message, properties, _CONFIRM_TIMEOUT_S)
        return None if code is None or code < _FIRST_FAILURE_CODE else RefusedPublication(message.topic, code)

    async def subscribe(
        self, *topics: str, qos: int = 0, retain_as_published: bool = False, timeout_s: float = STEP_TIMEOUT_S
    ) -> None:
        """Subscribe; returns after SUBACK. Retained messages arrive first.

        ``retain_as_published``: also a new message says whether its sender published it as retained, if the broker
        speaks version 5; otherwise only old messages are marked as retained.
        """
        options: Any = SubscribeOptions(qos, retainAsPublished=retain_as_published) if self._is_v5 else qos
        with self._translate_errors():
            codes: Sequence[int | ReasonCode] = await self._client.subscribe(
                [(topic, options) for topic in topics], timeout=timeout_s
            )
        for topic, code in zip(topics, codes, strict=False):
            value = _code_value(code) or 0
            if value >= _FIRST_FAILURE_CODE:
                raise errors.subscription_refused(self._broker, topic, value)

    async def unsubscribe(self, *topics: str) -> None:
        """Remove subscriptions; returns after UNSUBACK."""
        with self._translate_errors():
            await self._client.unsubscribe(list(topics), timeout=STEP_TIMEOUT_S)

    def read_at_intervals(self) -> None:
        """Read the messages of some time together, from now on: those of a fleet arrive one by one."""
        self._connection.read_interval_s = _READ_INTERVAL_S

    async def receive_batches(self) -> AsyncIterator[list[ReceivedMessage]]:
        """All messages that have arrived, each time there are some. A loss cancels the session's block."""
        while True:
            yield await self._buffer.get_all()

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            raise errors.not_answering(self._broker) from None
        except aiomqtt.MqttError as error:
            if "timed out" in str(error):
                raise errors.not_answering(self._broker) from None
            raise errors.connection_lost(self._broker) from None


class BrokerClient:
    """Makes sessions with one broker, a new aiomqtt client for each; remembers which version of MQTT it speaks."""

    def __init__(
        self, broker: Broker, client_id: str | None = None, *, is_v5_broker: bool = True, is_reader: bool = False
    ) -> None:
        """``is_reader``: no commands are received, so version 3.1.1 may be tried as soon as the broker hangs up."""
        self.broker = broker
        self._client_id = client_id
        self._refuses_v5 = not is_v5_broker
        self._is_reader = is_reader
        self._lost_logins = 0  # in a row
        self._tries_per_old_version = _TRIES_PER_OLD_VERSION_OF_READER if is_reader else _TRIES_PER_OLD_VERSION

    @property
    def _is_v5(self) -> bool:
        # A broker that knows only version 3.1.1 may just hang up. But so does a proxy while its broker restarts, so
        # version 5 is tried twice: with 3.1.1 a new command cannot be distinguished from a retained one.
        tries = self._tries_per_old_version
        return not self._refuses_v5 and self._lost_logins % tries != tries - 1

    @contextlib.asynccontextmanager
    async def session(
        self, *, will: OutgoingMessage | None = None, keep_newest_only: bool = False, use_random_id: bool = False
    ) -> AsyncIterator[BrokerSession]:
        """A session for a block. Its loss cancels the block and raises BrokerError.

        ``keep_newest_only``: of received messages that wait, keep the newest on each topic.
        ``use_random_id``: do not use our client id, which another connection may own now.
        """
        is_v5, has_begun = self._is_v5, False
        client_id = None if use_random_id else self._client_id
        try:
            async with self._logged_in(will, client_id, keep_newest_only=keep_newest_only) as session:
                has_begun = True
                yield session
                return
        except BrokerError:
            # The broker may speak only the other version: a command, which tries once, needs the answer now.
            if has_begun or self._is_v5 == is_v5 or not (self._is_reader or self._refuses_v5):
                raise
        async with self._logged_in(will, client_id, keep_newest_only=keep_newest_only) as session:
            yield session

    @contextlib.asynccontextmanager
    async def _logged_in(
        self, will: OutgoingMessage | None, client_id: str | None, *, keep_newest_only: bool
    ) -> AsyncIterator[BrokerSession]:
        """One connection that has logged in."""
        password, context = await asyncio.to_thread(self.broker.load_secrets)
        connection = await BrokerSocket.connect(self.broker, context)
        buffer = ReceiveBuffer(keep_newest_only=keep_newest_only)
        is_v5 = self._is_v5
        packets = PacketSplitter(buffer.add, is_v5=is_v5)
        client = self._make_client(connection.local_address, password, will, buffer, client_id)
        try:
            async with task_scope() as start:
                start(connection.relay_to_broker())
                start(connection.relay_from_broker(packets))
                await self._log_in(client, connection)
                try:
                    yield BrokerSession(client, connection, buffer, self.broker, is_v5=is_v5)
                finally:
                    connection.expect_close()
                    await _log_out(client)
        finally:
            await connection.close()
            client.discard_errors()

    def _make_client(
        self,
        local_address: str,
        password: str | None,
        will: OutgoingMessage | None,
        buffer: ReceiveBuffer,
        client_id: str | None,
    ) -> _ConfirmingClient:
        is_v5 = self._is_v5
        return _ConfirmingClient(
            local_address,
            self.broker.port,
            transport="unix",
            username=self.broker.username,
            password=password,
            identifier=client_id,
            protocol=aiomqtt.ProtocolVersion.V5 if is_v5 else aiomqtt.ProtocolVersion.V311,
            will=aiomqtt.Will(will.topic, will.payload, will.qos, will.retain) if will else None,
            clean_session=None if is_v5 else True,
            properties=_connect_properties() if is_v5 else None,
            clean_start=True if is_v5 else MQTT_CLEAN_START_FIRST_ONLY,
            keepalive=KEEPALIVE_S,
            timeout=STEP_TIMEOUT_S,
            # The library calls this to make its queue, and uses put_nowait, get and qsize of the result.
            queue_type=cast("type[asyncio.Queue[aiomqtt.Message]]", lambda maxsize: buffer),
            logger=_LOG,
        )

    async def _log_in(self, client: aiomqtt.Client, connection: BrokerSocket) -> None:
        try:
            await client.__aenter__()
        except MqttConnectError as error:
            code = _code_value(error.rc)
            if code in _VERSION_REFUSED_CODES:
                self._refuses_v5 = not self._refuses_v5
            raise errors.login_refused(self.broker, code, str(error.rc)) from None
        except aiomqtt.MqttError:
            self._lost_logins += 1
            raise errors.no_connack(self.broker) from None
        except asyncio.CancelledError:
            self._lost_logins += connection.is_lost
            raise
        if self._is_v5:
            self._tries_per_old_version = _TRIES_PER_OLD_VERSION_IF_V5_SEEN
        self._lost_logins = 0
        connection.enter_open()


def _connect_properties() -> Properties:
    """Tell the broker the longest packet that we accept: it drops longer ones (MQTT 5, section 3.1.2.11.4)."""
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho has no annotation there
    properties.MaximumPacketSize = MAX_PACKET_BYTES
    return properties


async def _log_out(client: aiomqtt.Client) -> None:
    """Send DISCONNECT; the library has closed its socket on return, unless that takes too long."""
    with contextlib.suppress(aiomqtt.MqttError, TimeoutError):
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await client.__aexit__(None, None, None)


def _retrieve_error(ended: asyncio.Future[None]) -> None:
    if not ended.cancelled():
        ended.exception()


def _code_value(code: int | ReasonCode | None) -> int | None:
    return code.value if isinstance(code, ReasonCode) else code
