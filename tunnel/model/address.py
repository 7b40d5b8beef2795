"""A host and a port, as tunnel URLs and the configuration file write them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from tunnel.model.errors import UrlError

_HOST: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_PORT: Final = re.compile(r"[0-9]{1,5}")
_BROADCAST: Final = ipaddress.IPv4Address("255.255.255.255")
_MAX_HOST_LENGTH: Final = 253  # RFC 1035, section 2.3.4, without the root label
_MAX_LABEL_LENGTH: Final = 63


@dataclass(frozen=True, slots=True)
class Address:
    """Host and port of TCP. An empty host means every interface, as in Go."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The host as an IP address, or None if it is a name or empty."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    @property
    def is_wildcard(self) -> bool:
        """Whether the address means every interface of the host."""
        return not self.host or ((ip := self.ip) is not None and ip.is_unspecified)

    @property
    def is_loopback(self) -> bool:
        """Whether only processes of this host can reach the address."""
        return self.host.lower() == "localhost" or ((ip := self.ip) is not None and ip.is_loopback)


def parse_address(text: str, offset: int = 0, label: str = "") -> Address:
    """Parse ``host:port``, ``[v6]:port`` or ``:port``.

    ``offset`` is the position of ``text`` in a URL and ``label`` the part of the URL; both appear in errors.
    Raises UrlError.
    """
    what = f"{label} address".strip()
    if not text:
        raise UrlError(f"the {what} is missing; write HOST:PORT", offset)
    if text.startswith("["):
        host, port_text, port_offset = _split_bracketed(text, offset, what)
    else:
        host, port_text, port_offset = _split_plain(text, offset, what)
    if not _PORT.fullmatch(port_text) or int(port_text) > 65535:
        message = f"the port {{}} of the {what} is not a number from 0 to 65535"
        raise UrlError(message, port_offset, repr(port_text[:20]))
    address = Address(host, int(port_text))
    if (ip := address.ip) is not None and (ip.is_multicast or ip == _BROADCAST):
        raise UrlError(f"the {what} {{}} is a multicast or broadcast address, which TCP cannot use", offset, repr(host))
    return address


def _split_bracketed(text: str, offset: int, what: str) -> tuple[str, str, int]:
    """Return host, port text and offset of the port of ``[v6]:port``; an IPv4-mapped address becomes that of IPv4."""
    host, bracket, rest = text[1:].partition("]")
    if not bracket or not rest.startswith(":"):
        raise UrlError(f"the {what} {{}} is not [IPv6]:port", offset, repr(text[:80]))
    # a zone may be written as URLs demand, with the percent sign encoded (RFC 6874 §2)
    ip = Address(host.replace("%25", "%", 1), 0).ip
    if ip is None or ip.version != 6:
        raise UrlError("{} in brackets is not an IPv6 address", offset + 1, repr(host[:60]))
    normal = host.replace("%25", "%", 1) if ip.ipv4_mapped is None else str(ip.ipv4_mapped)
    return normal, rest[1:], offset + len(host) + 3


def _split_plain(text: str, offset: int, what: str) -> tuple[str, str, int]:
    """Return host, port text and offset of the port of ``host:port``."""
    host, colon, port_text = text.rpartition(":")
    if not colon:
        raise UrlError(f"the {what} {{}} has no port; write host:port", offset, repr(text[:80]))
    if ":" in host:
        raise UrlError("an IPv6 address must be in brackets: {}", offset, f"[{host[:60]}]:{port_text[:5]}")
    if host and Address(host, 0).ip is None:
        _check_host_name(host, offset, what)
    return host, port_text, offset + len(host) + 1


def _check_host_name(host: str, offset: int, what: str) -> None:
    ascii_host = host
    if not host.isascii():
        try:
            ascii_host = host.encode("idna").decode()
        except UnicodeError:
            ascii_host = ""
    labels = ascii_host.rstrip(".").split(".")
    has_valid_labels = all(0 < len(label) <= _MAX_LABEL_LENGTH for label in labels)
    if not _HOST.fullmatch(ascii_host) or len(ascii_host) > _MAX_HOST_LENGTH or not has_valid_labels:
        raise UrlError(f"{{}} in the {what} is neither a host name nor an IP address", offset, repr(host[:80]))
    if labels[-1].isdigit():  # 1.2.3 or 300.1.1.1 is a mistyped IPv4 address; no top-level domain is a number
        raise UrlError(f"{{}} in the {what} is not an IPv4 address", offset, repr(host[:80]))
