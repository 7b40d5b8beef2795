"""``server://[KEY@]TUNNEL_ADDR/TARGET_ADDR[?name=value&…]`` into its parts and back; ``options`` gives them meaning."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, unquote

from tunnel.model.spec import Address, Key, Role

_LONGEST: Final = 8192
_HOST: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_PORT: Final = re.compile(r"[0-9]{1,5}")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SHAPE: Final = "server://TUNNEL_ADDR/TARGET_ADDR, as in server://0.0.0.0:10101/127.0.0.1:8080"


class UrlError(ValueError):
    """A URL that cannot be a tunnel. ``offset`` counts characters from its start to the fault."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


@dataclass(frozen=True, slots=True)
class Option:
    """One ``name=value`` of a URL, and where it starts."""

    name: str
    value: str
    offset: int


@dataclass(frozen=True, slots=True)
class TunnelUrl:
    """The parts of a tunnel's URL; the options are not interpreted yet."""

    role: Role
    tunnel: Address
    target: Address
    key: Key | None = None
    options: tuple[Option, ...] = field(default=(), compare=False)

    def values(self) -> dict[str, str]:
        """The options as a mapping."""
        return {option.name: option.value for option in self.options}

    def masked(self) -> str:
        """The URL for eyes and logs: the key is three stars."""
        return self._text("***@" if self.key else "")

    def revealed(self) -> str:
        """The URL that works, key included: for a secret place only."""
        return self._text(f"{quote(self.key.reveal(), safe='')}@" if self.key else "")

    def _text(self, user: str) -> str:
        query = "&".join(f"{o.name}={quote(o.value, safe='/:,')}" for o in self.options)
        return f"{self.role}://{user}{self.tunnel}/{self.target}{'?' + query if query else ''}"


def looks_like_url(text: str) -> bool:
    """Whether somebody meant this as a tunnel's URL, well-formed or not."""
    return "://" in text


def parse(text: str) -> TunnelUrl:
    """The parts of a URL. Raises UrlError; its message never holds the key."""
    if len(text) > _LONGEST:
        raise UrlError(f"the URL is longer than {_LONGEST} characters", _LONGEST)
    scheme, separator, rest = text.partition("://")
    if not separator:
        raise UrlError(f"this is not a tunnel URL; write {_SHAPE}", 0)
    try:
        role = Role(scheme.lower())
    except ValueError:
        named = "" if "@" in scheme else f" {scheme[:40]!r}"  # what stands before an @ may be a key
        raise UrlError(f"unknown scheme{named}; write server:// or client://", 0) from None
    start = len(scheme) + len(separator)
    for index, char in enumerate(rest):
        if char.isspace() or not char.isprintable():
            raise UrlError("a URL holds no blanks or control characters; percent-encode them", start + index)

    body, question, query = rest.partition("?")
    if "@" in query:  # a key with a bare ? would be cut in two, and its halves shown as addresses and options
        spot = start + len(body) + 1 + query.index("@")
        raise UrlError("an @ after the ?; in a key write %3F for ?, in an option %40 for @", spot)
    authority_end = body.find("/", body.rfind("@") + 1)  # a key may hold a bare slash: it ends at the last @
    if authority_end < 0:
        raise UrlError(f"the target address is missing; write {_SHAPE}", start + len(body))
    authority, path = body[:authority_end], body[authority_end + 1 :]
    user, at, where = authority.rpartition("@")
    key = _parse_key(user, start) if at else None
    tunnel = _parse_address(where, start + len(user) + len(at), "tunnel")
    target_text = path.removesuffix("/")
    target = _parse_address(target_text, start + authority_end + 1, "target")
    if role is Role.CLIENT and tunnel.port == 0:
        raise UrlError("a client cannot connect to port 0; write the server's port", start + len(user) + len(at))
    options = _parse_query(query, start + len(body) + 1) if question else ()
    return TunnelUrl(role, tunnel, target, key, options)


def _parse_key(user: str, offset: int) -> Key:
    if not user:
        raise UrlError("the key before @ is empty; write KEY@ or leave out the @", offset)
    if _BAD_ESCAPE.search(user):
        raise UrlError("the key has a % that starts no escape; write %25 for a percent sign", offset)
    try:
        return Key(unquote(user, errors="strict"))
    except UnicodeDecodeError:
        raise UrlError("the key's percent-encoding is not UTF-8", offset) from None


def parse_address(text: str) -> Address:
    """``host:port``, ``[v6]:port`` or ``:port``. Raises UrlError with the offset within ``text``."""
    return _parse_address(text, 0, "")


def _parse_address(text: str, offset: int, which: str) -> Address:
    what = f"{which} address".strip()
    if not text:
        raise UrlError(f"the {what} is missing; write {_SHAPE}", offset)
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not rest.startswith(":"):
            raise UrlError(f"the {what} {text[:80]!r} is not [IPv6]:port", offset)
        port_text, port_offset = rest[1:], offset + len(host) + 3
        if (ip := Address(host, 0).ip) is None or ip.version != 6:
            raise UrlError(f"{host[:60]!r} in brackets is not an IPv6 address", offset + 1)
    else:
        host, colon, port_text = text.rpartition(":")
        port_offset = offset + len(host) + 1
        if not colon:
            raise UrlError(f"the {what} {text[:80]!r} has no port; write host:port", offset)
        if ":" in host:
            raise UrlError(f"an IPv6 address stands in brackets: [{host[:60]}]:{port_text[:5]}", offset)
        if host and Address(host, 0).ip is None:
            _check_name(host, offset, what)
    if not _PORT.fullmatch(port_text) or int(port_text) > 65535:
        raise UrlError(f"the port {port_text[:20]!r} of the {what} is not a number from 0 to 65535", port_offset)
    return Address(host, int(port_text))


def _check_name(host: str, offset: int, what: str) -> None:
    ascii_host = host
    if not host.isascii():
        try:
            ascii_host = host.encode("idna").decode()
        except UnicodeError:
            ascii_host = ""
    labels = ascii_host.rstrip(".").split(".")
    if not _HOST.fullmatch(ascii_host) or len(ascii_host) > 253 or not all(0 < len(label) < 64 for label in labels):
        raise UrlError(f"{host[:80]!r} in the {what} is neither a host name nor an IP address", offset)
    if labels[-1].isdigit():  # 1.2.3 or 300.1.1.1: a slip in an IPv4 address, never a name
        raise UrlError(f"{host[:80]!r} in the {what} is not an IPv4 address", offset)


def _parse_query(query: str, offset: int) -> tuple[Option, ...]:
    options: list[Option] = []
    for part in query.split("&"):
        name, equals, value = part.partition("=")
        if part:
            if not equals or not name:
                raise UrlError(f"{part[:40]!r} is not name=value", offset)
            if any(option.name == name for option in options):
                raise UrlError(f"the option {name[:40]!r} is given twice", offset)
            if _BAD_ESCAPE.search(value):
                raise UrlError(f"the option {name[:40]!r} has a % that starts no escape; write %25", offset)
            try:
                options.append(Option(name, unquote(value, errors="strict"), offset))
            except UnicodeDecodeError:
                raise UrlError(f"the percent-encoding of the option {name[:40]!r} is not UTF-8", offset) from None
        offset += len(part) + 1
    return tuple(options)
