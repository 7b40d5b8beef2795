"""Whether an IP address is one of this host: asked of the kernel's routing table (rtnetlink(7)).

The source address of a connection does not tell: to a second address of an interface (an alias, a VRRP address) the
kernel connects from the first one. Nor does binding: with ``net.ipv4.ip_nonlocal_bind`` every address can be bound.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import ipaddress

# linux/netlink.h and linux/rtnetlink.h
_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence number, port
_ROUTE: Final = struct.Struct("=8BI")  # rtmsg: family, bits of the destination, ..., type, flags
_ATTRIBUTE: Final = struct.Struct("=HH")  # rtattr: length, type
_RTM_NEWROUTE: Final = 24
_RTM_GETROUTE: Final = 26
_NLM_F_REQUEST: Final = 1
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTN_LOCAL: Final = 2
_TYPE_INDEX: Final = 7  # of the type of the route in _ROUTE
_MAX_ANSWER_BYTES: Final = 8192


def is_own_ip(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, interface: int = 0) -> bool:
    """Whether packets to an address stay on this host; ``interface`` is the number that a link-local address needs.

    Raises OSError where the kernel does not answer such questions.
    """
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    body = _ROUTE.pack(family, ip.max_prefixlen, 0, 0, 0, 0, 0, 0, 0) + _attribute(_RTA_DST, ip.packed)
    if interface:
        body += _attribute(_RTA_OIF, struct.pack("=I", interface))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.setblocking(False)  # the kernel answers before ``send`` returns
        kernel.send(_HEADER.pack(_HEADER.size + len(body), _RTM_GETROUTE, _NLM_F_REQUEST, 1, 0) + body)
        answer = kernel.recv(_MAX_ANSWER_BYTES)
    if _HEADER.unpack_from(answer)[1] != _RTM_NEWROUTE:  # an error: there is no route to it
        return False
    return bool(_ROUTE.unpack_from(answer, _HEADER.size)[_TYPE_INDEX] == _RTN_LOCAL)


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value
