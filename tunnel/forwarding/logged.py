"""Relays of tunnels with an access log: they note why they end. Other tunnels do not have this module's classes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tunnel.forwarding.flow import ENDED
from tunnel.forwarding.lane_relay import LaneRelay
from tunnel.forwarding.tcp import Relay
from tunnel.forwarding.tcp_forwarder import TcpForwarder
from tunnel.model.visitor_end import VisitorEnd, VisitorRecord
from tunnel.protocol.visitor_address import unpack_address
from tunnel.runtime import sockets

if TYPE_CHECKING:
    import socket

    from tunnel.forwarding.base import ForwardingOwner, RelayLink
    from tunnel.forwarding.flow import ByteCounter, Flow
    from tunnel.runtime.reactor import Reactor
    from tunnel.runtime.splice import PipePool

VisitorLog = Callable[[VisitorRecord], None]
"""Receives each visitor that has left; must neither raise nor block."""

_CLOSED = (VisitorEnd.VISITOR_CLOSED, VisitorEnd.TARGET_CLOSED)
_RESET = (VisitorEnd.VISITOR_RESET, VisitorEnd.TARGET_RESET)


class EndNotes:
    """What a relay knows of its end."""

    __slots__ = ("cause", "forwarder", "is_link_lost", "last", "reason", "target")

    def __init__(self, forwarder: LoggedForwarder, target: str | None) -> None:
        self.forwarder = forwarder
        self.target = target
        self.cause: VisitorEnd | None = None
        self.reason: str | None = None
        self.last: Flow | None = None  # the flow that has ended last, if both have ended in order
        self.is_link_lost = False


class _EndLog(Relay):
    """A relay that reports its end to the log of its forwarder."""

    __slots__ = ()

    def __init__(
        self,
        forwarder: LoggedForwarder,
        data: Any,  # noqa: ANN401  what the other base class takes
        link: RelayLink,
        near: socket.SocketType,
        owner: ForwardingOwner,
    ) -> None:
        super().__init__(forwarder, data, link, near, owner)
        # The target now: after a reset it is not known.
        self.notes = EndNotes(forwarder, None if forwarder.is_ingress else self.describe_near())

    def on_link_lost(self) -> None:
        """Note that a reset of the data connection may be due to the loss of the link."""
        self.notes.is_link_lost = True
        super().on_link_lost()

    def on_stream_error(self, error: Exception) -> None:
        """Note what was wrong with the data connection."""
        self.notes.cause = VisitorEnd.CORRUPTED
        super().on_stream_error(error)

    def reset(self, sock: socket.SocketType | None) -> None:
        """Note whose connection has failed: not the one that is reset because of it."""
        if self.is_open and self.notes.cause is None:
            self.notes.cause = self._reset_by(is_far=sock is self._near)
        super().reset(sock)

    def fail(self, reason: str) -> None:
        """Note why the target was not reached."""
        self.notes.reason = reason
        super().fail(reason)

    def close(self, cause: VisitorEnd | None = None, last: Flow | None = None) -> None:
        """Close both sockets; the first cause counts."""
        if self.is_open:
            self.notes.cause = self.notes.cause or cause
            self.notes.last = self.notes.last or last
        super().close(cause, last)

    def finish(self, last: Flow) -> None:
        """End after both streams are complete; ``last`` has ended last."""
        self.notes.last = last
        super().finish(last)

    def _release_flows(self) -> None:
        self.notes.forwarder.log(self._describe_end())
        self.notes.last = None  # it refers to this relay: see Relay._release_flows
        super()._release_flows()

    def _describe_end(self) -> VisitorRecord:
        from_near, to_near = self.passed()
        is_ingress = self.notes.forwarder.is_ingress
        address = unpack_address(self.visitor_address)
        return VisitorRecord(
            self.id,
            None if address is None else sockets.format_address(address),
            self.proto,
            self.notes.target,
            self.link.ident,
            from_near if is_ingress else to_near,
            to_near if is_ingress else from_near,
            time.monotonic() - self.started_at,
            self.notes.cause or self._infer_end(),
            self.notes.reason,
            time.time(),
        )

    def _infer_end(self) -> VisitorEnd:
        from_near, to_near = self._from_near, self._to_near
        if self.notes.last is not None:  # its peer's source was the first to end
            return _CLOSED[(self.notes.last is to_near) is not self.notes.forwarder.is_ingress]
        if (from_near.state is ENDED) is (to_near.state is ENDED):
            return VisitorEnd.TUNNEL_CLOSED
        # A relay that is closed when one flow has ended is closed because the source of that flow has failed since.
        return self._reset_by(is_far=from_near.state is not ENDED)

    def _reset_by(self, *, is_far: bool) -> VisitorEnd:
        if is_far and self.notes.is_link_lost:
            return VisitorEnd.LINK_LOST
        return _RESET[is_far is self.notes.forwarder.is_ingress]


class LoggedRelay(_EndLog):
    """A logged relay over a data connection."""

    __slots__ = ()


class LoggedLaneRelay(_EndLog, LaneRelay):
    """A logged relay in a lane."""

    __slots__ = ()


class LoggedForwarder(TcpForwarder):
    """Forwards TCP connections, and logs each visitor when it has left."""

    relay = LoggedRelay
    lane_relay = LoggedLaneRelay

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
