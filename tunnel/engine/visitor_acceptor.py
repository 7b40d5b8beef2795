"""What accepts the visitors of an ingress: connections of TCP, flows of UDP, or both on one address."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.runtime.acceptor import Acceptor
from tunnel.runtime.datagram_port import DatagramAcceptor
from tunnel.runtime.datagram_sockets import DatagramListener
from tunnel.runtime.listeners import VISITOR_PURPOSES

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from tunnel.engine.ingress import Ingress
    from tunnel.model.address import Address
    from tunnel.model.events import EventLog

ListenerAcceptor = Acceptor | DatagramAcceptor
"""What accepts on one listener."""


class AcceptorPair:
    """The acceptors of a tunnel that has visitors of TCP and of UDP on one address."""

    def __init__(self, *members: ListenerAcceptor) -> None:
        self.members = members
        self.address, self.port = members[0].address, members[0].port

    @property
    def is_waiting_for_room(self) -> bool:
        """Whether connections wait in the backlog."""
        return any(member.is_waiting_for_room for member in self.members)

    def resume(self) -> None:
        """Accept again if there is room now."""
        for member in self.members:
            member.resume()

    def set_callbacks(
        self, on_accept: Callable[[socket.SocketType, object], None], has_room: Callable[[], bool]
    ) -> None:
        """Use other callbacks for the visitors that are accepted from now on."""
        for member in self.members:
            member.set_callbacks(on_accept, has_room)

    def accept_backlog(self) -> None:
        """Accept the visitors that have arrived, as far as there is room."""
        for member in self.members:
            member.accept_backlog()

    def close(self) -> None:
        """Accept no more visitors."""
        for member in self.members:
            member.close()


VisitorAcceptor = ListenerAcceptor | AcceptorPair


def create_acceptor(
    end: Ingress,
    listeners: Mapping[str, socket.SocketType],
    event_log: EventLog,
    on_accept: Callable[[socket.SocketType, object], None],
    has_room: Callable[[], bool],
    requested_address: Address,
) -> VisitorAcceptor:
    """Start to accept visitors on one or two listeners, by purpose, which the acceptor owns from now on."""

    def accept_on(listener: socket.SocketType) -> ListenerAcceptor:
        if isinstance(listener, DatagramListener):
            return DatagramAcceptor(end.reactor, listener, on_accept, has_room, requested_address, end.stats.dropped)
        return Acceptor(end.reactor, listener, event_log, on_accept, has_room, requested_address, fd_holder=end)

    members = [accept_on(listener) for listener in listeners.values()]
    return members[0] if len(members) == 1 else AcceptorPair(*members)


def list_acceptors(acceptor: VisitorAcceptor | None) -> dict[str, ListenerAcceptor]:
    """Return what accepts on each listener, by its purpose; nothing for None."""
    if acceptor is None:
        return {}
    members = acceptor.members if isinstance(acceptor, AcceptorPair) else (acceptor,)
    return {VISITOR_PURPOSES[member.proto]: member for member in members}
