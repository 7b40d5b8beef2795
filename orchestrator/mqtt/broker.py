"""A broker: its address and credentials, its errors as sentences, and the state of our connection to it."""

from __future__ import annotations

import enum
import re
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, unquote, urlsplit

from orchestrator.errors import OrchestratorError
from orchestrator.status.contract import BrokerInfo
from tunnel.model.address import Address
from tunnel.model.files import MAX_SECRET_BYTES, FileError, read_file
from tunnel.model.times import format_timestamp

if TYPE_CHECKING:
    from orchestrator.config.supervisor_settings import MqttSettings

PASSWORD_VARIABLE: Final = "NODEPASS_ORCH_MQTT_PASSWORD"  # noqa: S105  the variable's name, not the password

DEFAULT_PORT: Final = 1883
DEFAULT_TLS_PORT: Final = 8883

CREDENTIAL_CODES: Final = frozenset({4, 5, 134, 135})
"""Reason codes of MQTT 3.1.1 and 5 that mean a wrong user, password or right."""
TAKEN_OVER_CODE: Final = 142
"""Reason code of MQTT 5: another connection came with our client id."""

_PACKET_TOO_LARGE_CODE: Final = 149
_URL_FORM: Final = "write mqtt://[USER[:PASSWORD]@]HOST[:PORT], or mqtts:// for TLS"


# --- state ------------------------------------------------------------------------------------------------------------


class BrokerState(enum.StrEnum):
    """The state of the connection, as ``ps --json`` shows it; ``off`` where the file names no broker."""

    CONNECTING = "connecting"
    """the first attempt is in progress"""
    ONLINE = "online"
    UNREACHABLE = "unreachable"
    """the broker does not answer, or the connection was lost"""
    REFUSED = "refused"
    """the broker answers, but rejects the login, or a right that is needed"""
    DUPLICATE = "duplicate"
    """another host is online under our host name"""
    FAILED = "failed"
    """the cause is on our side: a file that cannot be used, or a defect"""


class BrokerStatus:
    """The present state with its reason; ``since`` is when the state, not the reason, last changed."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._since = clock()
        self._state = BrokerState.CONNECTING
        self._reason: str | None = None

    @property
    def is_online(self) -> bool:
        """Whether messages are being published."""
        return self._state is BrokerState.ONLINE

    def set_state(self, state: BrokerState, reason: str | None = None) -> bool:
        """Enter a state; whether state or reason changed."""
        is_changed = (state, reason) != (self._state, self._reason)
        if state is not self._state:
            self._since = self._clock()
        self._state, self._reason = state, reason
        return is_changed

    def info(self, broker: str, host: str) -> BrokerInfo:
        """The status as ``ps --json`` shows it; ``host`` is our name on ``broker``."""
        since = format_timestamp(self._since)
        return BrokerInfo(state=self._state.value, reason=self._reason, since=since, broker=broker, host=host)


# --- address and credentials ------------------------------------------------------------------------------------------


class BrokerError(OrchestratorError):
    """The broker cannot be reached, or refuses; the message is a sentence. ``code`` is the reason code of MQTT."""

    def __init__(self, message: str, code: int | None = None, state: BrokerState = BrokerState.UNREACHABLE) -> None:
        super().__init__(message)
        self.code = code
        self.state = state


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """Address of a broker, and the credentials for it."""

    host: str
    port: int
    is_tls: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    password_file: Path | None = None
    ca: Path | None = None
    """certificates of the authorities that may sign the broker's; None: the system's"""
    cert: Path | None = None
    """our own certificate, and ``cert_key`` its key if that is in another file"""
    cert_key: Path | None = None

    def __str__(self) -> str:
        """The URL without user and password."""
        return f"{'mqtts' if self.is_tls else 'mqtt'}://{Address(self.host, self.port)}"

    @classmethod
    def from_url(
        cls,
        text: str,
        *,
        username: str | None = None,
        password: str | None = None,
        password_file: Path | None = None,
        ca: Path | None = None,
        cert: Path | None = None,
        cert_key: Path | None = None,
    ) -> Broker:
        """Parse ``mqtt[s]://[USER[:PASSWORD]@]HOST[:PORT]``, user and password percent-encoded. Raises ValueError.

        User and password of the URL take precedence over the arguments.
        """
        parts = _split_url(text)
        is_tls = parts.scheme == "mqtts"
        return cls(
            host=parts.hostname or "",
            port=parts.port or (DEFAULT_TLS_PORT if is_tls else DEFAULT_PORT),
            is_tls=is_tls,
            username=username if parts.username is None else unquote(parts.username),
            password=password if parts.password is None else unquote(parts.password),
            password_file=password_file,
            ca=ca,
            cert=cert,
            cert_key=cert_key,
        )

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

    @property
    def user_text(self) -> str:
        """The user, for messages."""
        return f"user {self.username!r}" if self.username else "a client without a user"

    def load_secrets(self) -> tuple[str | None, ssl.SSLContext | None]:
        """Password and TLS context from the files as they are now. Blocks. Raises BrokerError."""
        return self._load_password(), self._load_tls_context() if self.is_tls else None

    def _load_password(self) -> str | None:
        if self.password is not None or self.password_file is None:
            return self.password
        try:
            return read_file(self.password_file, MAX_SECRET_BYTES).text().rstrip("\r\n")
        except FileError as error:
            raise BrokerError(
                f"cannot read password_file {self.password_file}: {error}", state=BrokerState.FAILED
            ) from None

    def _load_tls_context(self) -> ssl.SSLContext:
        option, path = "ca", self.ca
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.cert is not None:
                option, path = "cert", self.cert
                if self.cert_key is not None and not self.cert_key.exists():
                    option, path = "cert_key", self.cert_key
                    raise FileNotFoundError
                context.load_cert_chain(self.cert, self.cert_key, password=_refuse_passphrase)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            is_missing = isinstance(error, FileNotFoundError)
            reason = "there is no such file" if is_missing else plain_tls_text(error)
            raise BrokerError(f"cannot use the broker's {option} {path}: {reason}", state=BrokerState.FAILED) from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context


def _split_url(text: str) -> SplitResult:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError(f"this is not a broker's URL; {_URL_FORM}") from None
    if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname or port == 0 or parts.query or parts.fragment:
        raise ValueError(f"this is not a broker's URL; {_URL_FORM}")
    if parts.path not in {"", "/"}:
        raise ValueError(f"a broker's URL has no path; {_URL_FORM}, and percent-encode user and password")
    return parts


def _refuse_passphrase() -> str:
    # Without this function OpenSSL would prompt on the terminal.
    raise ValueError("its key is encrypted; provide a key without a passphrase")


# --- errors as sentences ----------------------------------------------------------------------------------------------


def login_refused(broker: Broker, code: int | None, reason: str) -> BrokerError:
    """CONNACK carries an error code."""
    if code in CREDENTIAL_CODES:
        message = f"the broker {broker} refuses {broker.user_text}: check user, password and access rules"
        return BrokerError(message, code, BrokerState.REFUSED)
    return BrokerError(f"the broker {broker} refuses the connection: {reason.lower()}", code, BrokerState.REFUSED)


def subscription_refused(broker: Broker, topic: str, code: int) -> BrokerError:
    """SUBACK carries an error code."""
    message = f"the broker {broker} does not allow {broker.user_text} to read {topic}: correct its access rules"
    return BrokerError(message, code, BrokerState.REFUSED)


def messages_dropped(broker: Broker, base: str) -> BrokerError:
    """The broker confirms our messages and does not deliver them."""
    message = f"the broker {broker} drops messages below {base}/: allow {broker.user_text} to write and read there"
    return BrokerError(message, min(CREDENTIAL_CODES), BrokerState.REFUSED)


def no_connack(broker: Broker) -> BrokerError:
    """The connection ended, or timed out, before CONNACK."""
    hint = "; it may require a client certificate" if broker.is_tls and broker.cert is None else ""
    return BrokerError(f"the broker {broker} does not answer as an MQTT broker{hint}", state=BrokerState.REFUSED)


def tls_failed(broker: Broker, error: BaseException) -> BrokerError:
    """The TLS handshake failed."""
    return BrokerError(f"TLS with the broker {broker} failed: {plain_tls_text(error)}", state=BrokerState.REFUSED)


def not_answering(broker: Broker) -> BrokerError:
    """A confirmation, or any data, is overdue."""
    return BrokerError(f"the broker {broker} no longer answers")


def connection_lost(broker: Broker, code: int | None = None) -> BrokerError:
    """The connection ended after CONNACK; ``code`` is that of the broker's DISCONNECT, if it sent one."""
    if code is None:
        return BrokerError(f"the connection to the broker {broker} was lost")
    return BrokerError(f"the broker {broker} closed the connection: {describe_code(code)}", code)


