"""What accepts the visitors of an ingress: connections of TCP, flows of UDP, or both on one address."""

from __future__ import annotations

import contextlib
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final, Union, cast

from tunnel.model.networks import EVERYWHERE
from tunnel.model.visitor_end import VisitorEnd
from tunnel.runtime.acceptor import Acceptor
from tunnel.runtime.datagram_sockets import DatagramListener
from tunnel.runtime.listeners import VISITOR_PURPOSES

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable, Mapping

    from tunnel.engine.ingress import Ingress
    from tunnel.model.address import Address
    from tunnel.model.events import EventLog
    from tunnel.model.networks import AdmittedNetworks
    from tunnel.runtime.datagram_acceptor import DatagramAcceptor
    from tunnel.runtime.reactor import Reactor

_EVICTION_INTERVAL_S: Final = 0.02  # between two attempts to find a place for connections that wait
_EVICTED_AT_ONCE: Final = 2  # one again if a flow took the place of the first before the connection was accepted

ListenerAcceptor = Union[Acceptor, "DatagramAcceptor"]
"""What accepts on one listener."""


class AcceptorPair:
    """The acceptors of a tunnel that has visitors of TCP and of UDP on one address.

    Idle flows give way to connections, too: otherwise, forged addresses that take every place would keep out
    connections for ``udp_timeout``, and those are not forged.
    """

    def __init__(
        self,
        reactor: Reactor,
        connections: Acceptor,
        flows: DatagramAcceptor,
        on_accept: Callable[[socket.SocketType, object], None],
        has_room: Callable[[], bool],
    ) -> None:
        self.members: tuple[ListenerAcceptor, ...] = (connections, flows)
        self.address, self.port = connections.address, connections.port
        self._reactor = reactor
        self._connections = connections
        self._flows = flows
        self._evicted_at = 0.0
        self._evictions_left = 0  # in the present interval
        self._timer: asyncio.TimerHandle | None = None  # while connections wait for room
        self.set_callbacks(on_accept, has_room)

    @property
    def is_waiting_for_room(self) -> bool:
        """Whether connections wait in the backlog."""
        return any(member.is_waiting_for_room for member in self.members)

    def count_waiting(self) -> int:
        """Return how many connections wait in the backlog for room."""
        return self._connections.count_waiting()

    def resume(self) -> None:
        """Accept again if there is room now."""
        for member in self.members:
            member.resume()

    def set_callbacks(
        self, on_accept: Callable[[socket.SocketType, object], None], has_room: Callable[[], bool]
    ) -> None:
        """Use other callbacks for the visitors that are accepted from now on."""
        self._has_room = has_room
        self._connections.set_callbacks(on_accept, self._find_room)
        self._flows.set_callbacks(on_accept, has_room)

    def _find_room(self) -> bool:
        """Return whether there is room for a connection, if need be in the place of an idle flow."""
        if self._has_room():
            return True
        now = monotonic()
        if now - self._evicted_at >= _EVICTION_INTERVAL_S:
            self._evicted_at, self._evictions_left = now, _EVICTED_AT_ONCE
        if self._evictions_left:
            self._evictions_left -= 1
            self._flows.evict_idle(now, 1)
            if self._has_room():
                return True
        if self._timer is None:
            self._timer = self._reactor.call_later(_EVICTION_INTERVAL_S, self._on_timer)
        return False

    def _on_timer(self) -> None:
        self._timer = None
        self._connections.resume()

    def on_handler_error(self, error: Exception) -> None:
        """Pass a defect in an attempt to find room to the end that accepts visitors."""
        self._connections.on_handler_error(error)

    def accept_backlog(self) -> None:
        """Accept the visitors that have arrived, as far as there is room."""
        for member in self.members:
            member.accept_backlog()

    def close(self) -> None:
        """Accept no more visitors."""
        if self._timer is not None:
            self._timer.cancel()
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
    """Start to accept visitors on one or two listeners, by purpose, which the acceptor owns from now on.

    If that fails, all of them are closed.
    """
    connections = flows = None
    with contextlib.ExitStack() as closing:  # last in, first out: an acceptor, then the listener if it has none yet
        for listener in listeners.values():
            closing.callback(listener.close)
        for listener in listeners.values():
            if isinstance(listener, DatagramListener):
                from tunnel.runtime.datagram_acceptor import DatagramAcceptor  # noqa: PLC0415  as in listeners.py

                counters, networks = (end.stats.dropped, end.stats.beyond_limit), partial(_networks_of, end)
                flows = DatagramAcceptor(
                    end.reactor, listener, on_accept, has_room, requested_address, *counters, networks
                )
                on_evicted = partial(end.stats.count_aborted, VisitorEnd.IDLE_TIMEOUT)
                flows.set_limit_callbacks(end.room.note_refused, on_evicted)
                closing.callback(flows.close)
            else:
                connections = Acceptor(
                    end.reactor, listener, event_log, on_accept, has_room, requested_address, fd_holder=end
                )
                connections.set_waiting_callback(end.room.note_waiting)
                closing.callback(connections.close)
        if connections is not None and flows is not None:
            acceptor: VisitorAcceptor = AcceptorPair(end.reactor, connections, flows, on_accept, has_room)
        else:
            acceptor = cast("ListenerAcceptor", connections or flows)
        closing.pop_all()
    return acceptor


def _networks_of(end: Ingress) -> AdmittedNetworks:
    """Return the networks that an ingress admits visitors from, and those that it refuses them from."""
    return EVERYWHERE if end.admission is None else (end.admission.rules.allow, end.admission.rules.deny)


def list_acceptors(acceptor: VisitorAcceptor | None) -> dict[str, ListenerAcceptor]:
    """Return what accepts on each listener, by its purpose; nothing for None."""
    if acceptor is None:
        return {}
    members = acceptor.members if isinstance(acceptor, AcceptorPair) else (acceptor,)
    return {VISITOR_PURPOSES[member.proto]: member for member in members}
