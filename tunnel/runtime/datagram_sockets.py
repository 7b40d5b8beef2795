"""UDP sockets: where visitors are accepted, and connected to a target."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import TYPE_CHECKING, ClassVar, Final

from tunnel.model.spec import Proto
from tunnel.runtime import sockets
from tunnel.runtime.connect_race import ConnectRace, SelfConnectError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunnel.runtime.datagram_port import DatagramPort
    from tunnel.runtime.resolver import Candidate
    from tunnel.runtime.sockets import SockAddr

_DATAGRAM: Final = int(socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
_IP_PKTINFO: Final = 8  # linux/in.h; Python has the name from 3.14 on
FLOW_BUFFER_BYTES: Final = 1 << 20
"""Receive buffer of a socket for one flow: some 900 datagrams of 1,200 bytes."""
SHARED_BUFFER_BYTES: Final = 1 << 22
"""Receive buffer of a socket for many flows: a process that waits for 0.1 s for its CPU loses none of 30,000/s."""
_SO_RCVBUFFORCE: Final = 33  # asm-generic/socket.h
_PKTINFO_KINDS: Final = {(socket.IPPROTO_IP, _IP_PKTINFO), (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO)}
_PKTINFO4: Final = struct.Struct("=I4s4s")  # struct in_pktinfo, ip(7): interface, local address, destination
_PKTINFO6: Final = struct.Struct("=16sI")  # struct in6_pktinfo, ipv6(7): destination, interface

PKTINFO_SPACE: Final = socket.CMSG_SPACE(_PKTINFO6.size)
"""Bytes for the one control message that a wildcard socket receives with each datagram."""

Ancillary = tuple[int, int, bytes]
"""A control message: level, type, data."""


class DatagramListener(socket.socket):
    """A bound UDP socket where visitors are accepted. An engine hands it to its successor as a listener.

    Once it is in use, its port has the flows, which outlive engines; then closing it leaves the socket to the port.
    """

    port: DatagramPort | None = None
    is_wildcard = False
    """whether datagrams come with the address that they were sent to, from which the answers have to leave"""

    def close(self) -> None:
        """Close the socket, as soon as it has no flows any more."""
        if self.port is not None:
            self.port.release()
        else:
            super().close()


def open_datagram_listener(family: socket.AddressFamily, sockaddr: SockAddr) -> DatagramListener:
    """Bind a non-blocking UDP socket to a resolved address; ``::`` accepts IPv4 as well. Raises OSError."""
    sock = DatagramListener(family, _DATAGRAM)
    try:
        sock.is_wildcard = sockaddr[0] in {"::", "0.0.0.0"}
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(sockaddr[0] != "::"))
            if sock.is_wildcard:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        elif sock.is_wildcard:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        enlarge_receive_buffer(sock, SHARED_BUFFER_BYTES)
        sock.bind(sockaddr)
    except OSError:
        sock.close()
        raise
    return sock


def enlarge_receive_buffer(sock: socket.SocketType, buffer_bytes: int) -> None:
    """Let a socket hold bursts. The kernel grants net.core.rmem_max at most, except to CAP_NET_ADMIN (socket(7))."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes)
    except OSError:  # without the capability, or in a sandbox that does not know the option
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)


def local_address(received: list[Ancillary]) -> bytes:
    """Return what tells apart the addresses of a wildcard socket to which datagrams were sent; empty on others."""
    for level, kind, data in received:
        if (level, kind) in _PKTINFO_KINDS:
            return data
    return b""


def answer_from(received: list[Ancillary]) -> list[Ancillary]:
    """Return the control message with which an answer leaves from the address that a datagram was sent to."""
    for level, kind, data in received:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO and len(data) >= _PKTINFO4.size:
            local = _PKTINFO4.unpack_from(data)[1]
            return [(level, kind, _PKTINFO4.pack(0, local, bytes(4)))]
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO and len(data) >= _PKTINFO6.size:
            local = _PKTINFO6.unpack_from(data)[0]
            return [(level, kind, _PKTINFO6.pack(local, 0))]
    return []


def connect_datagram(family: socket.AddressFamily, sockaddr: SockAddr) -> socket.SocketType:
    """Return a non-blocking UDP socket that sends to one address, and receives from it alone. Raises OSError.

    Nothing is sent: an address where nothing listens shows with the first datagram, in an ICMP error.
    """
    sock = socket.SocketType(family, _DATAGRAM)
    try:
        sock.connect(sockaddr)
        if sockets.is_connected_to_itself(sock, sockaddr):
            raise SelfConnectError
    except OSError:
        sock.close()
        raise
    return sock


class DatagramConnect(ConnectRace):
    """Connects UDP sockets, which is done at once: the first address with a route is used."""

    __slots__ = ()

    proto: ClassVar = Proto.UDP

    def start(self, candidates: Sequence[Candidate]) -> None:
        """Connect to the first address that has a route."""
        for family, sockaddr in candidates:
            try:
                sock = connect_datagram(family, sockaddr)
            except OSError as error:
                self._note_failure(sockaddr, error)
                continue
            self._reactor.register_receiver(sock, self.ready)
            self.on_connected(sock, sockaddr, 0)
            return
        self.on_all_failed(self._failures or ())


def bound_unsent(sock: socket.SocketType, unsent_bytes: int) -> None:
    """Let a TCP socket take no more while so many bytes were not sent (TCP_NOTSENT_LOWAT, tcp(7))."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, unsent_bytes)
