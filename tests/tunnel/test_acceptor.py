"""The accept loop: connections in the backlog when the listener is closed, and interfaces that are created again."""

from __future__ import annotations

import select
import socket
import struct
import time

import pytest

from tests.support.engine_parts import Events, no_descriptor_leak
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
from tunnel.model.address import Address
from tunnel.runtime import acceptor as acceptor_module
from tunnel.runtime import listeners, resolver, sockets
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
    with socket.socket() as late:  # over loopback an attempt is complete before connect_ex returns
        late.setblocking(False)
        late.connect_ex(listener.getsockname())
        assert select.select([], [late], [], 0) == ([], [], []), "it would be reset by the close"
    acceptor.close()
    for connection in connections:
        connection.close()
    for visitor in accepted:
        visitor.close()
    reactor.stop()


class LinkLocalListener(socket.SocketType):
    """A listener on loopback that reports a link-local address on interface 7."""

    def getsockname(self) -> tuple[str, int, int, int]:
        """Return the address that a listener on ``[fe80::1%wg0]`` has."""
        return ("fe80::1", 4321, 0, 7)


def make_link_local_listener() -> socket.SocketType:
    listener = LinkLocalListener(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    listener.bind(("::1", 0))
    listener.listen()
    return listener


async def test_a_link_local_listener_is_opened_again_when_its_interface_is_created_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The interface is gone at first, then it has another number."""
    numbers = iter([7, None, 9, 7, 7])
    reopened: list[object] = []

    def interface_index(_zone: str) -> int:
        number = next(numbers, 7)
        if number is None:
            raise sockets.NetError("this host has no network interface 'wg0'")
        return number

    def open_listener(*arguments: object, client_speaks_first: bool) -> socket.SocketType:
        reopened.append((*arguments, client_speaks_first))
        return make_link_local_listener()

    monkeypatch.setattr(resolver, "interface_index", interface_index)
    monkeypatch.setattr(sockets, "open_listener", open_listener)
    monkeypatch.setattr(acceptor_module, "INTERFACE_CHECK_S", 0.001)
    events = Events()
    with no_descriptor_leak():
        reactor = Reactor()
        acceptor = Acceptor(
            reactor,
            make_link_local_listener(),
            events.event_log(),
            lambda sock, _: sock.close(),
            lambda: True,
            Address("fe80::1%wg0", 4321),
        )
        await wait_until_async(lambda: events.said("the network interface wg0 was created again"), "it is opened again")
        await wait_until_async(lambda: next(numbers, None) is None, "the checks go on")
        acceptor.close()
        await wait_until_async(lambda: len(reactor) == 0, "everything is closed")
        reactor.stop()
    assert reopened == [(socket.AF_INET6, ("fe80::1", 4321, 0, 9), False)]
