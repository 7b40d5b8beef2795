"""Data connections as plain TCP: the preface is all, and bytes are relayed as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from tunnel.carriers.base import DataHandshake
from tunnel.forwarding.tcp import PlainFlow
from tunnel.protocol.preface import encode_preface

if TYPE_CHECKING:
    import socket

    from tunnel.forwarding.flow import ByteCounter, Flow
    from tunnel.forwarding.tcp import Relay


class PlainStream:
    """Bytes in the clear."""

    has_buffered_input: ClassVar[bool] = False

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


class NoHandshake:
    """The handshake of a data connection that needs none; one object serves all."""

    is_complete = True
    stream = PlainStream()

    def advance(self, _sock: socket.SocketType) -> bool:
        """Return that it is complete."""
        return True


NO_HANDSHAKE: Final[DataHandshake] = NoHandshake()


class PlainDialCarrier:
    """Plain TCP, at the client."""

    def __init__(self, secret: bytes) -> None:
        """``secret`` is the link's; it authenticates the preface."""
        self._secret = secret

    def start_dial(self, sock: socket.SocketType, ident: int) -> DataHandshake:
        """Send the preface, after which nothing is left to do."""
        sock.send(encode_preface(self._secret, ident))
        return NO_HANDSHAKE


class PlainAcceptCarrier:
    """Plain TCP, at the server."""

    def start_accept(self, _ident: int) -> DataHandshake:
        """Return the handshake that is complete with the preface."""
        return NO_HANDSHAKE
