"""What accepts the visitors of an ingress: connections of TCP, or flows of UDP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.runtime.acceptor import Acceptor
from tunnel.runtime.datagram_port import DatagramAcceptor
from tunnel.runtime.datagram_sockets import DatagramListener

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from tunnel.engine.ingress import Ingress
    from tunnel.model.address import Address
    from tunnel.model.events import EventLog

VisitorAcceptor = Acceptor | DatagramAcceptor


def create_acceptor(
    end: Ingress,
    listener: socket.SocketType,
    event_log: EventLog,
    on_accept: Callable[[socket.SocketType, object], None],
    has_room: Callable[[], bool],
    requested_address: Address,
) -> VisitorAcceptor:
    """Start to accept visitors on a listener, which the acceptor owns from now on."""
    if isinstance(listener, DatagramListener):
        return DatagramAcceptor(end.reactor, listener, on_accept, has_room, requested_address, end.stats.dropped)
    return Acceptor(end.reactor, listener, event_log, on_accept, has_room, requested_address, fd_holder=end)
