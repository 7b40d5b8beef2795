"""Relays of tunnels with an access log: they note why they end. Other tunnels do not have this module's classes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tunnel.forwarding.flow import ENDED
from tunnel.forwarding.tcp import Relay, TcpForwarder
from tunnel.model.visitor_end import VisitorEnd, VisitorRecord
from tunnel.model.visitors import visitor_id
from tunnel.protocol.visitor_address import unpack_address
from tunnel.runtime import sockets

if TYPE_CHECKING:
    import socket

    from tunnel.forwarding.base import ForwardingOwner, RelayLink, UsedConnection
    from tunnel.forwarding.flow import ByteCounter, Flow
    from tunnel.runtime.reactor import Reactor
    from tunnel.runtime.splice import PipePool

VisitorLog = Callable[[VisitorRecord], None]
"""Receives each visitor that has left; must neither raise nor block."""

_CLOSED = (VisitorEnd.VISITOR_CLOSED, VisitorEnd.TARGET_CLOSED)
_RESET = (VisitorEnd.VISITOR_RESET, VisitorEnd.TARGET_RESET)


class LoggedForwarder(TcpForwarder):
    """Forwards TCP connections, and logs each visitor when it has left."""

    def __init__(
        self,
        reactor: Reactor,
        pipes: PipePool,
        from_near: ByteCounter,
        to_near: ByteCounter,
        *,
        log: VisitorLog,
        is_ingress: bool,
    ) -> None:
        """``is_ingress``: what is near are visitors, not targets."""
        super().__init__(reactor, pipes, from_near, to_near)
        self.log = log
        self.is_ingress = is_ingress

    def create(self, data: UsedConnection, link: RelayLink, near: socket.SocketType, owner: ForwardingOwner) -> Relay:
        """Join two connected sockets, which the relay owns from now on."""
        return LoggedRelay(self, data, link, near, owner)


class LoggedRelay(Relay):
    """A relay that reports its end to the log of its forwarder."""

    __slots__ = ("_cause", "_is_link_lost", "_last", "_log_to", "_reason", "_target")

    def __init__(
        self,
        forwarder: LoggedForwarder,
        data: UsedConnection,
        link: RelayLink,
        near: socket.SocketType,
        owner: ForwardingOwner,
    ) -> None:
        super().__init__(forwarder, data, link, near, owner)
        self._log_to = forwarder
        self._target = None if forwarder.is_ingress else self.describe_near()  # now: after a reset it is not known
        self._cause: VisitorEnd | None = None
        self._reason: str | None = None
        self._last: Flow | None = None  # the flow that has ended last, if both have ended in order
        self._is_link_lost = False

    def on_link_lost(self) -> None:
        """Note that a reset of the data connection may be due to the loss of the link."""
        self._is_link_lost = True
        super().on_link_lost()

    def on_stream_error(self, error: Exception) -> None:
        """Note what was wrong with the data connection."""
        self._cause = VisitorEnd.CORRUPTED
        super().on_stream_error(error)

    def reset(self, sock: socket.SocketType) -> None:
        """Note whose connection has failed: not the one that is reset because of it."""
        if self.is_open and self._cause is None:
            self._cause = self._reset_by(self._far if sock is self._near else self._near)
        super().reset(sock)

    def fail(self, reason: str) -> None:
        """Note why the target was not reached."""
        self._reason = reason
        super().fail(reason)

    def close(self, cause: VisitorEnd | None = None, last: Flow | None = None) -> None:
        """Close both sockets; the first cause counts."""
        if self.is_open:
            self._cause = self._cause or cause
            self._last = self._last or last
        super().close(cause, last)

    def finish(self, last: Flow) -> None:
        """End after both streams are complete; ``last`` has ended last."""
        self._last = last
        super().finish(last)

    def _release_flows(self) -> None:
        self._log_to.log(self._describe_end())
        self._last = None  # it refers to this relay: see Relay._release_flows
        super()._release_flows()

    def _describe_end(self) -> VisitorRecord:
        from_near, to_near = self.passed()
        is_ingress = self._log_to.is_ingress
        address = unpack_address(self.visitor_address)
        return VisitorRecord(
            visitor_id(self.link.ident, self.ident, self.use),
            None if address is None else sockets.format_address(address),
            self.proto,
            self._target,
            self.link.ident,
            from_near if is_ingress else to_near,
            to_near if is_ingress else from_near,
            time.monotonic() - self.started_at,
            self._cause or self._infer_end(),
            self._reason,
            time.time(),
        )

    def _infer_end(self) -> VisitorEnd:
        from_near, to_near = self._from_near, self._to_near
        if self._last is not None:  # its peer's source was the first to end
            return _CLOSED[(self._last is to_near) is not self._log_to.is_ingress]
        if (from_near.state is ENDED) is (to_near.state is ENDED):
            return VisitorEnd.TUNNEL_CLOSED
        # A relay that is closed when one flow has ended is closed because the source of that flow has failed since.
        return self._reset_by(self._near if from_near.state is ENDED else self._far)

    def _reset_by(self, sock: socket.SocketType) -> VisitorEnd:
        is_far = sock is self._far
        if is_far and self._is_link_lost:
            return VisitorEnd.LINK_LOST
        return _RESET[is_far is self._log_to.is_ingress]
