"""The accept loop: who stands at the door when it is closed."""

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


def standing_at(listener: socket.SocketType) -> int:
    """How many connections wait to be accepted."""
    information = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    waiting: int = struct.unpack_from("I", information, 24)[0]  # tcpi_unacked, which means that for a listener
    return waiting


async def test_who_stands_at_the_door_is_taken_in_before_it_is_given_up() -> None:
    reactor, taken = Reactor(), list[socket.SocketType]()
    listener = await listeners.listen(Address("127.0.0.1", 0), "visitors")
    visitors = Acceptor(
        reactor,
        listener,
        Events().event_log(),
        lambda sock, _: taken.append(sock),
        lambda: len(taken) < 3,
        Address("", 0),
    )
    comers = [socket.create_connection(listener.getsockname()) for _ in range(5)]
    deadline = time.monotonic() + GUARD_S
    while standing_at(listener) < len(comers):  # without a turn of the loop, in which they would be taken in anyway
        assert time.monotonic() < deadline
    visitors.accept_backlog()
    assert len(taken) == 3
    visitors.close()
    for comer in comers:
        comer.close()
    for visitor in taken:
        visitor.close()
    reactor.stop()
