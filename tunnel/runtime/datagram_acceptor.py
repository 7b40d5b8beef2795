"""Accepts the new UDP visitors of a port for one ingress, and lets idle ones give way where there is no room."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from tunnel.model.networks import EVERYWHERE
from tunnel.model.spec import Proto
from tunnel.protocol.visitor_address import pack_host
from tunnel.runtime import sockets
from tunnel.runtime.datagram_port import DatagramPort
from tunnel.runtime.flood_filter import MAX_NETWORKS

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from tunnel.model.address import Address
    from tunnel.model.networks import AdmittedNetworks
    from tunnel.runtime.datagram_port import DatagramFlow, TotalCounter
    from tunnel.runtime.datagram_sockets import DatagramListener
    from tunnel.runtime.reactor import Reactor

EVICT_AFTER_S: Final = 1.0
"""Idle time after which a flow gives way to a new one if there is no room."""
_SEARCH_INTERVAL_S: Final = 0.1  # a search costs some 0.1 ms for 1000 flows; a flood must not cause one per datagram
_FOUND_SHARE: Final = 8  # of the flows, one in so many gives way until the next search, if all are idle
_EVICTION_INTERVAL_S: Final = 0.005
_EVICTED_AT_ONCE: Final = 2  # flows: an end and its successor cost 0.3 ms, so a flood costs some 12 % of a core


class DatagramAcceptor:
    """Accepts the new visitors of a port for one ingress. In place of an ``Acceptor``."""

    proto: ClassVar = Proto.UDP

    def __init__(
        self,
        reactor: Reactor,
        listener: DatagramListener,
        on_accept: Callable[[socket.SocketType, object], None],
        has_room: Callable[[], bool],
        requested_address: Address,
        dropped: TotalCounter,
        beyond_limit: TotalCounter,
        networks: Callable[[], AdmittedNetworks] = lambda: EVERYWHERE,
    ) -> None:
        """``on_accept`` gets each new visitor, a ``DatagramFlow`` in place of a socket, and its address.

        ``beyond_limit`` counts visitors that find no room. ``networks`` returns from where it admits visitors: what
        else a flood sends need not reach the process.
        """
        self.requested_address = requested_address
        """the address as it is written in the tunnel's spec"""
        name = listener.getsockname()
        self.address = sockets.format_address(name)
        self.port = int(name[1])
        self.dropped = dropped
        self.networks = networks
        self.beyond_limit = beyond_limit
        self.is_waiting_for_room = False
        """never: what finds no room is dropped"""
        self._on_accept = on_accept
        self._has_room = has_room
        self._on_refused: Callable[[], None] | None = None
        self._on_evicted: Callable[[int], None] | None = None
        self._searched_at = self._evicted_at = 0.0
        self.full_until = 0.0
        """until when there is no room for another visitor, on the monotonic clock"""
        self._idle: deque[DatagramFlow] = deque()  # what gives way next, the longest idle first
        self._listener: DatagramListener | None = listener
        self._port = DatagramPort(reactor, listener) if listener.port is None else listener.port  # it may be empty
        listener.port = self._port
        self._port.set_acceptor(self)

    def set_callbacks(
        self, on_accept: Callable[[socket.SocketType, object], None], has_room: Callable[[], bool]
    ) -> None:
        """Use other callbacks for the visitors that are accepted from now on."""
        self._on_accept, self._has_room = on_accept, has_room

    def set_limit_callbacks(self, on_refused: Callable[[], None], on_evicted: Callable[[int], None]) -> None:
        """Call these for visitors that find no room, and with the number of idle ones that gave way.

        ``on_refused`` is called for each visitor, but in a flood once in some milliseconds.
        """
        self._on_refused, self._on_evicted = on_refused, on_evicted

    def accept(self, flow: DatagramFlow) -> None:
        """Let the ingress decide about a new visitor: it closes the flow if that is refused."""
        self._on_accept(cast("socket.SocketType", flow), flow.peer)  # the flow has what the ingress uses of a socket

    def refuses_network(self, peer: Any) -> bool:  # noqa: ANN401  a socket address
        """Return whether no visitor from this address is admitted, as far as a filter in the kernel can know."""
        allow, deny = self.networks()
        if len(allow) + len(deny) > MAX_NETWORKS:
            return False
        packed = pack_host(peer[0])
        return packed in deny or (len(allow) > 0 and packed not in allow)

    def find_room(self, now: float) -> bool:
        """Return whether there is room for another visitor, if need be in the place of an idle one."""
        if self._has_room():
            return True
        if now - self._evicted_at >= _EVICTION_INTERVAL_S:
            self._evicted_at = now
            self.evict_idle(now, _EVICTED_AT_ONCE)
            if self._has_room():
                return True
        self.full_until = self._evicted_at + _EVICTION_INTERVAL_S
        return False

    def refuse(self) -> None:
        """Count a visitor that has found no room."""
        self.beyond_limit.total += 1
        if self._on_refused is not None:
            self._on_refused()

    def count_waiting(self) -> int:
        """Return 0: no visitor waits for room."""
        return 0

    def evict_idle(self, now: float, count: int) -> None:
        """Let at most ``count`` idle flows give way, the longest idle first."""
        if not self._idle and now - self._searched_at >= _SEARCH_INTERVAL_S:
            self._searched_at = now
            self._idle.extend(self._find_idle(now))
        left = count
        while self._idle and left > 0:
            flow = self._idle.popleft()
            if flow.receiver is not None and now - flow.last_seen >= EVICT_AFTER_S:
                flow.receiver.evict()
                left -= 1
        if self._on_evicted is not None and left < count:
            self._on_evicted(count - left)

    def _find_idle(self, now: float) -> list[DatagramFlow]:
        """Return flows that may give way, the longest idle first."""
        flows = [flow for flow in self._port.flows_of(self) if flow.receiver is not None]
        idle = [flow for flow in flows if now - flow.last_seen >= EVICT_AFTER_S]
        idle.sort(key=lambda flow: flow.last_seen)
        return idle[: max(1, len(flows) // _FOUND_SHARE)]

    def resume(self) -> None:
        """Do nothing: no visitor waits for room."""

    def detach_listener(self) -> socket.SocketType | None:
        """Stop accepting and return the open socket, with its present flows, for a successor; None if it is closed."""
        listener, self._listener = self._listener, None
        if listener is not None:
            self._port.remove_acceptor(self)
        return cast("socket.SocketType | None", listener)

    def accept_backlog(self) -> None:
        """Accept the visitors whose datagrams have arrived."""
        if self._listener is not None:
            self._port.ready(0)

    def close(self) -> None:
        """Accept no more visitors; the socket is closed with the last present one."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    def on_handler_error(self, error: Exception) -> None:
        """Pass a defect in ``on_accept`` to the object that it is a method of."""
        owner = getattr(self._on_accept, "__self__", None)
        if owner is None:
            raise error
        owner.on_handler_error(error)
