"""The connection to a broker below the MQTT library: TCP or TLS, offered to the library on a Unix socket.

The connection is ours, because aiomqtt and paho leave four things undone that a daemon needs. They dial and shake
hands in a thread that cannot be stopped; they notice only by a timeout that a broker hung up before CONNACK; they
forget a loss right after CONNACK; and they register write callbacks for descriptors that may be closed, and reused, by
then. So ``BrokerSocket`` makes the TCP or TLS connection, and the library connects to a Unix socket of this process
(the documented ``transport="unix"``). Bytes are passed on both ways, but for the packets that ``PacketSplitter`` takes.
The library never sees its connection end before it has closed the connection: the broker's DISCONNECT and end of stream
are withheld, and become a ``BrokerError``.

The library reads each packet with several calls, makes an object for its properties and asks each filter of topics.
That is more than half of the CPU of a reader of thousands of tunnels, so ``PacketSplitter``, which does no I/O, decodes
the messages with QoS 0, which need no answer. All other packets are for the library, but for DISCONNECT, which it
handles badly.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import socket
import ssl
import struct
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from orchestrator.mqtt import broker as errors
from orchestrator.mqtt.broker import Broker, BrokerError
from orchestrator.mqtt.payloads import MAX_PAYLOAD_BYTES
from tunnel.model.address import Address
from tunnel.runtime import resolver, sockets
from tunnel.runtime.connect_race import ATTEMPT_DELAY_S, connect_to_first
from tunnel.runtime.reactor import Reactor

if TYPE_CHECKING:
    from collections.abc import Callable

KEEPALIVE_S: Final = 15
"""After this silence the library sends PINGREQ; brokers close a connection that is silent for 1.5 times as long."""
STEP_TIMEOUT_S: Final = 5.0
"""For each step of a connection: TLS handshake, CONNACK, SUBACK."""
CLOSE_TIMEOUT_S: Final = 1.0

_MAX_SILENCE_S: Final = 2 * KEEPALIVE_S - 1  # a PINGREQ is not answered; one second later the library gives up
_DIAL_TIMEOUT_S: Final = 2.5  # of the last address: TCP sends SYN again after one second, and the broker may be back
_RACE_BUFFER_BYTES: Final = 1  # of a reactor that connects and reads nothing
_CHUNK_BYTES: Final = 64 * 1024
_MIN_FULL_CHUNK_BYTES: Final = 16 * 1024  # after less, the broker has nothing more to send at present

MAX_PACKET_BYTES: Final = MAX_PAYLOAD_BYTES + 128 * 1024
"""The longest packet that is read: the longest payload, with its topic (at most 64 KiB) and its properties."""

_MALFORMED_LENGTH: Final = 1 << 62
_DISCONNECT: Final = 14
_PUBLISH_QOS_0: Final = frozenset({0x30, 0x31})
"""First byte of PUBLISH with QoS 0 (section 3.3.1), without and with RETAIN; a duplicate with QoS 0 is malformed."""
_RETAIN: Final = 1


class ReceivedMessage(NamedTuple):
    """A message of the broker."""

    topic: str
    payload: bytes
    retain: bool
    """whether it was published before the subscription, or with ``retain_as_published``, whether its sender said so"""


class PacketSplitter:
    """Finds messages with QoS 0 and the broker's DISCONNECT (MQTT 5, section 3.14) in a stream of packets."""

    def __init__(self, deliver: Callable[[ReceivedMessage], object], *, is_v5: bool) -> None:
        """``deliver`` is called for each message with QoS 0. ``is_v5`` is the version that we have asked for."""
        self._deliver = deliver
        self._is_v5 = is_v5
        self._remaining = 0  # bytes of the present packet, one for the library, that have not come yet
        self._partial = bytearray()  # the start of a packet that is needed whole, or at least its header
        self._wanted = 0  # bytes of it with which it is parsed again
        self.code: int | None = None
        """reason code of the DISCONNECT, once there was one"""
        self.excess: int | None = None
        """length of a packet that is longer than MAX_PACKET_BYTES, once there was one; the rest is withheld"""

    def feed(self, data: bytes) -> bytes:
        """The bytes for the library: whole packet heads, up to a DISCONNECT."""
        if self.code is not None or self.excess is not None:
            return b""
        if self._partial:
            self._partial += data
            if len(self._partial) < self._wanted:
                return b""
            data = bytes(self._partial)
            self._partial.clear()
        passed: list[bytes] = []
        passed_to, position = 0, self._remaining
        while position < len(data) and (end := self._find_end(data, position)) is not None:
            if data[position] in _PUBLISH_QOS_0 and end <= len(data) and self._deliver_publish(data, position, end):
                passed.append(data[passed_to:position])
                passed_to = end
            position = end
        self._remaining = max(0, position - len(data))
        passed.append(data[passed_to:position])
        return b"".join(passed)

    def _find_end(self, data: bytes, position: int) -> int | None:
        """Where the packet ends that begins here; None if the rest of the data is kept or withheld."""
        header = _parse_fixed_header(data, position)
        if header is None:
            self._keep(data, position, 1)
            return None
        start, length = header
        if data[position] >> 4 == _DISCONNECT:
            if length and start == len(data):
                self._keep(data, position, 1)
            else:
                self.code = data[start] if length else 0
            return None
        if MAX_PACKET_BYTES < length < _MALFORMED_LENGTH:
            self.excess = length
            return None
        end = start + length
        if data[position] in _PUBLISH_QOS_0 and len(data) < end < _MALFORMED_LENGTH:
            self._keep(data, position, end - len(data))
            return None
        return end

    def _keep(self, data: bytes, position: int, missing: int) -> None:
        self._partial += data[position:]
        self._wanted = len(self._partial) + missing

    def _deliver_publish(self, data: bytes, position: int, end: int) -> bool:
        """Deliver the message of a whole packet (section 3.3); False if it is malformed, for the library to reject."""
        start = position + 2
        while data[start - 1] & 0x80:
            start += 1
        topic_end = start + 2 + int.from_bytes(data[start : start + 2])
        payload_at = topic_end + self._properties_size(data, topic_end)
        if payload_at > end:
            return False
        try:
            topic = data[start + 2 : topic_end].decode()
        except UnicodeDecodeError:
            return False
        if not topic or "+" in topic or "#" in topic:
            return False
        self._deliver(ReceivedMessage(topic, data[payload_at:end], bool(data[position] & _RETAIN)))
        return True

    def _properties_size(self, data: bytes, position: int) -> int:
        """Bytes of the properties, which nothing here needs, with those of their length."""
        if not self._is_v5:
            return 0
        size = index = 0
        for index, byte in enumerate(data[position : position + 4], 1):
            size |= (byte & 0x7F) << 7 * (index - 1)
            if byte < 0x80:
                return index + size
        return MAX_PACKET_BYTES  # malformed


