"""A broker: where it is and who we are there; one connection to it at a time, and its errors as sentences."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

import aiomqtt
from aiomqtt.exceptions import MqttConnectError
from paho.mqtt.client import MQTT_CLEAN_START_FIRST_ONLY
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from orchestrator.mqtt.inbox import NewestInbox
from orchestrator.mqtt.standing import BrokerState
from tunnel.model.address import Address
from tunnel.runtime import resolver, sockets

if TYPE_CHECKING:
    from orchestrator.config.schema import MqttSettings
    from orchestrator.mqtt.outbox import Message

PASSWORD_VARIABLE: Final = "NODEPASS_ORCH_MQTT_PASSWORD"  # noqa: S105  its name, not the password

PORT: Final = 1883
TLS_PORT: Final = 8883
KEEPALIVE: Final = 15
"""Seconds of silence after which a broker has to prove that it is there."""

CREDENTIALS: Final = frozenset({4, 5, 134, 135})
"""Refusals that mean user, password or rights."""
TAKEN_OVER: Final = 142
"""Somebody else came with our client id."""

Inbox = asyncio.Queue[aiomqtt.Message]

_HELD: Final = 20_000  # messages, or topics, that wait to be read
_DIAL: Final = 2.5  # seconds for a TCP connection: its second try comes after one, and the broker may be back by then
_PATIENCE: Final = 5.0  # seconds for each step of a connection, and for each confirmation twice that
_FAREWELL: Final = 1.0
_LARGEST_PASSWORD: Final = 4096
_TRIES: Final = 3  # attempts without a greeting, of which one is with the older version
_TRIES_AGAIN: Final = 60  # the same of a broker that has spoken the newer one
_TALKS_OLD: Final = frozenset({1, 132})  # refusals that mean: version 5 is too new
_LOG: Final = logging.getLogger("nodepass-orch.mqtt")
_LOG.addHandler(logging.NullHandler())  # what the library complains of reaches people as our own sentences
_LOG.propagate = False


class BrokerError(Exception):
    """The broker is not there, or does not do what it should; the message is a sentence. ``code`` is MQTT's own."""

    def __init__(self, why: str, code: int | None = None, state: BrokerState = BrokerState.UNREACHABLE) -> None:
        super().__init__(why)
        self.code = code
        self.state = state


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """Where a broker is, and what it wants to see from us."""

    host: str
    port: int
    is_tls: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    password_file: Path | None = None
    ca: Path | None = None
    """certificates of those who may sign the broker's; None: the system's"""
    cert: Path | None = None
    """our own certificate, and ``cert_key`` its key if that is in another file"""
    cert_key: Path | None = None

    def __str__(self) -> str:
        """Its URL, without user and password."""
        return f"{'mqtts' if self.is_tls else 'mqtt'}://{Address(self.host, self.port)}"

    @classmethod
    def from_url(cls, text: str, **more: Any) -> Broker:  # noqa: ANN401  other fields
        """``mqtt[s]://[USER[:PASSWORD]@]HOST[:PORT]``, user and password percent-encoded. Raises ValueError."""
        shape = "write mqtt://[USER[:PASSWORD]@]HOST[:PORT], or mqtts:// for TLS"
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            raise ValueError(f"this is not a broker's URL; {shape}") from None
        if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname or port == 0 or parts.query or parts.fragment:
            raise ValueError(f"this is not a broker's URL; {shape}")
        if parts.path not in {"", "/"}:
            raise ValueError(f"a broker's URL has no path; {shape}, and percent-encode user and password")
        is_tls = parts.scheme == "mqtts"
        given = {
            "username": None if parts.username is None else unquote(parts.username),
            "password": None if parts.password is None else unquote(parts.password),
        }
        given = {name: value for name, value in given.items() if value is not None}
        port = port or (TLS_PORT if is_tls else PORT)
        return cls(**{**more, **given, "host": parts.hostname, "port": port, "is_tls": is_tls})

    @classmethod
    def from_settings(cls, settings: MqttSettings, environ: Mapping[str, str]) -> Broker:
        """The broker of a file's ``supervisor.mqtt``."""
        return cls.from_url(
            settings.url,
            username=settings.username,
            password=environ.get(PASSWORD_VARIABLE) if settings.password_file is None else None,
            password_file=settings.password_file,
            ca=settings.ca,
            cert=settings.cert,
            cert_key=settings.cert_key,
        )

    def secrets(self) -> tuple[str | None, ssl.SSLContext | None]:
        """Password and TLS context as the files are now. Blocks. Raises BrokerError."""
        return self._password(), self._context() if self.is_tls else None

    def _password(self) -> str | None:
        if self.password is not None or self.password_file is None:
            return self.password
        try:
            with self.password_file.open(encoding="utf-8") as file:
                return file.read(_LARGEST_PASSWORD).rstrip("\r\n")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise BrokerError(
                f"cannot read password_file {self.password_file}: {reason}", state=BrokerState.FAILED
            ) from None

    def _context(self) -> ssl.SSLContext:
        what, path = "ca", self.ca
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.cert is not None:
                what, path = "cert", self.cert
                if self.cert_key is not None and not self.cert_key.exists():
                    what, path = "cert_key", self.cert_key
                    raise FileNotFoundError
                context.load_cert_chain(self.cert, self.cert_key, password=_no_password)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            is_missing = isinstance(error, FileNotFoundError)
            reason = "there is no such file" if is_missing else _plain(str(error))
            raise BrokerError(f"cannot use the broker's {what} {path}: {reason}", state=BrokerState.FAILED) from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context


