"""One connection to a broker at a time: the socket, and the MQTT session of aiomqtt over it.

The socket is ours, because aiomqtt and paho leave four things undone that a daemon needs. They dial and shake hands
in a thread that cannot be stopped; they notice only by a timeout that a broker hung up before CONNACK; they forget a
loss right after CONNACK; and they register write callbacks for descriptors that may be closed, and reused, by then.
So ``BrokerSocket`` makes the TCP or TLS connection, and the library connects to a Unix socket of this process (the
documented ``transport="unix"``). Bytes are passed on both ways. The library never sees its connection end before it
has closed the connection itself: the broker's DISCONNECT and end of stream are withheld, and become a ``BrokerError``.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

import aiomqtt
from aiomqtt.exceptions import MqttConnectError
from paho.mqtt.client import MQTT_CLEAN_START_FIRST_ONLY
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from orchestrator.mqtt import broker as errors
from orchestrator.mqtt.broker import Broker, BrokerError
from orchestrator.process.task_scope import task_scope
from tunnel.model.address import Address
from tunnel.runtime import resolver, sockets

if TYPE_CHECKING:
    from orchestrator.mqtt.topics import Message

KEEPALIVE_S: Final = 15
"""After this silence the library sends PINGREQ; mosquitto closes a connection that is silent for one and a half."""

_MAX_SILENCE_S: Final = 1.5 * KEEPALIVE_S  # the broker is dead by then: it has not answered a PINGREQ
_MAX_QUEUED: Final = 20_000  # received messages, or topics, that wait to be handled
_DIAL_TIMEOUT_S: Final = 2.5  # per address: TCP sends SYN again after one second, and the broker may be back by then
_STEP_TIMEOUT_S: Final = 5.0  # per step of a connection; confirmation of a publication: twice that
_CLOSE_TIMEOUT_S: Final = 1.0
_ERROR_TIMEOUT_S: Final = 0.01
_CHUNK_BYTES: Final = 64 * 1024
_TRIES_PER_OLD_VERSION: Final = 3  # of so many attempts without CONNACK the last one is with version 3.1.1
_TRIES_PER_OLD_VERSION_IF_V5_SEEN: Final = 60
_VERSION_REFUSED_CODES: Final = frozenset({1, 132})  # CONNACK of a broker that does not speak the version
_FIRST_FAILURE_CODE: Final = 128  # of SUBACK

_LOG: Final = logging.getLogger("nodepass-orch.mqtt")
_LOG.addHandler(logging.NullHandler())  # complaints of the library reach users as our own sentences
_LOG.propagate = False


class NewestQueue(asyncio.Queue[aiomqtt.Message]):
    """A queue in which a newer message replaces an older one on its topic, for topics that have a current value.

    ``maxsize`` counts topics. asyncio.Queue documents its three methods as overridable in subclasses.
    """

    _REPLACEABLE: Final = ("/state", "/stats", "/info", "/status")
    _queue: dict[object, aiomqtt.Message]

    def _init(self, maxsize: int) -> None:
        self._queue = {}

    def _put(self, item: aiomqtt.Message) -> None:
        topic = item.topic.value
        key: object = topic if topic.endswith(self._REPLACEABLE) else item
        self._queue.pop(key, None)  # moves to the end: no topic overtakes one that has waited longer
        self._queue[key] = item

    def _get(self) -> aiomqtt.Message:
        return self._queue.pop(next(iter(self._queue)))


# --- the socket -------------------------------------------------------------------------------------------------------


class DisconnectFilter:
    """Finds the broker's DISCONNECT (MQTT 5, section 3.14) in a stream of packets. Sans-I/O."""

    _DISCONNECT: Final = 14

    def __init__(self) -> None:
        self._remaining = 0  # bytes of the present packet that have not come yet
        self._partial = b""
        self.code: int | None = None
        """reason code of the DISCONNECT, once there was one"""

    def feed(self, data: bytes) -> bytes:
        """The bytes to pass on: whole packet heads, up to a DISCONNECT."""
        if self.code is not None:
            return b""
        data = self._partial + data
        self._partial = b""
        position = self._remaining
        while position < len(data):
            body = _parse_fixed_header(data, position)
            is_disconnect = data[position] >> 4 == self._DISCONNECT
            if body is None or (is_disconnect and body[1] and body[0] == len(data)):
                self._partial = data[position:]
                self._remaining = 0
                return data[:position]
            if is_disconnect:
                self.code = data[body[0]] if body[1] else 0
                return data[:position]
            position = sum(body)
        self._remaining = position - len(data)
        return data


