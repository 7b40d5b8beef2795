"""Where UDP visitors arrive: one socket, and a flow for each address that has sent something.

A port lives as long as its socket. Its flows outlive the engine that accepted them: where another engine takes the
socket over, the datagrams of present flows still go to their relays, and the new engine receives the new visitors.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from tunnel.model.networks import EVERYWHERE
from tunnel.runtime.datagram_batches import (
    ANCILLARY_SPACE,
    DATAGRAMS_PER_TURN,
    DatagramSender,
    count_datagrams,
    receive_pieces,
    split_piece,
)
from tunnel.runtime.datagram_sockets import DatagramListener, answer_from, local_address, open_datagram_listener
from tunnel.runtime.flood_guard import FloodGuard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunnel.model.networks import AdmittedNetworks
    from tunnel.runtime.datagram_acceptor import DatagramAcceptor
    from tunnel.runtime.datagram_batches import Datagram
    from tunnel.runtime.datagram_sockets import Ancillary
    from tunnel.runtime.reactor import Reactor
    from tunnel.runtime.sockets import SockAddr

MAX_WAITING: Final = 64
"""Datagrams of one flow that wait; the oldest gives way to another one."""
MAX_WAIT_S: Final = 0.1
"""How long a datagram may wait: a later one is worth more."""
MAX_START_WAIT_S: Final = 1.0
"""How long a datagram may wait for the data connection of its flow: it is the visitor's first, as a question of DNS."""
_NEW_FLOW_DATAGRAMS: Final = 16  # a new flow costs as much as so many datagrams of one that is present

FlowKey = tuple[object, bytes]
"""The visitor's socket address, and the local address that it sends to where that is not fixed."""


_Place = tuple[asyncio.AbstractEventLoop, int, str, int]

_released: Final[dict[_Place, DatagramListener]] = {}
"""Sockets that accept no new visitors and still have flows, by event loop and address."""


def _place_of(family: int, sockaddr: SockAddr) -> _Place:
    return asyncio.get_running_loop(), int(family), sockaddr[0], sockaddr[1]


def open_visitor_socket(family: socket.AddressFamily, sockaddr: SockAddr) -> DatagramListener:
    """Return a socket on which UDP visitors are accepted, with flows if an engine that drains has some there.

    Without that, a tunnel could not start again while its former visitors finish. Raises OSError.
    """
    listener = _released.pop(_place_of(family, sockaddr), None)
    if listener is None or listener.port is None:
        return open_datagram_listener(family, sockaddr)
    listener.port.hold()
    return listener


class TotalCounter(Protocol):
    """Counts datagrams, or visitors, in a number that its owner reads."""

    total: int


class FlowReceiver(Protocol):
    """The relay of a flow."""

    def receive_all(self, datagrams: Sequence[bytes], now: float) -> None:
        """Forward datagrams of the visitor."""

    def flush(self) -> None:
        """Send what was received in this turn."""

    def evict(self) -> None:
        """End the flow: it is idle, and its place is needed."""