def _parse_fixed_header(data: bytes, position: int) -> tuple[int, int] | None:
    """Where the packet's body begins and its length (section 2.1.4); None where the header is not complete.

    A length of more than four bytes is malformed: the rest is passed on, for the library to reject.
    """
    length = 0
    for index, byte in enumerate(data[position + 1 : position + 5]):
        length |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return position + index + 2, length
    return None if len(data) < position + 5 else (position, _MALFORMED_LENGTH)


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
        self._has_answered = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._listener.bind("")  # an abstract address that the kernel chooses (unix(7), "autobind"): no file is left
        self._listener.listen(1)
        self.local_address = bytes(self._listener.getsockname()).decode("ascii")
        self._library: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Future()
        self.is_lost = False
        """whether the connection ended when that was not expected"""
        self.read_interval_s = 0.0
        """between two reads while little arrives, so that many messages are read with one call"""

    @classmethod
    async def connect(cls, broker: Broker, context: ssl.SSLContext | None) -> BrokerSocket:
        """Connect, with TLS if there is a context. Raises BrokerError."""
        sock = await _dial_tcp(broker)
        try:
            reader, writer = await asyncio.open_connection(
                sock=sock,
                ssl=context,
                server_hostname=broker.host if context else None,
                ssl_handshake_timeout=STEP_TIMEOUT_S if context else None,
            )
        except OSError as error:  # ssl.SSLError is one
            sock.close()
            raise errors.tls_failed(broker, error) from None
        except BaseException:
            sock.close()
            raise
        return cls(broker, reader, writer)

    def enter_open(self) -> None:
        """CONNACK has accepted the login."""
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
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
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

    async def relay_from_broker(self, packets: PacketSplitter) -> None:
        """Split what the broker sends, until it ends. Raises BrokerError where that was not expected."""
        _, library = await self._library
        error = None
        try:
            while packets.code is None and packets.excess is None and (data := await self._read()):
                self._has_answered = True
                if for_library := packets.feed(data):
                    library.write(for_library)
                    await library.drain()
                if self.read_interval_s and len(data) < _MIN_FULL_CHUNK_BYTES:
                    await self._pause_reading(self.read_interval_s)
        except TimeoutError:
            error = errors.not_answering(self._broker)
        except OSError:
            pass
        if packets.excess is not None:
            error = errors.packet_too_long(self._broker, packets.excess, MAX_PACKET_BYTES)
        if self._phase is not _Phase.CLOSING:
            await self._fail(error or errors.connection_lost(self._broker, packets.code))

    async def _pause_reading(self, seconds: float) -> None:
        transport = cast("asyncio.Transport", self._writer.transport)
        transport.pause_reading()
        try:
            await asyncio.sleep(seconds)
        finally:
            transport.resume_reading()

    async def _read(self) -> bytes:
        async with asyncio.timeout(_MAX_SILENCE_S):
            return await self._reader.read(_CHUNK_BYTES)

    async def _fail(self, error: BrokerError) -> None:
        if self._phase is _Phase.LOGIN and self._has_answered:
            # The broker refused the login and hung up: CONNACK is with the library, which says more.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STEP_TIMEOUT_S):
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
            await asyncio.wait([accepting], timeout=CLOSE_TIMEOUT_S)
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
    """A connected socket; the addresses of the name race as in RFC 8305. Raises BrokerError."""
    try:
        reactor = Reactor(_RACE_BUFFER_BYTES)
        try:
            candidates = await resolver.resolve(Address(broker.host, broker.port))
            async with asyncio.timeout(_DIAL_TIMEOUT_S + ATTEMPT_DELAY_S * len(candidates)):
                sock, _ = await connect_to_first(reactor, candidates)
            reactor.unregister(sock)
        finally:
            reactor.stop()
    except OSError as error:  # TimeoutError is one
        raise BrokerError(f"the broker {broker} does not answer: {sockets.describe_connect_error(error)}") from None
    return socket.socket(fileno=sock.detach())
