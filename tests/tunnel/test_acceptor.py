"""The accept loop: what happens to connections in the backlog when the listener is closed."""

from __future__ import annotations

import socket
import struct
import time

from tests.support.engine_parts import Events
from tests.support.scale import GUARD_S
from tunnel.model.address import Address
from tunnel.runtime import listeners
from tunnel.runtime.acceptor import Acceptor
from tunnel.runtime.reactor import Reactor


def backlog_length(listener: socket.SocketType) -> int:
    """Return how many connections wait to be accepted."""
    information = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    length: int = struct.unpack_from("I", information, 24)[0]  # tcpi_unacked, which means that for a listener
    return length


async def test_the_backlog_is_accepted_before_the_listener_is_closed() -> None:
    reactor, accepted = Reactor(), list[socket.SocketType]()
    listener = await listeners.listen(Address("127.0.0.1", 0), "visitors")
    acceptor = Acceptor(
        reactor,
        listener,
        Events().event_log(),
        lambda sock, _: accepted.append(sock),
        lambda: len(accepted) < 3,
        Address("", 0),
    )
    connections = [socket.create_connection(listener.getsockname()) for _ in range(5)]
    deadline = time.monotonic() + GUARD_S
    while backlog_length(listener) < len(connections):  # no turn of the loop, in which they would be accepted anyway
        assert time.monotonic() < deadline
    acceptor.accept_backlog()
    assert len(accepted) == 3
    acceptor.close()
    for connection in connections:
        connection.close()
    for visitor in accepted:
        visitor.close()
    reactor.stop()
