"""Forwards TCP connections: over a data connection for each visitor, or in lanes of a shared one."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tunnel.forwarding.lane_relay import LaneRelay
from tunnel.forwarding.lanes import Lane
from tunnel.forwarding.tcp import DEFAULT_LIMITS, Relay, RelayLimits

if TYPE_CHECKING:
    import socket

    from tunnel.forwarding.base import ForwardingOwner, RelayLink, UsedConnection
    from tunnel.forwarding.flow import ByteCounter
    from tunnel.runtime.reactor import Reactor
    from tunnel.runtime.splice import PipePool


class TcpForwarder:
    """Forwards TCP connections: one relay for each visitor."""

    relay: ClassVar[type[Relay]] = Relay
    """the relays over data connections"""
    lane_relay: ClassVar[type[LaneRelay]] = LaneRelay
    """the relays in lanes"""

    def __init__(
        self,
        reactor: Reactor,
        pipes: PipePool,
        from_near: ByteCounter,
        to_near: ByteCounter,
        limits: RelayLimits = DEFAULT_LIMITS,
    ) -> None:
        """``from_near`` counts bytes that come from visitors or targets, ``to_near`` bytes that go to them."""
        self.reactor = reactor
        self.pipes = pipes
        self.from_near = from_near
        self.to_near = to_near
        self.limits = limits

    def create(self, data: UsedConnection, link: RelayLink, near: socket.SocketType, owner: ForwardingOwner) -> Relay:
        """Join a connected socket and what carries its visitor, both of which the relay owns from now on."""
        if isinstance(data, Lane):
            return self.lane_relay(self, data, link, near, owner)
        return self.relay(self, data, link, near, owner)
