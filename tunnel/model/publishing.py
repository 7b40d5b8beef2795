"""Published services: what a server lets the holders of its keys publish, and what a client asks for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from tunnel.model.address import Address, parse_address
from tunnel.model.errors import InvalidValueError, UrlError
from tunnel.model.option_types import JsonSchema, word_schemas

if TYPE_CHECKING:
    from pathlib import Path

    from tunnel.model.rate import Rate

DEFAULT_MAX_SERVICES: Final = 16
DEFAULT_GRACE_S: Final = 60.0
MAX_PORT: Final = 65_535

_SERVICE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PORTS: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_NONE: Final = "none"
_PORT_PATTERN: Final = "^(.*:)?[0-9]{1,5}$"


@dataclass(frozen=True, slots=True)
class PortRange:
    """Ports from the first to the last, both included."""

    first: int
    last: int

    def __contains__(self, port: int) -> bool:
        return self.first <= port <= self.last

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


def parse_port_range(text: str) -> PortRange:
    """Parse ``8080`` or ``8000-8999``. Raises InvalidValueError."""
    found = _PORTS.fullmatch(text.strip())
    first = int(found[1]) if found else 0
    last = int(found[2] or first) if found else 0
    if not 1 <= first <= last <= MAX_PORT:
        raise InvalidValueError("{} is not a port or a range of ports, as in 8080 or 8000-8999", repr(text[:40]))
    return PortRange(first, last)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishRule:
    """What clients with certain keys may publish at a server."""

    host: str
    """where visitors are accepted; a wildcard permits each address of this host"""
    ports: tuple[PortRange, ...]
    services: tuple[str, ...]
    """names, or patterns with ``*``, ``?`` and ``[…]``"""
    keys: tuple[str, ...] = ()
    """names of the keys that the rule is for; none: all keys of the entry"""
    max_services: int = DEFAULT_MAX_SERVICES
    """services that each key may have at once"""
    visitors: int | None = None
    """visitors of each service at once; None: the entry's ``semaphore_limit``"""
    rate: Rate | None = None
    """of each service; None: the entry's ``rate``"""
    grace_s: float = DEFAULT_GRACE_S
    """seconds without a client after which a service is removed"""

    def __str__(self) -> str:
        return f"{self.address_text} {','.join(self.services)}"

    @property
    def address_text(self) -> str:
        """The host and the ports, as an address is written."""
        return f"{str(Address(self.host, 0)).removesuffix('0')}{','.join(map(str, self.ports))}"

    def permits_key(self, name: str) -> bool:
        """Return whether the rule is for a key."""
        return not self.keys or name in self.keys

    def permits_service(self, service: str) -> bool:
        """Return whether a service may have this name."""
        return any(fnmatchcase(service, pattern) for pattern in self.services)

    def permits_port(self, port: int) -> bool:
        """Return whether visitors may be accepted on a port."""
        return any(port in ports for ports in self.ports)

    def permits_host(self, host: str) -> bool:
        """Return whether visitors may be accepted on a host; an empty one is that of the rule."""
        ours, theirs = Address(self.host, 0), Address(host, 0)
        if not host or host == self.host or (ours.ip is not None and ours.ip == theirs.ip):
            return True
        if not ours.is_wildcard or theirs.ip is None:
            return False
        return ours.ip is None or ours.ip.version in {6, theirs.ip.version}  # :: accepts IPv4 as well


@dataclass(frozen=True, slots=True)
class PublishRequest:
    """What a client that has authenticated asks for."""

    key_name: str
    service: str
    address: Address
    """an empty host: that of the server's rule"""


def is_publishable_name(service: str) -> bool:
    """Return whether a published service may have this name: it becomes a part of the name of a tunnel."""
    return _SERVICE.fullmatch(service) is not None


def parse_published_address(text: str) -> Address:
    """Parse ``PORT`` or ``ADDR:PORT``, with an IP address. Raises InvalidValueError."""
    try:
        address = parse_address(text if ":" in text else f":{text}")
    except UrlError as error:
        raise InvalidValueError(f"not a port or ADDR:PORT of the server: {error.message}", *error.quoted) from None
    if not address.port or (address.host and address.ip is None):
        raise InvalidValueError("{} is not a port from 1 to 65535, or IP:PORT of the server", repr(text[:60]))
    return address


def format_published_address(address: Address) -> str:
    """Return the address as ``parse_published_address`` reads it, the port alone where there is no host."""
    return str(address) if address.host else str(address.port)


@dataclass(frozen=True, slots=True)
class PublishType:
    """The address that a client asks its server to open, or None."""

    values: str = "a port, or `ADDR:PORT` with an IP address; `none`"

    def parse(self, value: object, _: Path) -> Address | None:
        """Parse a port, an address, or the word for neither. Raises InvalidValueError."""
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise InvalidValueError("not a port, or ADDR:PORT of the server")
        text = str(value).strip()
        return None if text.lower() == _NONE else parse_published_address(text)

    def format(self, value: Address | None) -> str:
        """Return the address as a URL has it."""
        return _NONE if value is None else format_published_address(value)

    def json_schemas(self) -> tuple[JsonSchema, ...]:
        """Return alternatives that describe the value in a YAML file."""
        port: JsonSchema = {"type": "integer", "minimum": 1, "maximum": MAX_PORT}
        return (port, *word_schemas((_NONE,)), {"type": "string", "pattern": _PORT_PATTERN})
