"""A data connection that a client dials: connecting, then introduced by its preface, then waiting for confirmation."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

from tunnel.runtime import sockets
from tunnel.runtime.reactor import CONNECT_FAILED, HANGUP, WRITABLE

if TYPE_CHECKING:
    import socket

DIAL_TIMEOUT_S: Final = 10.0
"""Limit for one dial of a data connection, until the server has confirmed it."""
LATE_CONFIRM_TIMEOUT_S: Final = 1.0
"""How long a confirmation may follow the end of a quick visitor's connection."""


class DataDialOwner(Protocol):
    """The object that dials data connections."""

    def encode_preface(self, ident: int) -> bytes:
        """The first bytes of a data connection."""

    def on_dial_failed(self, dial: DataDial, error: Exception) -> None:
        """The data connection cannot be made; its socket is still open."""

    def on_handler_error(self, error: Exception) -> None:
        """A defect in the dial."""


class DataDial:
    """One dial. Its owner registers the socket with ``on_events`` as handler, and owns it."""

    __slots__ = ("_owner", "events", "expires_at", "ident", "is_introduced", "port", "sock", "started_at")

    def __init__(self, owner: DataDialOwner, ident: int, sock: socket.SocketType, port: int, now: float) -> None:
        """``port`` is the one that was dialled; ``now`` is the event loop's time."""
        self.ident = ident
        self.sock = sock
        self.port = port
        self.is_introduced = False
        """whether the socket is connected and the preface was sent"""
        self.started_at = now
        self.expires_at = now + DIAL_TIMEOUT_S
        self.events = 0
        """reactor events since the preface was sent; the pool has to handle them"""
        self._owner = owner

    def on_events(self, events: int) -> None:
        """Handle reactor events until the server has confirmed the connection."""
        if self.is_introduced:
            self.events |= events
            if events & HANGUP:
                self.expires_at = min(self.expires_at, asyncio.get_running_loop().time() + LATE_CONFIRM_TIMEOUT_S)
            return
        try:
            error = sockets.get_connect_error(self.sock) if events & CONNECT_FAILED else None
            if error is not None:
                self._owner.on_dial_failed(self, error)
            elif events & WRITABLE:
                self.sock.send(self._owner.encode_preface(self.ident))
                self.is_introduced = True
        except OSError as failure:
            self._owner.on_dial_failed(self, failure)

    def on_handler_error(self, error: Exception) -> None:
        """Report a defect in the handler."""
        self._owner.on_handler_error(error)
