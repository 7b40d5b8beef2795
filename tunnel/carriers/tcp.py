"""Data connections in the clear: bytes are relayed as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.forwarding.tcp import PlainFlow

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from tunnel.forwarding.flow import ByteCounter, Flow
    from tunnel.forwarding.tcp import Relay


class PlainCodec:
    """The bytes of datagrams in a data connection that does not encrypt them."""

    def seal(self, content: bytes) -> bytes:
        """Return the content as it is."""
        return content

    def seal_frames(self, content: bytes) -> bytes:
        """Return the content as it is."""
        return content

    def open_frames(self, received: bytes) -> bytes:
        """Return what was received as it is."""
        return received

    def open(self, received: memoryview) -> Sequence[memoryview]:
        """Return what was received as it is."""
        return (received,)


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

    def create_codec(self, _ident: int, _use: int) -> PlainCodec:
        """Create what passes the bytes of datagrams on as they are."""
        return PlainCodec()
