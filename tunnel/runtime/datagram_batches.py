"""Several datagrams with one system call, where the kernel can do that: UDP_SEGMENT and UDP_GRO (linux/udp.h).

A sender passes datagrams of one size as one piece, of which only the last may be shorter. A receiver gets datagrams of
one source in the same way, if the network or another process sent them so.
"""

from __future__ import annotations

import errno
import math
import socket
import struct
from functools import cache
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from tunnel.runtime.datagram_sockets import PKTINFO_SPACE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunnel.runtime.datagram_sockets import Ancillary

Datagram = bytes | memoryview

DATAGRAMS_PER_TURN: Final = 64
"""When so many datagrams of a socket were received, other sockets have their turn; a last piece may bring more."""

_SOL_UDP: Final = 17  # Python has no names for these
_UDP_SEGMENT: Final = 103
_UDP_GRO: Final = 104
_MAX_SEGMENTS: Final = 64  # UDP_MAX_SEGMENTS, before Linux 6.9
_MAX_PIECE_BYTES: Final = 65_507 - 20  # IPv6 leaves less than IPv4 if there are options
_SEGMENT_SIZE: Final = struct.Struct("=H")
_GRO_SIZE: Final = struct.Struct("=i")

ANCILLARY_SPACE: Final = PKTINFO_SPACE + socket.CMSG_SPACE(_GRO_SIZE.size)
"""Bytes for the control messages that a socket may receive with datagrams."""

_NOT_IN_PIECES: Final = {errno.EINVAL, errno.EMSGSIZE}
"""Errors of a piece whose datagrams are longer than the MTU: the kernel would have to fragment each."""
_NO_PIECES: Final = {errno.EIO, errno.ENOPROTOOPT, errno.EOPNOTSUPP}
"""Errors of a piece on a route that takes none, as one with IPsec."""
_LIMIT_S: Final = 10.0
"""How long such an error limits what is sent together: it may concern one of many peers, or a path that has changed."""


@cache
def can_send_pieces() -> bool:
    """Return whether the kernel knows UDP_SEGMENT (Linux 4.18). One without it would send a single, long datagram."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return _has_option(sock, _UDP_SEGMENT, 0)


def receive_pieces(sock: socket.SocketType) -> None:
    """Receive several datagrams with one call where the kernel can do that (Linux 5.0)."""
    _has_option(sock, _UDP_GRO, 1)


def _has_option(sock: socket.SocketType, option: int, value: int) -> bool:
    try:
        sock.setsockopt(_SOL_UDP, option, value)
    except OSError:
        return False
    return True


def split_piece(piece: memoryview, received: Sequence[Ancillary]) -> list[bytes]:
    """Return the datagrams that were received with one call; a control message in ``received`` has their size."""
    data = piece.tobytes()
    for level, kind, value in received:
        if kind == _UDP_GRO and level == _SOL_UDP:
            (size,) = _GRO_SIZE.unpack(value)
            return [data[at : at + size] for at in range(0, len(data), size)]
    return [data]


def count_datagrams(size: int, received: Sequence[Ancillary]) -> int:
    """Return how many datagrams were received with one call, ``size`` bytes together."""
    for level, kind, value in received:
        if kind == _UDP_GRO and level == _SOL_UDP:
            each: int = _GRO_SIZE.unpack(value)[0]
            return max(1, math.ceil(size / each))
    return 1


class DatagramSender:
    """Sends on a socket, which its owner closes."""

    __slots__ = ("_limited_until", "_max_size", "_sock")

    def __init__(self, sock: socket.SocketType) -> None:
        self._sock = sock
        self._max_size = _MAX_PIECE_BYTES if can_send_pieces() else 0
        """the longest datagram that is sent together with others"""
        self._limited_until = 0.0 if can_send_pieces() else math.inf
        """when longer ones are sent together again, on the monotonic clock"""

    def send(
        self,
        datagrams: Sequence[Datagram],
        start: int = 0,
        ancillary: Sequence[Ancillary] = (),
        peer: Any = None,  # noqa: ANN401  a socket address
    ) -> int:
        """Send some of the datagrams from ``start`` on, at least that one; return how many.

        ``peer`` is None if the socket is connected. Raises OSError: none was sent, and the error concerns the first
        one, or earlier ones; BlockingIOError: there is no room.
        """
        count = self._find_run(datagrams, start) if len(datagrams) - start > 1 else 1
        if count == 1:
            self._send_one(datagrams[start], ancillary, peer)
            return 1
        run = datagrams[start : start + count]
        size = len(run[0])
        segment = (_SOL_UDP, _UDP_SEGMENT, _SEGMENT_SIZE.pack(size))
        try:
            if peer is None:
                self._sock.sendmsg(run, (segment, *ancillary))
            else:
                self._sock.sendmsg(run, (segment, *ancillary), 0, peer)
        except OSError as error:
            if error.errno in _NO_PIECES:
                self._max_size = 0
            elif error.errno in _NOT_IN_PIECES:
                self._max_size = size - 1
            else:
                raise
            self._limited_until = monotonic() + _LIMIT_S
            self._send_one(run[0], ancillary, peer)
            return 1
        return count

    def _find_run(self, datagrams: Sequence[Datagram], start: int) -> int:
        """Return how many datagrams from ``start`` on can be sent as one piece."""
        size = len(datagrams[start])
        if size > self._max_size:
            if monotonic() < self._limited_until:
                return 1
            self._max_size = _MAX_PIECE_BYTES
        if not size:
            return 1
        last = min(len(datagrams), start + _MAX_SEGMENTS, start + _MAX_PIECE_BYTES // size)
        for at in range(start + 1, last):
            if len(datagrams[at]) != size:
                return at - start + (0 < len(datagrams[at]) < size)
        return max(1, last - start)

    def _send_one(self, datagram: Datagram, ancillary: Sequence[Ancillary], peer: Any) -> None:  # noqa: ANN401
        if ancillary:
            self._sock.sendmsg((datagram,), ancillary, 0, peer)
        elif peer is None:
            self._sock.send(datagram)
        else:
            self._sock.sendto(datagram, peer)