class DatagramFlow:
    """A UDP visitor, in place of the socket that a TCP visitor has. Exists until it is closed.

    Until a relay receives its datagrams, the latest of them wait here.
    """

    __slots__ = ("_ancillary", "_key", "_port", "_waiting", "acceptor", "is_reset", "last_seen", "peer", "receiver")

    type: ClassVar = int(socket.SOCK_DGRAM)

    def __init__(
        self,
        port: DatagramPort,
        acceptor: DatagramAcceptor,
        key: FlowKey,
        peer: Any,  # noqa: ANN401  a socket address
        ancillary: list[Ancillary],
    ) -> None:
        """``ancillary`` goes with each answer."""
        self.acceptor = acceptor
        """what accepted it"""
        self.peer = peer
        """the visitor's socket address"""
        self.last_seen = 0.0
        """when a datagram went either way, on the monotonic clock"""
        self.receiver: FlowReceiver | None = None
        self.is_reset = False
        """whether it is closed without a word to the visitor, as one that is refused"""
        self._port: DatagramPort | None = port
        self._key = key
        self._ancillary = ancillary
        self._waiting: deque[tuple[bytes, float]] = deque(maxlen=MAX_WAITING)

    def attach(self, receiver: FlowReceiver) -> None:
        """Pass the datagrams on from now on, first those that wait."""
        self.receiver = receiver
        now = monotonic()
        fresh = [datagram for datagram, received_at in self._waiting if now - received_at <= MAX_START_WAIT_S]
        self.acceptor.dropped.total += len(self._waiting) - len(fresh)
        self._waiting.clear()
        receiver.receive_all(fresh, now)

    def receive_all(self, datagrams: Sequence[bytes], now: float) -> None:
        """Keep datagrams until a relay receives them."""
        for datagram in datagrams:
            if len(self._waiting) == MAX_WAITING:
                self.acceptor.dropped.total += 1
            self._waiting.append((datagram, now))

    def send(self, datagrams: Sequence[Datagram], start: int) -> int:
        """Send some datagrams to the visitor, as ``DatagramSender.send``. Raises OSError."""
        port = self._port
        return 1 if port is None else port.send(datagrams, start, self._ancillary, self.peer)

    # --- as of a socket: what the ingress does with a visitor --------------------------------------------------------

    def fileno(self) -> int:
        """Return -1: the flow has no descriptor of its own."""
        return -1

    def setsockopt(self, level: int, option: int, _value: object) -> None:
        """Note that a reset is wanted (SO_LINGER); a flow has no other options."""
        self.is_reset = self.is_reset or (level, option) == (socket.SOL_SOCKET, socket.SO_LINGER)

    def getpeername(self) -> Any:  # noqa: ANN401  as of a socket
        """Return the visitor's socket address."""
        return self.peer

    def close(self) -> None:
        """Forget the flow: another datagram of the visitor starts a new one. Calling it twice is allowed."""
        port, self._port = self._port, None
        if port is not None:
            port.remove(self._key)
            self.receiver = None
            self.acceptor.dropped.total += len(self._waiting)
            self._waiting.clear()


