"""The UDP sockets between client and server: one for each link of a client, one for each tunnel port of a server."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any, Final, Protocol

from tunnel.runtime.datagram_batches import (
    ANCILLARY_SPACE,
    DATAGRAMS_PER_TURN,
    DatagramSender,
    receive_pieces,
    split_piece,
)
from tunnel.runtime.datagram_sockets import (
    SHARED_BUFFER_BYTES,
    answer_from,
    connect_datagram,
    enlarge_receive_buffer,
    open_datagram_listener,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunnel.runtime.datagram_sockets import Ancillary
    from tunnel.runtime.reactor import Reactor
    from tunnel.runtime.sockets import SockAddr

_DO_NOT_FRAGMENT: Final = (
    (socket.IPPROTO_IP, 10, 2),  # IP_MTU_DISCOVER, IP_PMTUDISC_DO: linux/in.h
    (socket.IPPROTO_IPV6, 23, 2),  # IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DO: linux/in6.h
)


class Origin:
    """Where a datagram came from, and how an answer gets there."""

    __slots__ = ("ancillary", "peer")

    def __init__(self, peer: Any, ancillary: list[Ancillary]) -> None:  # noqa: ANN401  a socket address
        self.peer = peer
        self.ancillary = ancillary


class DatagramReceiver(Protocol):
    """The owner of a socket between client and server."""

    def on_datagrams(self, datagrams: Sequence[bytes], origin: Origin | None) -> None:
        """Handle datagrams that came from one address. ``origin`` is None if the socket is connected."""

    def on_handler_error(self, error: Exception) -> None:
        """Handle a defect in ``on_datagrams``."""


class LinkDatagramSocket:
    """A UDP socket between client and server. Owned by its receiver, which closes it."""

    def __init__(self, reactor: Reactor, sock: socket.SocketType, receiver: DatagramReceiver) -> None:
        self._reactor = reactor
        self._sock = sock
        self._receiver = receiver
        self._is_open = True
        self._is_connected = _is_connected(sock)
        self._sender = DatagramSender(sock)
        receive_pieces(sock)
        for level, option, value in _DO_NOT_FRAGMENT:
            with contextlib.suppress(OSError):  # of the other family
                sock.setsockopt(level, option, value)
        enlarge_receive_buffer(sock, SHARED_BUFFER_BYTES)
        reactor.register_receiver(sock, self.ready)

    def send(self, datagrams: Sequence[bytes], start: int, origin: Origin | None) -> int:
        """Send to the connected address, or where a datagram came from; else as ``DatagramSender.send``."""
        if origin is None:
            return self._sender.send(datagrams, start)
        return self._sender.send(datagrams, start, origin.ancillary, origin.peer)

    def ready(self, _events: int) -> None:
        """Handle events of the socket: receive what has arrived, some datagrams in each turn."""
        scratch, sock, receive = self._reactor.scratch, self._sock, self._receiver.on_datagrams
        left = DATAGRAMS_PER_TURN
        while left > 0:
            if not self._is_open:
                return
            try:
                got, received, _flags, peer = sock.recvmsg_into((scratch,), ANCILLARY_SPACE)
            except BlockingIOError:
                return
            except OSError:
                left -= 1
                continue  # an ICMP error of an earlier datagram: the probes show what gets through
            datagrams = split_piece(scratch[:got], received)
            left -= len(datagrams)
            receive(datagrams, None if self._is_connected else Origin(peer, answer_from(received)))
        self._reactor.call_again(self.ready)

    def on_handler_error(self, error: Exception) -> None:
        """Pass a defect to the receiver."""
        self._receiver.on_handler_error(error)

    def close(self) -> None:
        """Close the socket. Calling it twice is allowed."""
        if self._is_open:
            self._is_open = False
            self._reactor.close(self._sock)


def _is_connected(sock: socket.SocketType) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def connect_link_socket(reactor: Reactor, server: SockAddr, receiver: DatagramReceiver) -> LinkDatagramSocket:
    """Open the socket of a client's link, which sends to the server alone. Raises OSError."""
    family = socket.AF_INET6 if len(server) > 2 else socket.AF_INET
    return LinkDatagramSocket(reactor, connect_datagram(family, server), receiver)


def open_tunnel_socket(
    reactor: Reactor, family: socket.AddressFamily, address: SockAddr, receiver: DatagramReceiver
) -> LinkDatagramSocket:
    """Open the socket of a tunnel port, on the address and port of its TCP listener. Raises OSError."""
    return LinkDatagramSocket(reactor, open_datagram_listener(family, address), receiver)