def _parse_fixed_header(data: bytes, position: int) -> tuple[int, int] | None:
    """Where the packet's body begins and its length (section 2.1.4); None where the header is not complete.

    A length of more than four bytes is malformed: the rest is passed on, for the library to reject.
    """
    length = 0
    for index, byte in enumerate(data[position + 1 : position + 5]):
        length |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return position + index + 2, length
    return None if len(data) < position + 5 else (position, 1 << 62)


class _Phase(enum.Enum):
    LOGIN = enum.auto()
    """CONNACK is awaited"""
    OPEN = enum.auto()
    CLOSING = enum.auto()
    """the end of the connection is expected"""


class BrokerSocket:
    """A connection to a broker, which the library reaches at ``local_address``."""

    def __init__(self, broker: Broker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._broker = broker
        self._reader = reader
        self._writer = writer
        self._phase = _Phase.LOGIN
        self._is_phase_changed = asyncio.Event()
        self._filter = DisconnectFilter()
        self._has_answered = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._listener.bind("")  # an abstract address that the kernel chooses (unix(7), "autobind"): no file is left
        self._listener.listen(1)
        self.local_address = bytes(self._listener.getsockname()).decode("ascii")
        self._library: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Future()
        self.is_lost = False
        """whether the connection ended when that was not expected"""

    @classmethod
    async def connect(cls, broker: Broker, context: ssl.SSLContext | None) -> BrokerSocket:
        """Connect, with TLS if there is a context. Raises BrokerError."""
        sock = await _dial_tcp(broker)
        try:
            reader, writer = await asyncio.open_connection(
                sock=sock,
                ssl=context,
                server_hostname=broker.host if context else None,
                ssl_handshake_timeout=_STEP_TIMEOUT_S if context else None,
            )
        except OSError as error:  # ssl.SSLError is one
            sock.close()
            raise errors.tls_failed(broker, error) from None
        except BaseException:
            sock.close()
            raise
        return cls(broker, reader, writer)

    def enter_open(self) -> None:
        """CONNACK was good."""
        self._set_phase(_Phase.OPEN)

    def expect_close(self) -> None:
        """The end of the connection is no error from now on."""
        self._set_phase(_Phase.CLOSING)

    def abort(self) -> None:
        """End the connection without DISCONNECT: the broker publishes the last will."""
        self.expect_close()
        self._writer.transport.abort()

    async def close(self) -> None:
        """Pass on what the library has still sent, such as DISCONNECT, and free all sockets."""
        self.expect_close()
        self._listener.close()
        try:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                    if self._library.done() and not self._library.cancelled():
                        await self._close_library(*self._library.result())
                    self._writer.close()
                    await self._writer.wait_closed()
        finally:
            self._writer.transport.abort()

    async def _close_library(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Wait until the library has closed its end as well."""
        try:
            writer.write_eof()
            while data := await reader.read(_CHUNK_BYTES):
                if not self._writer.is_closing():
                    self._writer.write(data)
        finally:
            writer.transport.abort()

    async def relay_to_broker(self) -> None:
        """Pass on what the library sends, until it closes. Raises BrokerError where that was not expected."""
        self._library.set_result(await self._accept_library())
        reader, _ = self._library.result()
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                self._writer.write(data)
                await self._writer.drain()
        if self._phase is not _Phase.CLOSING:
            await self._fail(errors.connection_lost(self._broker))

    async def relay_from_broker(self) -> None:
        """Pass on what the broker sends, until it ends. Raises BrokerError where that was not expected."""
        _, library = await self._library
        error = None
        try:
            while self._filter.code is None and (data := await self._read()):
                self._has_answered = True
                library.write(self._filter.feed(data))
                await library.drain()
        except TimeoutError:
            error = errors.not_answering(self._broker)
        except OSError:
            pass
        if self._phase is not _Phase.CLOSING:
            await self._fail(error or errors.connection_lost(self._broker, self._filter.code))

    async def _read(self) -> bytes:
        async with asyncio.timeout(_MAX_SILENCE_S):
            return await self._reader.read(_CHUNK_BYTES)

    async def _fail(self, error: BrokerError) -> None:
        if self._phase is _Phase.LOGIN and self._has_answered:
            # The broker refused the login and hung up: CONNACK is with the library, which says more.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STEP_TIMEOUT_S):
                    await self._is_phase_changed.wait()
        self.is_lost = True
        raise errors.no_connack(self._broker) if self._phase is _Phase.LOGIN else error

    def _set_phase(self, phase: _Phase) -> None:
        self._phase = phase
        self._is_phase_changed.set()

    async def _accept_library(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The library's connection. It is not abandoned while the library's thread connects, even if cancelled."""
        accepting = asyncio.ensure_future(self._accept_own_process())
        try:
            sock = await asyncio.shield(accepting)
        except asyncio.CancelledError:
            await asyncio.wait([accepting], timeout=_CLOSE_TIMEOUT_S)
            if not accepting.cancel() and accepting.exception() is None:
                accepting.result().close()
            raise
        return await asyncio.open_unix_connection(sock=sock)

    async def _accept_own_process(self) -> socket.socket:
        """Accept a connection of this process: any process of the host could connect to an abstract address."""
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self._listener)
            credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            if struct.unpack("3i", credentials)[0] == os.getpid():
                return sock
            sock.close()


async def _dial_tcp(broker: Broker) -> socket.socket:
    """A connected socket; addresses of the name are tried in turn. Raises BrokerError."""
    error: Exception = TimeoutError()
    try:
        async with asyncio.timeout(2 * _STEP_TIMEOUT_S):
            for family, sockaddr in await resolver.resolve(Address(broker.host, broker.port)):
                sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                try:
                    sockets.set_nodelay(sock)
                    async with asyncio.timeout(_DIAL_TIMEOUT_S):
                        await asyncio.get_running_loop().sock_connect(sock, sockaddr)
                except OSError as failure:  # TimeoutError is one
                    sock.close()
                    error = failure
                except BaseException:
                    sock.close()
                    raise
                else:
                    return sock
    except OSError as failure:
        error = failure
    raise BrokerError(f"the broker {broker} does not answer: {sockets.describe_error(error)}") from None


# --- the MQTT session -------------------------------------------------------------------------------------------------


class BrokerSession:
    """One MQTT session, until its connection ends. Every method raises BrokerError."""

    def __init__(
        self,
        client: aiomqtt.Client,
        connection: BrokerSocket,
        queue: asyncio.Queue[aiomqtt.Message],
        broker: Broker,
        *,
        is_v5: bool,
    ) -> None:
        self._client = client
        self._connection = connection
        self._queue = queue
        self._broker = broker
        self._is_v5 = is_v5

    def abort(self) -> None:
        """End the connection without DISCONNECT, which would withdraw our last will."""
        self._connection.abort()

    async def publish(self, message: Message, *, expires_after_s: float | None = None) -> None:
        """Publish; with QoS 1 the broker has confirmed it on return.

        ``expires_after_s``: how long the broker may hold the message for a subscriber.
        """
        properties = None
        if expires_after_s is not None and self._is_v5:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho has no annotation there
            properties.MessageExpiryInterval = max(1, int(expires_after_s))
        with self._translate_errors():
            await self._client.publish(
                message.topic, message.payload, message.qos, message.retain, properties, timeout=2 * _STEP_TIMEOUT_S
            )

    async def subscribe(
        self, *topics: str, qos: int = 0, retain_as_published: bool = False, timeout_s: float = _STEP_TIMEOUT_S
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
        """Remove subscriptions."""
        with self._translate_errors():
            await self._client.unsubscribe(list(topics), timeout=_STEP_TIMEOUT_S)

    async def receive_batches(self) -> AsyncIterator[list[aiomqtt.Message]]:
        """All messages that have arrived, each time there are some. A loss cancels the session's block."""
        while True:
            batch = [await self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get_nowait())
            yield batch

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except aiomqtt.MqttError as error:
            if "timed out" in str(error):
                raise errors.not_answering(self._broker) from None
            raise errors.connection_lost(self._broker) from None


class BrokerClient:
    """Makes sessions with one broker, a new aiomqtt client for each; remembers which version of MQTT it speaks."""

    def __init__(self, broker: Broker, client_id: str | None = None, *, is_v5_broker: bool = True) -> None:
        self.broker = broker
        self._client_id = client_id
        self._refuses_v5 = not is_v5_broker
        self._lost_logins = 0  # in a row
        self._tries_per_old_version = _TRIES_PER_OLD_VERSION

    @property
    def _is_v5(self) -> bool:
        # A broker that knows only version 3.1.1 may just hang up. But so does a proxy while its broker restarts, so
        # version 5 is tried twice: with 3.1.1 a fresh command cannot be told from a retained one.
        tries = self._tries_per_old_version
        return not self._refuses_v5 and self._lost_logins % tries != tries - 1

    @contextlib.asynccontextmanager
    async def session(
        self, *, will: Message | None = None, keep_newest_only: bool = False, use_random_id: bool = False
    ) -> AsyncIterator[BrokerSession]:
        """A session for a block. Its loss cancels the block and raises BrokerError.

        ``keep_newest_only``: of received messages that wait, keep the newest on each topic.
        ``use_random_id``: do not use our client id, which another connection may own now.
        """
        password, context = await asyncio.to_thread(self.broker.load_secrets)
        connection = await BrokerSocket.connect(self.broker, context)
        queue = NewestQueue(_MAX_QUEUED) if keep_newest_only else asyncio.Queue(_MAX_QUEUED)
        is_v5 = self._is_v5
        client = self._make_client(
            connection.local_address, password, will, queue, None if use_random_id else self._client_id
        )
        try:
            async with task_scope() as start:
                start(connection.relay_to_broker())
                start(connection.relay_from_broker())
                await self._log_in(client, connection)
                try:
                    yield BrokerSession(client, connection, queue, self.broker, is_v5=is_v5)
                finally:
                    connection.expect_close()
                    await _log_out(client)
        finally:
            await connection.close()
            await _retrieve_error(client)

    def _make_client(
        self,
        local_address: str,
        password: str | None,
        will: Message | None,
        queue: asyncio.Queue[aiomqtt.Message],
        client_id: str | None,
    ) -> aiomqtt.Client:
        is_v5 = self._is_v5
        return aiomqtt.Client(
            local_address,
            self.broker.port,
            transport="unix",
            username=self.broker.username,
            password=password,
            identifier=client_id,
            protocol=aiomqtt.ProtocolVersion.V5 if is_v5 else aiomqtt.ProtocolVersion.V311,
            will=aiomqtt.Will(will.topic, will.payload, will.qos, will.retain) if will else None,
            clean_session=None if is_v5 else True,
            clean_start=True if is_v5 else MQTT_CLEAN_START_FIRST_ONLY,
            keepalive=KEEPALIVE_S,
            timeout=_STEP_TIMEOUT_S,
            # The library calls it to make its queue. With a queue of ours a batch is read without a task per message.
            queue_type=cast("type[asyncio.Queue[aiomqtt.Message]]", lambda maxsize: queue),
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


async def _log_out(client: aiomqtt.Client) -> None:
    """Send DISCONNECT; the library has closed its socket on return, unless that takes too long."""
    with contextlib.suppress(aiomqtt.MqttError, TimeoutError):
        async with asyncio.timeout(_CLOSE_TIMEOUT_S):
            await client.__aexit__(None, None, None)


async def _retrieve_error(client: aiomqtt.Client) -> None:
    """Fetch the error that the library may hold for its next caller: asyncio reports errors that nobody retrieves."""
    with contextlib.suppress(aiomqtt.MqttError, TimeoutError):
        async with asyncio.timeout(_ERROR_TIMEOUT_S):
            async for _ in client.messages:
                pass


def _code_value(code: int | ReasonCode | None) -> int | None:
    return code.value if isinstance(code, ReasonCode) else code