class DatagramPort:
    """Reads a socket and tells its flows apart. Owns the socket until the last flow after ``release``."""

    def __init__(self, reactor: Reactor, sock: DatagramListener) -> None:
        self._reactor = reactor
        self._sock = sock
        self._flows: dict[FlowKey, DatagramFlow] = {}
        self._acceptor: DatagramAcceptor | None = None
        self._dropped: TotalCounter | None = None  # that of the latest acceptor
        self._sender = DatagramSender(sock)
        self._early: deque[tuple[FlowKey, object, list[Ancillary], list[bytes]]] = deque(maxlen=MAX_WAITING)
        self._guard = FloodGuard(reactor, sock, self._flows, self)
        self._is_released = False
        self._is_open = True
        self._place = _place_of(sock.family, sock.getsockname())
        receive_pieces(sock)
        reactor.register_receiver(sock, self.ready)

    def __len__(self) -> int:
        """Number of present flows, of all acceptors."""
        return len(self._flows)

    def flows_of(self, acceptor: DatagramAcceptor) -> list[DatagramFlow]:
        """Return the flows that an acceptor has accepted."""
        return [flow for flow in self._flows.values() if flow.acceptor is acceptor]

    def set_acceptor(self, acceptor: DatagramAcceptor) -> None:
        """Let this acceptor decide about new visitors, first about those that came while there was none."""
        self._guard.stop()
        self._acceptor, self._dropped = acceptor, acceptor.dropped
        if self._early:
            self._reactor.call_again(self.ready)

    def remove_acceptor(self, acceptor: DatagramAcceptor) -> None:
        """Accept no new visitors for this acceptor; until there is another one, the latest datagrams wait."""
        if self._acceptor is acceptor:
            self._guard.stop()  # what arrives meanwhile waits
            self._acceptor = None

    def release(self) -> None:
        """Accept no new visitors any more, and close the socket as soon as there is no flow.

        Until then, ``open_visitor_socket`` may return the socket.
        """
        self._is_released = True
        self._guard.stop()
        self._acceptor = None
        self.count_dropped(sum(len(datagrams) for *_, datagrams in self._early))
        self._early.clear()
        if self._is_open:
            _released[self._place] = self._sock
        self._close_unused()

    def hold(self) -> None:
        """Keep the socket after all: another acceptor follows."""
        self._is_released = False

    def remove(self, key: FlowKey) -> None:
        """Forget a flow, which has been closed."""
        self._flows.pop(key, None)
        self._close_unused()

    def _close_unused(self) -> None:
        if self._is_released and not self._flows and self._is_open:
            self._is_open = False
            _released.pop(self._place, None)
            self._sock.port = None  # so that closing it really does
            self._reactor.close(self._sock)

    def send(
        self,
        datagrams: Sequence[Datagram],
        start: int,
        ancillary: list[Ancillary],
        peer: Any,  # noqa: ANN401  a socket address
    ) -> int:
        """Send to a visitor, from the address that the visitor has sent to; else as ``DatagramSender.send``."""
        return self._sender.send(datagrams, start, ancillary, peer)

    # --- from visitors ----------------------------------------------------------------------------------------------

    def ready(self, _events: int) -> None:
        """Handle events of the socket: distribute what has arrived, some datagrams in each turn."""
        now = monotonic()
        active: dict[FlowReceiver, None] = {}
        while self._early and self._acceptor is not None:
            self._deliver(*self._early.popleft(), now, active)
        self._read(now, active)
        for receiver in active:
            receiver.flush()

    def _read(self, now: float, active: dict[FlowReceiver, None]) -> None:
        scratch, sock, flows = self._reactor.scratch, self._sock, self._flows
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
                continue  # an ICMP error of an earlier answer: it concerns one visitor, and does not say which
            key = peer, local_address(received) if received else b""
            acceptor = self._acceptor
            if acceptor is not None and now < acceptor.full_until and key not in flows:  # the shortest way for a flood
                count = count_datagrams(got, received) if received else 1
                acceptor.dropped.total += count
                acceptor.beyond_limit.total += 1
                self._guard.count_refused(count, now)
                left -= count
                continue
            datagrams = split_piece(scratch[:got], received)
            left -= len(datagrams)
            if self._deliver(key, peer, received, datagrams, now, active):
                left -= _NEW_FLOW_DATAGRAMS
        self._reactor.call_again(self.ready)

    def _deliver(
        self,
        key: FlowKey,
        peer: object,
        ancillary: list[Ancillary],
        datagrams: list[bytes],
        now: float,
        active: dict[FlowReceiver, None],
    ) -> bool:
        """Pass datagrams to their flow, or start one; return whether one was started.

        ``active`` collects the relays that have to send.
        """
        flow = self._flows.get(key)
        if flow is None:
            return self._start_flow(key, peer, ancillary, datagrams, now)
        flow.last_seen = now
        receiver = flow.receiver
        if receiver is None:
            flow.receive_all(datagrams, now)
        else:
            receiver.receive_all(datagrams, now)
            active[receiver] = None
        return False

    def _start_flow(
        self, key: FlowKey, peer: object, ancillary: list[Ancillary], datagrams: list[bytes], now: float
    ) -> bool:
        """Start a flow with its first datagrams, if there is room and the visitor is admitted; return whether it is."""
        acceptor = self._acceptor
        if acceptor is None:
            if self._is_released:
                self.count_dropped(len(datagrams))
            else:
                if len(self._early) == MAX_WAITING:
                    self.count_dropped(len(self._early[0][-1]))
                self._early.append((key, peer, ancillary, datagrams))
            return False
        if not acceptor.find_room(now):
            acceptor.dropped.total += len(datagrams)
            acceptor.refuse()
            self._guard.count_refused(len(datagrams), now)
            return False
        flow = self._flows[key] = DatagramFlow(self, acceptor, key, peer, answer_from(ancillary))
        flow.last_seen = now
        flow.receive_all(datagrams, now)
        acceptor.accept(flow)
        if flow.is_reset:  # not admitted: a flow that gives way at once costs little
            flow.close()
            if acceptor.refuses_network(peer):
                self._guard.count_refused(len(datagrams), now)
        return self._flows.get(key) is flow

    def count_dropped(self, count: int) -> None:
        """Count datagrams that were dropped, here or in the kernel."""
        if self._dropped is not None:
            self._dropped.total += count

    def current_networks(self) -> AdmittedNetworks:
        """Return which networks may send, and which may not, as far as a filter in the kernel needs to know."""
        return EVERYWHERE if self._acceptor is None else self._acceptor.networks()

    def on_handler_error(self, error: Exception) -> None:
        """Pass a defect to the end that accepts visitors."""
        if self._acceptor is None:
            raise error
        self._acceptor.on_handler_error(error)
