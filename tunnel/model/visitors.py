"""A visitor as users see it, and which visitors a user means by an id, an address or a network. Pure data."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from tunnel.model.address import parse_address
from tunnel.model.errors import InvalidValueError, TunnelError

if TYPE_CHECKING:
    from tunnel.model.spec import Proto

_ID: Final = re.compile(r"[0-9a-f]{16}-[0-9]{1,20}(\.[0-9]{1,20})?")
_HINT: Final = "write a visitor's ID, an IP address with or without its port, or a network as in 192.0.2.0/24"
_MAX_TEXT_LENGTH: Final = 120
_LANE_BIT: Final = 1 << 63
_NUMBER_BITS: Final = 32
_NUMBERS: Final = (1 << _NUMBER_BITS) - 1
CONNECTION_IDS: Final = (1 << 31) - 1
"""Modulo which the id of a shared connection names it."""


class VisitorView(NamedTuple):
    """One visitor at one moment, as one end of its tunnel sees the visitor. Can be pickled. None: unknown."""

    id: str | None
    """the same at both ends; None while the visitor waits for a data connection"""
    address: str | None
    since: float | None
    """seconds since the epoch; computed from the monotonic clock, so it moves when the wall clock is set"""
    from_visitor: int
    """bytes"""
    to_visitor: int
    """bytes"""
    target: str | None
    """the address that was dialled; None at an ingress, which does not know it"""
    link: str | None
    state: str
    """``queued`` (no data connection yet), ``dialing`` (no target yet) or ``connected``"""
    proto: Proto
    """what the visitor speaks: TCP or UDP"""
    paused_s: float | None = None
    """seconds in which a limit of the rate held the more delayed of the two directions back; None without a limit"""


QUEUED: Final = "queued"
DIALING: Final = "dialing"
CONNECTED: Final = "connected"
VISITOR_STATES: Final = (QUEUED, DIALING, CONNECTED)


def lane_ident(connection: int, number: int) -> int:
    """Return the number that names a lane among data connections: u64, different from all of theirs.

    ``connection`` is the id of the shared connection, and ``number`` that of the lane in it, a u32.
    """
    return _LANE_BIT | (connection & CONNECTION_IDS) << _NUMBER_BITS | number


def split_lane_ident(ident: int) -> tuple[int, int] | None:
    """Return the id of the shared connection, modulo 2^31, and the number of the lane; None for a data connection."""
    if ident < _LANE_BIT:
        return None
    return ident >> _NUMBER_BITS & CONNECTION_IDS, ident & _NUMBERS


def visitor_id(link: str, ident: int, use: int) -> str:
    """Return the id of the visitor of a data connection, the same at both ends: link, data connection, use.

    Of a visitor in a lane: link, data connection, lane.
    """
    lane = split_lane_ident(ident)
    if lane is not None:
        return f"{link}-{lane[0]}.{lane[1]}"
    return f"{link}-{ident}.{use}" if use else f"{link}-{ident}"


@dataclass(frozen=True, slots=True)
class VisitorSelector:
    """Which visitors a user means: one id, or all that come from a network, perhaps from one port."""

    id: str | None = None
    network: bytes = b""
    """the first address of the network in 4 or 16 bytes; empty if ``id`` is set"""
    prefix_length: int = 0
    port: int | None = None

    def selects(self, ident: str | None, address: bytes) -> bool:
        """Whether this visitor is meant; ``address`` is packed as LAUNCH carries it: the port, then the IP address."""
        if self.id is not None:
            return ident == self.id
        if len(address) != 2 + len(self.network):
            return False
        if self.port is not None and int.from_bytes(address[:2]) != self.port:
            return False
        shift = 8 * len(self.network) - self.prefix_length
        return int.from_bytes(address[2:]) >> shift == int.from_bytes(self.network) >> shift


def parse_selector(text: str) -> VisitorSelector:
    """Parse ``ID``, ``ADDRESS``, ``ADDRESS:PORT`` or ``NETWORK/BITS``. Raises InvalidValueError with a sentence."""
    text = text.strip()
    shown = repr(text[:_MAX_TEXT_LENGTH])
    if _ID.fullmatch(text):
        return VisitorSelector(text)
    try:
        if "/" in text:
            return _select_network(ipaddress.ip_network(text))
        if (host := text.removeprefix("[").removesuffix("]")) and _is_ip(host):
            return _select_network(ipaddress.ip_network(host.partition("%")[0]))
        address = parse_address(text)
        return _select_network(ipaddress.ip_network(address.host.partition("%")[0]), address.port)
    except (ValueError, TunnelError) as error:
        if "host bits" in str(error):
            meant = ipaddress.ip_network(text, strict=False)
            raise InvalidValueError(f"{{}} is an address inside of a network; write {meant}", shown) from None
        raise InvalidValueError(f"{{}} names no visitor; {_HINT}", shown) from None


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _select_network(network: ipaddress.IPv4Network | ipaddress.IPv6Network, port: int | None = None) -> VisitorSelector:
    address, length = network.network_address, network.prefixlen
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None and length >= 96:
        return VisitorSelector(network=address.ipv4_mapped.packed, prefix_length=length - 96, port=port)
    return VisitorSelector(network=address.packed, prefix_length=length, port=port)
