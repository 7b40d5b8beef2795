"""The address of a visitor as LAUNCH carries it: port and IP address in bytes. No I/O; see PROTOCOL.md."""

from __future__ import annotations

import socket
import struct
from functools import lru_cache
from typing import Final

_PORT: Final = struct.Struct("!H")
_FAMILIES: Final = {_PORT.size + 4: socket.AF_INET, _PORT.size + 16: socket.AF_INET6}
_MAPPED: Final = bytes(10) + b"\xff\xff"  # of an IPv4 address in IPv6 (RFC 4291 §2.5.5.2)
UNKNOWN: Final = b""
"""The address of a visitor that is not known."""


def pack_address(peer: object) -> bytes:
    """A socket address of IPv4 or IPv6 in bytes, without a zone, which means nothing elsewhere; else ``UNKNOWN``."""
    if not isinstance(peer, tuple) or len(peer) < 2:
        return UNKNOWN
    ip = pack_host(peer[0])
    return _PORT.pack(peer[1]) + ip if ip else UNKNOWN


@lru_cache(maxsize=1024)
def pack_host(host: str) -> bytes:
    """The IP address in the socket address of a peer, in 4 or 16 bytes; empty if it is none."""
    try:
        if ":" not in host:
            return socket.inet_aton(host)
        packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    except OSError:
        return b""
    return packed[12:] if packed.startswith(_MAPPED) else packed


def host_of(packed: bytes) -> bytes:
    """The IP address in a packed address, in 4 or 16 bytes; empty if it is not known."""
    return packed[_PORT.size :]


def unpack_address(packed: bytes) -> tuple[str, int] | None:
    """The host and port in a packed address; None if it is not known, or of a kind that later versions may add."""
    family = _FAMILIES.get(len(packed))
    if family is None:
        return None
    return socket.inet_ntop(family, packed[_PORT.size :]), _PORT.unpack_from(packed)[0]
