"""How the data connections of a link travel: how they are dialled and accepted, and which flows relay over them.

A client has a ``DialCarrier`` for each link, a server an ``AcceptCarrier``; ``tunnel.carriers`` creates them when the
handshake of the link is complete. A data connection starts with a preface that names it, in the clear. What follows the
preface is the carrier's.

To add a carrier: one module like ``tunnel.carriers.encrypted``, and a row in ``tunnel.carriers.CARRIERS``.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

from tunnel.model.errors import TunnelError
from tunnel.runtime import sockets
from tunnel.runtime.reactor import CONNECT_FAILED, HANGUP, READABLE, WRITABLE

if TYPE_CHECKING:
    import socket

    from tunnel.forwarding.base import FlowSource

DIAL_TIMEOUT_S: Final = 10.0
"""Limit for one dial of a data connection, until the server has confirmed it."""
LATE_CONFIRM_TIMEOUT_S: Final = 1.0
"""How long a confirmation may follow the end of a quick visitor's connection."""


class DataHandshake(Protocol):
    """What follows the preface, until the data connection may carry a visitor."""

    @property
    def is_complete(self) -> bool:
        """Whether ``stream`` may be used."""

    @property
    def stream(self) -> FlowSource:
        """The bytes of the data connection, for its relay."""

    def advance(self, sock: socket.SocketType) -> bool:
        """Continue with what has arrived; return whether the handshake is complete now.

        Raises OSError where the socket failed, TunnelError where the other end is not the right one.
        """


class DialCarrier(Protocol):
    """How a client makes the data connections of one link."""

    def start_dial(self, sock: socket.SocketType, ident: int) -> DataHandshake:
        """Send the preface on a connection that has just been established. Raises OSError and TunnelError."""


class AcceptCarrier(Protocol):
    """How a server makes the data connections of one link."""

    def start_accept(self, ident: int) -> DataHandshake:
        """Start the server's side, after a preface that was valid."""


class DialOwner(Protocol):
    """The object that dials data connections."""

    def on_dial_failed(self, dial: DataDial, error: Exception) -> None:
        """The data connection cannot be made; its socket is still open."""

    def on_handler_error(self, error: Exception) -> None:
        """A defect in the dial."""


class DataDial:
    """A data connection that a client dials: connecting, then its handshake, then waiting for the confirmation.

    Its owner registers the socket with ``on_events`` as handler, and owns it.
    """

    __slots__ = ("_carrier", "_owner", "events", "expires_at", "handshake", "ident", "port", "sock", "started_at")

    def __init__(
        self, owner: DialOwner, carrier: DialCarrier, ident: int, sock: socket.SocketType, port: int, now: float
    ) -> None:
        """``port`` is the one that was dialled; ``now`` is the event loop's time."""
        self.ident = ident
        self.sock = sock
        self.port = port
        self.handshake: DataHandshake | None = None
        """None while the socket is connecting"""
        self.started_at = now
        self.expires_at = now + DIAL_TIMEOUT_S
        self.events = 0
        """reactor events since the preface was sent; the pool has to handle them"""
        self._carrier = carrier
        self._owner = owner

    def on_events(self, events: int) -> None:
        """Handle reactor events until the server has confirmed the connection."""
        try:
            if self.handshake is None:
                error = sockets.get_connect_error(self.sock) if events & CONNECT_FAILED else None
                if error is not None:
                    self._owner.on_dial_failed(self, error)
                elif events & WRITABLE:
                    self.handshake = self._carrier.start_dial(self.sock, self.ident)
                return
            self.events |= events
            if events & READABLE and not self.handshake.is_complete:
                self.handshake.advance(self.sock)
        except (TunnelError, OSError) as error:
            self._owner.on_dial_failed(self, error)
            return
        if events & HANGUP:
            self.expires_at = min(self.expires_at, asyncio.get_running_loop().time() + LATE_CONFIRM_TIMEOUT_S)

    def on_handler_error(self, error: Exception) -> None:
        """Report a defect in the handler."""
        self._owner.on_handler_error(error)
