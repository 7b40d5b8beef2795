"""Parse ``server|client://[KEY@]TUNNEL_ADDR[,…]/TARGET_ADDR[,…][?name=value&…]``; ``options`` interprets it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, unquote

from tunnel.model.address import Address, parse_address
from tunnel.model.errors import InvalidValueError, UrlError
from tunnel.model.keys import Key
from tunnel.model.servers import ServerShare
from tunnel.model.spec import Role
from tunnel.model.targets import TargetSpec

_MAX_URL_LENGTH: Final = 8192
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_MASTER: Final = "master"  # of nodepass: its third scheme
_EXAMPLES: Final = {
    Role.SERVER: "server://TUNNEL_ADDR/TARGET_ADDR, as in server://0.0.0.0:10101/127.0.0.1:8080",
    Role.CLIENT: "client://TUNNEL_ADDR/TARGET_ADDR, as in client://server-host:10101/127.0.0.1:3000",
}


@dataclass(frozen=True, slots=True)
class UrlOption:
    """One ``name=value`` of a URL, and the offset at which it starts."""

    name: str
    value: str
    offset: int


@dataclass(frozen=True, slots=True)
class TunnelUrl:
    """The parts of a tunnel URL; the options are not interpreted yet."""

    role: Role
    tunnel: Address
    target: Address
    key: Key | None = None
    options: tuple[UrlOption, ...] = field(default=(), compare=False)
    targets: tuple[TargetSpec, ...] = ()
    """all targets, if there are several"""
    other_servers: tuple[Address, ...] = ()
    """of a client with several servers: those after the first"""
    server_shares: tuple[ServerShare, ...] = ()
    """of a client whose file lists several servers: all of them with their shares of the visitors"""
    has_target: bool = True
    """False: a server that lets clients publish, or the targets are elsewhere; ``target`` means nothing then"""

    def values(self) -> dict[str, str]:
        """Return the options as a mapping."""
        return {option.name: option.value for option in self.options}

    def offset_of(self, name: str) -> int:
        """Return the offset of an option, 0 if the URL does not have it."""
        return next((option.offset for option in self.options if option.name == name), 0)

    def masked(self) -> str:
        """Return the URL for logs and screens: the key is three stars."""
        return self._text("***@" if self.key else "")

    def revealed(self) -> str:
        """Return the URL with its key: only for places that keep secrets."""
        return self._text(f"{quote(self.key.reveal(), safe='')}@" if self.key else "")

    @property
    def tunnel_text(self) -> str:
        """The tunnel address, or all of several, as the URL has them."""
        return ",".join(map(str, (self.tunnel, *self.other_servers)))

    def _text(self, user: str) -> str:
        query = "&".join(f"{o.name}={quote(o.value, safe='/:,')}" for o in self.options)
        targets = ",".join(str(each.address) for each in self.targets) or str(self.target)
        path = f"/{targets}" if self.has_target else ""
        return f"{self.role}://{user}{self.tunnel_text}{path}{'?' + query if query else ''}"


def looks_like_url(text: str) -> bool:
    """Return whether the text is meant as a tunnel URL, well-formed or not."""
    return "://" in text


def parse_url(text: str, *, needs_target: bool = True) -> TunnelUrl:
    """Parse a URL into its parts. Raises UrlError, whose message never contains the key.

    Without ``needs_target`` the target may be left out: a server lets clients publish, or an entry lists its targets.
    """
    if len(text) > _MAX_URL_LENGTH:
        raise UrlError(f"the URL is longer than {_MAX_URL_LENGTH} characters", _MAX_URL_LENGTH)
    role, start = _parse_scheme(text)
    rest = text[start:]
    for index, char in enumerate(rest):
        if char.isspace() or not char.isprintable():
            raise UrlError("a URL must not contain blanks or control characters; percent-encode them", start + index)
    body, question, query = rest.partition("?")
    if "@" in query:  # a key with a bare ? would be split, and its halves shown as address and option
        offset = start + len(body) + 1 + query.index("@")
        raise UrlError("the URL has an @ after the ?; write %3F for ? in a key, %40 for @ in an option", offset)
    authority_end = body.find("/", body.rfind("@") + 1)  # a key may contain a bare slash: it ends at the last @
    has_target = authority_end >= 0 and body[authority_end:] != "/"
    if not has_target and not needs_target:
        body = body.removesuffix("/")
        authority_end = len(body)
    elif authority_end < 0:
        raise UrlError(f"the target address is missing; write {_EXAMPLES[role]}", start + len(body))
    user, at, tunnel_text = body[:authority_end].rpartition("@")
    tunnel_offset = start + len(user) + len(at)
    key = _parse_key(user, start) if at else None
    tunnels = _parse_tunnels(role, tunnel_text, tunnel_offset)
    targets = [Address("", 0)]
    if has_target or needs_target:
        targets = _parse_addresses(
            role, body[authority_end + 1 :].removesuffix("/"), start + authority_end + 1, "target"
        )
    options = _parse_query(query, start + len(body) + 1) if question else ()
    several = tuple(map(TargetSpec, targets)) if len(targets) > 1 else ()
    others = tuple(tunnels[1:])
    return TunnelUrl(role, tunnels[0], targets[0], key, options, several, others, has_target=has_target or needs_target)


def _parse_tunnels(role: Role, text: str, offset: int) -> list[Address]:
    """Parse the tunnel address, or the addresses of a client's servers; ``offset`` is where they start in the URL."""
    if role is Role.SERVER and "," in text:
        message = "a server listens on one tunnel address; only a client has several, one for each of its servers"
        raise UrlError(message, offset + text.index(","))
    tunnels = _parse_addresses(role, text, offset, "tunnel")
    if role is Role.CLIENT and any(each.port == 0 for each in tunnels):
        raise UrlError("a client cannot connect to port 0; write the server's port", offset)
    return tunnels


