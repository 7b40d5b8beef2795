"""Sets of IP networks, as the options ``allow`` and ``deny`` list them. A large set is looked up in microseconds.

Addresses are packed: 4 bytes of IPv4, 16 of IPv6, in network order, so that bytes compare as the addresses do. An
IPv4-mapped IPv6 address or network (RFC 4291 §2.5.5.2) is the IPv4 one.
"""

from __future__ import annotations

import socket
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from tunnel.model.errors import InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Iterable

_MAPPED: Final = bytes(10) + b"\xff\xff"
_MAPPED_BITS: Final = 8 * len(_MAPPED)
_IPV4_BYTES: Final = 4
_MAX_TEXT_CHARS: Final = 64  # of one network; the longest is 43
_MAX_QUOTED_CHARS: Final = 40

Network = tuple[bytes, int]
"""The packed first address of a network, and the length of its prefix."""
_Ranges = tuple[tuple[bytes, ...], tuple[bytes, ...]]
"""The first and the last addresses of networks that do not overlap, in their order."""


def unmap_address(packed: bytes) -> bytes:
    """Return the IPv4 address in an IPv4-mapped IPv6 address; any other address as it is."""
    return packed.removeprefix(_MAPPED)


def parse_network(text: str) -> Network:
    """Parse ``192.0.2.0/24``, ``2001:db8::/32`` or a single address. Raises InvalidValueError."""
    host, slash, length = text.partition("/")
    if len(text) > _MAX_TEXT_CHARS:
        raise _invalid("{} is not a network, as in 192.0.2.0/24 or 2001:db8::/32", text)
    try:
        packed = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    except (OSError, ValueError):
        raise _invalid("{} is not a network, as in 192.0.2.0/24 or 2001:db8::/32", text) from None
    bits = 8 * len(packed)
    if not slash:
        return unmap_address(packed), 8 * len(unmap_address(packed))
    if not (length.isascii() and length.isdigit() and len(length) <= 3 and int(length) <= bits):
        raise _invalid(f"{{}} has no prefix length from 0 to {bits} after the slash", text)
    prefix = int(length)
    if _last_address(packed, prefix, set_bits=False) != packed:
        first = format_network((_last_address(packed, prefix, set_bits=False), prefix))
        raise InvalidValueError(f"{{}} is an address with a prefix; write {first} or {host}", repr(text))
    if prefix >= _MAPPED_BITS and packed.startswith(_MAPPED):
        return unmap_address(packed), prefix - _MAPPED_BITS
    return packed, prefix


def _invalid(message: str, text: str) -> InvalidValueError:
    return InvalidValueError(message, repr(text[:_MAX_QUOTED_CHARS]))


def format_network(network: Network) -> str:
    """Return a network as text; a single address without a prefix length."""
    packed, prefix = network
    host = socket.inet_ntop(socket.AF_INET if len(packed) == _IPV4_BYTES else socket.AF_INET6, packed)
    return host if prefix == 8 * len(packed) else f"{host}/{prefix}"


def _last_address(first: bytes, prefix: int, *, set_bits: bool = True) -> bytes:
    """Return an address with all bits after its prefix set, or cleared."""
    number, host_bits = int.from_bytes(first), (1 << (8 * len(first) - prefix)) - 1
    return (number | host_bits if set_bits else number & ~host_bits).to_bytes(len(first))


def _merge_ranges(networks: Iterable[Network]) -> _Ranges:
    """Return the ranges of networks; two of them are separate or one contains the other."""
    firsts: list[bytes] = []
    lasts: list[bytes] = []
    for first, prefix in networks:  # sorted, so that a network comes before those that it contains
        if not lasts or first > lasts[-1]:
            firsts.append(first)
            lasts.append(_last_address(first, prefix))
    return tuple(firsts), tuple(lasts)


@dataclass(frozen=True, slots=True)
class NetworkSet:
    """A set of IPv4 and IPv6 networks. ``packed in networks`` takes logarithmic time."""

    networks: tuple[Network, ...] = ()
    """sorted, each once"""
    _ipv4: _Ranges = field(init=False, repr=False, compare=False)
    _ipv6: _Ranges = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, size in (("_ipv4", _IPV4_BYTES), ("_ipv6", 16)):
            object.__setattr__(self, name, _merge_ranges(one for one in self.networks if len(one[0]) == size))

    @classmethod
    def of(cls, networks: Iterable[Network]) -> Self:
        """Return the set of some networks in any order."""
        return cls(tuple(sorted(set(networks), key=lambda one: (len(one[0]), *one))))

    def __len__(self) -> int:
        return len(self.networks)

    def __contains__(self, packed: bytes) -> bool:
        """Whether a packed address belongs to one of the networks; an unknown address, ``b""``, never does."""
        firsts, lasts = self._ipv4 if len(packed) == _IPV4_BYTES else self._ipv6
        at = bisect_right(firsts, packed)
        return at > 0 and packed <= lasts[at - 1]


NO_NETWORKS: Final = NetworkSet()

AdmittedNetworks = tuple[NetworkSet, NetworkSet]
"""The networks that visitors are admitted from, all if it is empty; and those that they are refused from."""
EVERYWHERE: Final[AdmittedNetworks] = (NO_NETWORKS, NO_NETWORKS)
"""Visitors are admitted from all networks."""
