"""UDP: forwards the flows of visitors, and for each of them the datagrams of a target."""

from __future__ import annotations

import errno
import socket
from time import monotonic
from typing import TYPE_CHECKING, Final, cast

from tunnel.forwarding.base import NearCounters
from tunnel.forwarding.datagram_relay import DatagramRelay
from tunnel.model.spec import ProxyVersion
from tunnel.model.visitor_end import VisitorEnd
from tunnel.model.visitors import visitor_id
from tunnel.protocol.proxy_header import encode_header
from tunnel.runtime import sockets
from tunnel.runtime.datagram_batches import (
    ANCILLARY_SPACE,
    DATAGRAMS_PER_TURN,
    DatagramSender,
    receive_pieces,
    split_piece,
)
from tunnel.runtime.datagram_port import DatagramFlow
from tunnel.runtime.datagram_sockets import FLOW_BUFFER_BYTES, enlarge_receive_buffer
from tunnel.runtime.reactor import ERROR, READABLE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tunnel.forwarding.base import ForwardingOwner, OwnedConnection, RelayLink, UsedConnection
    from tunnel.forwarding.logged import VisitorLog
    from tunnel.runtime.datagram_batches import Datagram
    from tunnel.runtime.reactor import Reactor

_UNREACHABLE: Final[Mapping[int | None, str]] = {
    errno.ECONNREFUSED: "nothing listens on that UDP port",
    errno.EHOSTUNREACH: "there is no route to it",
    errno.ENETUNREACH: "its network cannot be reached from here",
    errno.EACCES: "a firewall on the way forbids it",
}
"""What ICMP errors of a target mean (udp(7), ip(7)); they come with a later datagram, or as an event."""


class VisitorRelay(DatagramRelay):
    """At the ingress: between a visitor's flow and a data connection."""

    __slots__ = ("_flow",)

    def __init__(
        self,
        forwarder: UdpForwarder,
        data: OwnedConnection,
        link: RelayLink,
        flow: DatagramFlow,
        owner: ForwardingOwner,
    ) -> None:
        super().__init__(forwarder, data, link, owner)
        self._flow = flow

    def _start_near(self, near_events: int | None) -> None:
        del near_events  # a flow has no socket of its own
        self._flow.attach(self)
        self.flush()

    def _send_near(self, datagrams: Sequence[Datagram], start: int) -> int:
        return self._flow.send(datagrams, start)

    def receive_from_path(self, datagrams: Sequence[Datagram]) -> None:
        """Send datagrams of the other end to the visitor."""
        self._flow.last_seen = monotonic()
        super().receive_from_path(datagrams)

    def _close_near(self) -> None:
        self._flow.close()

    def describe_near(self) -> str | None:
        """Return the visitor's address as text."""
        return sockets.format_address(self._flow.peer)

    def _on_far_ended(self) -> None:
        self.close(VisitorEnd.TARGET_CLOSED)


class TargetRelay(DatagramRelay):
    """At the egress: between a data connection and a socket that is connected to the target."""

    __slots__ = ("_near", "_sender")

    def __init__(
        self,
        forwarder: UdpForwarder,
        data: OwnedConnection,
        link: RelayLink,
        near: socket.SocketType,
        owner: ForwardingOwner,
    ) -> None:
        super().__init__(forwarder, data, link, owner)
        self._near = near
        self._sender = DatagramSender(near)
        if forwarder.sends_headers:
            ident = visitor_id(link.ident, data.ident, data.use).encode()
            destination = near.getpeername()[:2]
            self._header = encode_header(ProxyVersion.V2, data.visitor_address, destination, ident, is_datagram=True)

    def _start_near(self, near_events: int | None) -> None:
        reactor = self.forwarder.reactor
        receive_pieces(self._near)
        enlarge_receive_buffer(self._near, FLOW_BUFFER_BYTES)
        if near_events is None:
            reactor.register_receiver(self._near, self.on_near)
        else:
            reactor.set_handler(self._near, self.on_near)
            if near_events & READABLE:
                self.on_near(near_events)

    def on_near(self, events: int) -> None:
        """Handle events of the target's socket: read what has arrived, some datagrams in each turn."""
        if not self.is_open or (events and not events & READABLE):
            return
        try:
            if events & ERROR and (code := self._near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                raise OSError(code, "")
            self._read_near()
        except OSError as error:
            self._on_near_error(error)
        self.flush()

    def _read_near(self) -> None:
        """Read what has arrived from the target, until nothing is left or others have their turn. Raises OSError."""
        near, reactor, now = self._near, self.forwarder.reactor, monotonic()
        left = DATAGRAMS_PER_TURN
        while left > 0:
            if not self.is_open:
                return
            try:
                got, received, _flags, _peer = near.recvmsg_into((reactor.scratch,), ANCILLARY_SPACE)
            except BlockingIOError:
                return
            datagrams = split_piece(reactor.scratch[:got], received)
            left -= len(datagrams)
            self.receive_all(datagrams, now)
        reactor.call_again(self.on_near)

    def _send_near(self, datagrams: Sequence[Datagram], start: int) -> int:
        if self._header:
            return self._sender.send([self._header + each for each in datagrams[start : start + DATAGRAMS_PER_TURN]])
        return self._sender.send(datagrams, start)

    def _on_near_error(self, error: OSError) -> None:
        """End the flow if the target cannot be reached, with the reason; else only the datagram is lost."""
        if error.errno not in _UNREACHABLE:
            super()._on_near_error(error)
            return
        target = self.describe_near() or "?"
        reason = f"the target {target} cannot be reached: {_UNREACHABLE[error.errno]}"
        self.link.fail_visitor(self.ident, reason)
        self._owner.on_target_unreachable(self, reason)
        self.fail(reason)

    def _close_near(self) -> None:
        self.forwarder.reactor.close(self._near)

    def describe_near(self) -> str | None:
        """Return the target's address as text; None if the kernel no longer knows the address."""
        try:
            return sockets.format_address(self._near.getpeername())
        except OSError:
            return None

    def _on_far_ended(self) -> None:
        self.close(VisitorEnd.VISITOR_CLOSED)


class UdpForwarder:
    """Forwards UDP flows: one relay for each."""

    def __init__(
        self,
        reactor: Reactor,
        counters: NearCounters,
        *,
        log: VisitorLog | None,
        is_ingress: bool,
        sends_headers: bool = False,
    ) -> None:
        """``log`` receives each flow that has ended; ``is_ingress``: what is near are visitors, not targets.

        ``sends_headers``: each datagram to a target starts with a PROXY header.
        """
        self.reactor = reactor
        self.from_near, self.to_near, self.dropped = counters
        self.log = log
        self.is_ingress = is_ingress
        self.sends_headers = sends_headers

    def with_headers(self) -> UdpForwarder:
        """Return a forwarder that sends PROXY headers, and is the same otherwise."""
        counters = NearCounters(self.from_near, self.to_near, self.dropped)
        return UdpForwarder(self.reactor, counters, log=self.log, is_ingress=self.is_ingress, sends_headers=True)

    def create(
        self, data: UsedConnection, link: RelayLink, near: socket.SocketType, owner: ForwardingOwner
    ) -> DatagramRelay:
        """Join a visitor's flow, or a target's socket, and a data connection. The relay owns both from now on."""
        owned = cast("OwnedConnection", data)  # a lane carries TCP alone
        visitor: object = near  # the ingress treats a flow as a visitor's socket
        if isinstance(visitor, DatagramFlow):
            return VisitorRelay(self, owned, link, visitor, owner)
        return TargetRelay(self, owned, link, near, owner)