def _parse_addresses(role: Role, text: str, offset: int, label: str) -> list[Address]:
    """Parse one or several addresses, separated by commas; ``offset`` is where they start in the URL."""
    found: list[Address] = []
    for part in text.split(","):
        if not part and found:
            raise UrlError(f"there is a comma without a {label} address after it", offset)
        if not part:
            raise UrlError(f"the {label} address is missing; write {_EXAMPLES[role]}", offset)
        found.append(parse_address(part, offset, label))
        offset += len(part) + 1
    return found


def _parse_scheme(text: str) -> tuple[Role, int]:
    """Return the role, and the offset behind ``://``."""
    scheme, separator, _ = text.partition("://")
    if not separator:
        raise UrlError(f"this is not a tunnel URL; write {_EXAMPLES[Role.SERVER]}", 0)
    try:
        return Role(scheme.lower()), len(scheme) + len(separator)
    except ValueError:
        if scheme.lower() == _MASTER:
            text = "there is no master here: nodepass-orch up FILE runs all tunnels of a file and has a local API"
            raise UrlError(text, 0) from None
        if "@" in scheme:  # text before an @ may be a key
            raise UrlError("unknown scheme; write server:// or client://", 0) from None
        raise UrlError("unknown scheme {}; write server:// or client://", 0, repr(scheme[:40])) from None


def _parse_key(user: str, offset: int) -> Key:
    if not user:
        raise UrlError("the key before @ is empty; write KEY@ or leave out the @", offset)
    if _BAD_ESCAPE.search(user):
        raise UrlError("the key has a % that is not an escape; write %25 for a percent sign", offset)
    try:
        return Key(unquote(user, errors="strict"))
    except UnicodeDecodeError:
        raise UrlError("the key's percent-encoding is not UTF-8", offset) from None
    except InvalidValueError as error:
        raise UrlError(error.message, offset) from None


def _parse_query(query: str, offset: int) -> tuple[UrlOption, ...]:
    options: list[UrlOption] = []
    for part in query.split("&"):
        name, equals, value = part.partition("=")
        if part:
            if not equals or not name:
                raise UrlError("{} is not name=value", offset, repr(part[:40]))
            if any(option.name == name for option in options):
                raise UrlError("the option {} is given twice", offset, repr(name[:40]))
            if _BAD_ESCAPE.search(value):
                raise UrlError("the option {} has a % that is not an escape; write %25", offset, repr(name[:40]))
            try:
                options.append(UrlOption(name, unquote(value, errors="strict"), offset))
            except UnicodeDecodeError:
                raise UrlError("the percent-encoding of the option {} is not UTF-8", offset, repr(name[:40])) from None
        offset += len(part) + 1
    return tuple(options)
