"""Data connections in the clear: bytes are relayed as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.forwarding.tcp import PlainFlow

if TYPE_CHECKING:
    import socket

    from tunnel.forwarding.flow import ByteCounter, Flow
    from tunnel.forwarding.tcp import Relay


class PlainCarrier:
    """The data connections of links that do not encrypt them."""

    def create_flows(
        self,
        relay: Relay,
        near: socket.SocketType,
        far: socket.SocketType,
        from_near: ByteCounter,
        to_near: ByteCounter,
    ) -> tuple[Flow, Flow]:
        """Create two plain flows."""
        return PlainFlow(relay, near, far, from_near), PlainFlow(relay, far, near, to_near)