def _no_password() -> str:
    raise ValueError("its key is encrypted; give it without a passphrase")


class _Client(aiomqtt.Client):
    """The library's, on a connection that we made and can end at any moment."""

    def dial_with(self, sock: socket.socket) -> None:
        # By itself it dials in a thread that nobody can stop, and an unreachable broker would hold up our exit.
        self._client._create_socket_connection = lambda: sock  # type: ignore[method-assign]  # noqa: SLF001  it has no door

    @property
    def is_open(self) -> bool:
        return self._client.socket() is not None

    def loss(self) -> BaseException | None:
        """Why it was disconnected; asking also spares the loop a complaint that nobody asked."""
        over = self._disconnected
        return over.exception() if over.done() and not over.cancelled() else None

    def _on_disconnect(self, *args: Any, **more: Any) -> None:  # noqa: ANN401  as there
        super()._on_disconnect(*args, **more)
        self.loss()  # a broker that greets and hangs up at once: the library forgets that loss before anybody asks
        self._loop.call_soon_threadsafe(self._was_left, self._connected)

    def _was_left(self, greeted: asyncio.Future[None]) -> None:
        if not greeted.done():  # hung up instead of a greeting, for which the library would wait all the same
            greeted.set_exception(aiomqtt.MqttError("no greeting"))
            greeted.exception()  # perhaps nobody waits any more

    def _on_socket_register_write(self, client: Any, userdata: Any, sock: Any) -> None:  # noqa: ANN401  as there
        def write() -> None:
            try:
                client.loop_write()
            except Exception as error:  # noqa: BLE001  as there: whatever it is, the connection is over
                if not self._disconnected.done():
                    self._disconnected.set_exception(error)

        def register() -> None:
            if client.socket() is sock:  # it may be closed by now, and its number that of somebody else's socket
                self._loop.add_writer(sock.fileno(), write)

        self._loop.call_soon_threadsafe(register)


