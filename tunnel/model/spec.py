"""What a tunnel shall be: a frozen, typed description with the key masked."""

from __future__ import annotations

import enum
import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tunnel.model.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path


class Role(enum.StrEnum):
    """Which end of a tunnel pair makes the link."""

    SERVER = "server"
    CLIENT = "client"


class Mode(enum.StrEnum):
    """Which direction the URL asks for."""

    AUTO = "auto"
    REVERSE = "reverse"
    FORWARD = "forward"


class Direction(enum.StrEnum):
    """Which end accepts visitors: the server in reverse, the client in forward."""

    REVERSE = "reverse"
    FORWARD = "forward"


class LogLevel(enum.IntEnum):
    """How grave an event is, and from which gravity on a tunnel's events are logged."""

    DEBUG = 10
    INFO = 20
    WARN = 30
    ERROR = 40
    FATAL = 50


class DataTls(enum.IntEnum):
    """Encryption of data connections."""

    OFF = 0
    """the control channel alone is encrypted"""
    PINNED = 1
    """the certificate seen on the control channel, and no other"""
    VERIFIED = 2
    """certificate files, verified against a CA; the control channel too"""


class Key:
    """A shared key. It shows itself to nobody by accident: every way of printing it gives a mask."""

    __slots__ = ("_secret",)

    def __init__(self, secret: str) -> None:
        if not secret:
            raise ValueError("a key cannot be empty")
        self._secret = secret

    def reveal(self) -> str:
        """The key itself, for the proof and for writing a URL that is meant to work."""
        return self._secret

    def __repr__(self) -> str:
        return "Key(***)"

    def __str__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and other._secret == self._secret

    def __hash__(self) -> int:
        return hash((Key, self._secret))

    def __reduce__(self) -> tuple[type[Key], tuple[str]]:  # a spec travels to a worker process whole
        return Key, (self._secret,)


@dataclass(frozen=True, slots=True)
class Address:
    """Host and port of TCP. An empty host means every interface, as in Go."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The host as an IP address, or None where it is a name or empty."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    @property
    def is_wildcard(self) -> bool:
        """Whether it stands for every interface of the host."""
        return not self.host or ((ip := self.ip) is not None and ip.is_unspecified)

    @property
    def is_loopback(self) -> bool:
        """Whether only this host can reach it."""
        return self.host == "localhost" or ((ip := self.ip) is not None and ip.is_loopback)


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelSpec:
    """Everything that an engine needs to know, from one URL and what stands around it."""

    role: Role
    tunnel: Address
    """server: where it listens; client: where the server is"""
    target: Address
    """exit: dialled for every visitor; entrance: where visitors are accepted"""
    key: Key | None = None
    """shared by both ends; None makes the tunnel open to anyone who finds the port"""
    mode: Mode = Mode.AUTO
    data_port: int | None = 0
    """port of the data listener; 0: a random one; None: none beside the tunnel port"""
    data_tls: DataTls = DataTls.OFF
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    log: LogLevel = LogLevel.INFO
    settings: Settings = field(default_factory=Settings)

    @property
    def auth(self) -> str:
        """``key`` or ``open``."""
        return "key" if self.key else "open"

    @property
    def is_exposed(self) -> bool:
        """Whether it is open to others than this host's own users: what deserves a warning."""
        return self.key is None and not (self.tunnel.is_loopback and self.target.is_loopback)

    @property
    def cooldown(self) -> float:
        """The longest wait between two attempts, in seconds."""
        return self.settings.server_cooldown if self.role is Role.SERVER else self.settings.client_cooldown