def packet_too_long(broker: Broker, length: int, limit: int) -> BrokerError:
    """The broker sends a packet that no message of this program needs."""
    return BrokerError(
        f"the broker {broker} sent a packet of {length} bytes, and at most {limit} are read: find the client that "
        "publishes it, or limit message sizes at the broker",
        _PACKET_TOO_LARGE_CODE,
    )


def publication_refused(broker: Broker, topic: str, code: int, others: int = 0) -> str:
    """PUBACK carries an error code; ``others`` is how many other topics are refused as well."""
    also = f" and {others} other topic{'s' if others > 1 else ''}" if others else ""
    if code in CREDENTIAL_CODES:
        return (
            f"the broker {broker} does not allow {broker.user_text} to write {topic}{also} "
            f"(reason code {code}): correct its access rules"
        )
    return f"the broker {broker} refuses messages on {topic}{also}: {describe_code(code)}"


_CODE_TEXTS: Final = {
    0: "it gave no reason",
    129: "it received a malformed packet",
    130: "it received a packet that violates the protocol",
    131: "it does not accept a message, for a reason of its own",
    135: "not authorized; check its access rules",
    137: "it is busy",
    139: "it is shutting down",
    141: "it received nothing for too long",
    TAKEN_OVER_CODE: "another program uses our client id",
    144: "it does not accept the name of a topic",
    147: "it received more unconfirmed messages than it accepts",
    _PACKET_TOO_LARGE_CODE: "a message is longer than it accepts; raise its limit of the packet size",
    150: "messages come faster than it accepts; raise its limit of the rate",
    151: "a quota is exceeded; raise its quota for this user",
    152: "an administrator, or a rule, closed the connection",
    153: "it does not accept the format of a message",
    154: "it does not support retained messages, which hosts need",
    155: "it does not support QoS 1, which hosts need",
    156: "another server has to be used for now",
    157: "the server has moved",
    159: "connections come faster than it accepts",
    160: "the connection was open for as long as it allows",
}
"""Reason codes of DISCONNECT and PUBACK (MQTT 5, section 2.4), as the end of a sentence."""


def describe_code(code: int) -> str:
    """A reason code of MQTT 5 as the end of a sentence, with its number for the broker's manual."""
    text = _CODE_TEXTS.get(code)
    return f"{text} (reason code {code})" if text else f"reason code {code}"


def plain_tls_text(error: BaseException) -> str:
    """The message of an OpenSSL error without library and source position."""
    return re.sub(r"^\[[^\]]*\]\s*|\s*\(_ssl\.c:\d+\)$", "", str(error)).strip() or "TLS failed"