class Session:
    """One connection, as long as it lasts. Everything raises BrokerError."""

    def __init__(self, client: _Client, handle: socket.socket, inbox: Inbox, broker: Broker, *, is_v5: bool) -> None:
        self._client = client
        self._handle = handle
        self._inbox = inbox
        self._broker = broker
        self._is_v5 = is_v5

    def hang_up(self) -> None:
        """End it without the protocol's goodbye, which would take our last will back."""
        _hang_up(self._handle)

    async def publish(self, message: Message, *, expires: float | None = None) -> None:
        """Say something; with QoS 1 it is confirmed on return. ``expires``: seconds the broker may hold it."""
        properties = None
        if expires is not None and self._is_v5:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # the library's own gap
            properties.MessageExpiryInterval = max(1, int(expires))
        with self._sentences():
            await self._client.publish(
                message.topic, message.payload, message.qos, message.retain, properties, timeout=2 * _PATIENCE
            )

    async def subscribe(
        self, *topics: str, qos: int = 0, as_published: bool = False, patience: float = _PATIENCE
    ) -> None:
        """Hear of these; what is retained there comes first. Returns when the broker agreed.

        ``as_published``: a new message also says whether its sender had it retained, as far as the broker tells (from
        version 5 on); else only old ones are called retained.
        """
        options: Any = SubscribeOptions(qos, retainAsPublished=as_published) if self._is_v5 else qos
        with self._sentences():
            codes: Sequence[int | ReasonCode] = await self._client.subscribe(
                [(topic, options) for topic in topics], timeout=patience
            )
        for topic, code in zip(topics, codes, strict=False):
            value = code.value if isinstance(code, ReasonCode) else code
            if value >= 128:
                raise BrokerError(
                    f"the broker {self._broker} does not let {_user(self._broker)} read {topic}: mend its access rules",
                    value,
                    BrokerState.REFUSED,
                )

    async def unsubscribe(self, *topics: str) -> None:
        """Hear no more of these."""
        with self._sentences():
            await self._client.unsubscribe(list(topics), timeout=_PATIENCE)

    async def batches(self) -> AsyncIterator[list[aiomqtt.Message]]:
        """What has come, each time there is something, until the connection is lost, which is an error."""
        with self._sentences():
            async for message in self._client.messages:
                batch = [message]
                while not self._inbox.empty():
                    batch.append(self._inbox.get_nowait())
                yield batch

    @contextlib.contextmanager
    def _sentences(self) -> Iterator[None]:
        try:
            yield
        except aiomqtt.MqttError as error:
            raise _lost(self._broker, self._client.loss() or error) from None


class Dialer:
    """Makes connections to one broker, a new client for each; remembers which version of MQTT it speaks."""

    def __init__(self, broker: Broker, identifier: str | None = None) -> None:
        self.broker = broker
        self._identifier = identifier
        self._is_old = False
        self._hung_up = 0  # times in a row, without a greeting
        self._tries = _TRIES

    @property
    def _is_v5(self) -> bool:
        # One that knows only the older version may just hang up. But so does a proxy whose broker is being restarted:
        # the newer one is tried twice, for with the older nobody can tell a fresh command from one that is retained.
        return not self._is_old and self._hung_up % self._tries != self._tries - 1

    @contextlib.asynccontextmanager
    async def session(
        self, *, will: Message | None = None, is_newest_enough: bool = False, is_onlooker: bool = False
    ) -> AsyncIterator[Session]:
        """A connection; ``is_newest_enough``: of words that wait to be read, only the newest on each topic counts.

        ``is_onlooker``: not under our client id, which may be another's now. Raises BrokerError.
        """
        password, context = await asyncio.to_thread(self.broker.secrets)
        sock = await self._dial()
        handle = sock.dup()  # TLS takes the socket away from us, but not the power to end the connection
        try:
            inbox: Inbox = NewestInbox(_HELD) if is_newest_enough else asyncio.Queue(_HELD)
            is_v5 = self._is_v5
            client = self._client(
                password, context, will, inbox, None if is_onlooker else self._identifier, is_v5=is_v5
            )
            client.dial_with(sock)
            try:
                await self._enter(client, handle)
                yield Session(client, handle, inbox, self.broker, is_v5=is_v5)
            finally:
                await self._leave(client, handle)
        finally:
            handle.close()
            sock.close()

    def _client(
        self,
        password: str | None,
        context: ssl.SSLContext | None,
        will: Message | None,
        inbox: Inbox,
        identifier: str | None,
        *,
        is_v5: bool,
    ) -> _Client:
        version = aiomqtt.ProtocolVersion.V5 if is_v5 else aiomqtt.ProtocolVersion.V311
        return _Client(
            self.broker.host,
            self.broker.port,
            username=self.broker.username,
            password=password,
            identifier=identifier,
            protocol=version,
            will=aiomqtt.Will(will.topic, will.payload, will.qos, will.retain) if will else None,
            clean_session=None if is_v5 else True,
            clean_start=True if is_v5 else MQTT_CLEAN_START_FIRST_ONLY,
            keepalive=KEEPALIVE,
            timeout=_PATIENCE,
            queue_type=lambda maxsize: inbox,  # type: ignore[arg-type]  # it is called, and nothing else
            tls_context=context,
            logger=_LOG,
        )

    async def _dial(self) -> socket.socket:
        broker = self.broker
        loop = asyncio.get_running_loop()
        error: Exception = TimeoutError()
        try:
            async with asyncio.timeout(2 * _PATIENCE):
                for family, sockaddr in await resolver.resolve(Address(broker.host, broker.port)):
                    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                    try:
                        sockets.set_nodelay(sock)
                        async with asyncio.timeout(_DIAL):
                            await loop.sock_connect(sock, sockaddr)
                    except OSError as failure:  # TimeoutError is one
                        sock.close()
                        error = failure
                    except BaseException:
                        sock.close()
                        raise
                    else:
                        sock.settimeout(_PATIENCE)  # for TLS, whose greeting the library waits for in a thread
                        return sock
        except OSError as failure:
            error = failure
        raise BrokerError(f"the broker {broker} does not answer: {sockets.describe_error(error)}") from None

    async def _enter(self, client: _Client, handle: socket.socket) -> None:
        entering = asyncio.ensure_future(client.__aenter__())
        try:
            await asyncio.shield(entering)
            if self._is_v5:
                self._tries = _TRIES_AGAIN
            self._hung_up = 0
        except MqttConnectError as error:
            code = error.rc.value if isinstance(error.rc, ReasonCode) else error.rc
            if code in _TALKS_OLD:
                self._is_old = not self._is_old
            raise _refused(self.broker, code, str(error.rc)) from None
        except aiomqtt.MqttError as error:
            if self.broker.is_tls and "SSL" in str(error):
                raise BrokerError(
                    f"TLS with the broker {self.broker} failed: {_plain(str(error))}", state=BrokerState.REFUSED
                ) from None
            self._hung_up += 1
            hint = "; perhaps it wants a certificate of ours" if self.broker.is_tls and self.broker.cert is None else ""
            raise BrokerError(
                f"the broker {self.broker} does not speak MQTT with us: no greeting{hint}", state=BrokerState.REFUSED
            ) from None
        except asyncio.CancelledError:
            _hang_up(handle)
            await asyncio.wait([entering], timeout=_FAREWELL)
            if not entering.cancel() and not entering.cancelled():
                entering.exception()
            raise

    async def _leave(self, client: _Client, handle: socket.socket) -> None:
        try:
            with contextlib.suppress(aiomqtt.MqttError, TimeoutError):
                async with asyncio.timeout(_FAREWELL):
                    await client.__aexit__(None, None, None)
        finally:
            _hang_up(handle)
            for _ in range(100):  # the library notices in one of the loop's next turns, and closes what is its own
                if not client.is_open:
                    break
                await asyncio.sleep(0.005)
            client.loss()


def _hang_up(handle: socket.socket) -> None:
    with contextlib.suppress(OSError):
        handle.shutdown(socket.SHUT_RDWR)


def _refused(broker: Broker, code: int | None, name: str) -> BrokerError:
    if code in CREDENTIALS:
        return BrokerError(
            f"the broker {broker} refuses {_user(broker)}: check user, password and its rules",
            code,
            BrokerState.REFUSED,
        )
    return BrokerError(f"the broker {broker} refuses us: {name.lower()}", code, BrokerState.REFUSED)


def _lost(broker: Broker, error: BaseException) -> BrokerError:
    rc = getattr(error, "rc", None)
    code = rc.value if isinstance(rc, ReasonCode) else rc if isinstance(rc, int) else None
    if code == TAKEN_OVER:
        return BrokerError(f"the broker {broker} closed the connection: another program came with our id", code)
    if "timed out" in str(error):
        return BrokerError(f"the broker {broker} does not answer any more", code)
    return BrokerError(f"the connection to the broker {broker} was lost", code)


def _user(broker: Broker) -> str:
    return f"user {broker.username!r}" if broker.username else "a client without a user"


def _plain(text: str) -> str:
    """OpenSSL's words without its marks."""
    return re.sub(r"^\[[^\]]*\]\s*|\s*\(_ssl\.c:\d+\)$", "", text).strip() or "TLS failed"
