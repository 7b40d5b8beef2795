"""A connection at a server that has not authenticated yet: its first bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.protocol.preface import PREFACE_SIZE, TLS_HANDSHAKE_BYTE
from tunnel.runtime import sockets
from tunnel.runtime.front_door import PeerOrigin, origin_of
from tunnel.runtime.reactor import HANGUP, READABLE

if TYPE_CHECKING:
    import socket

    from tunnel.engine.tunnel_port import TunnelPort


class PendingConnection:
    """Owns its socket until a control channel or the pool takes it over, or it is closed."""

    __slots__ = (
        "_awaits_handshake",
        "_is_data_only",
        "_peer",
        "_preface",
        "is_admitted",
        "is_registered",
        "is_waiting",
        "owner",
        "peer_closed",
        "sock",
    )

    def __init__(self, port: TunnelPort, sock: socket.SocketType, peer: object, *, data_only: bool) -> None:
        """``data_only``: it arrived on the data port, where a control channel is not accepted."""
        self.sock = sock
        self.owner = port
        self.is_waiting = False
        """whether more bytes have to arrive, as of the last ``read``"""
        self.peer_closed = False
        """whether the peer has finished sending: the reactor reports that only once"""
        self.is_admitted = False
        """whether the front door has it: not if its first read shows a whole preface"""
        self.is_registered = False
        """whether the reactor has it"""
        self._peer = peer
        self._awaits_handshake = False
        self._is_data_only = data_only
        self._preface = b""

    @property
    def origin(self) -> PeerOrigin:
        """Where it comes from, for the front door; a data connection that is pooled at once does not need it."""
        return origin_of(self._peer)

    @property
    def peer(self) -> str:
        """Remote address with port."""
        return sockets.format_address(self._peer)

    def ready(self, events: int) -> None:
        """Handle reactor events until the connection is identified."""
        if events & HANGUP:
            self.peer_closed = True
            if self._awaits_handshake:
                self.owner.refuse_closed(self)
                return
        if events & READABLE and not self._awaits_handshake:
            self.read()

    def read(self) -> None:
        """Read what has arrived, and continue the authentication."""
        self.is_waiting = False
        try:
            while len(self._preface) < PREFACE_SIZE:
                data = self.sock.recv(PREFACE_SIZE - len(self._preface))
                if not data:
                    self.owner.discard(self)
                    return
                self._preface += data
                if self._preface[0] == TLS_HANDSHAKE_BYTE and not self._is_data_only:
                    self._awaits_handshake = True
                    if self.peer_closed:
                        self.owner.refuse_closed(self)
                    else:
                        self.owner.request_handshake(self)
                    return
        except BlockingIOError:
            self.is_waiting = True
            return
        except OSError as error:
            self.owner.refuse_data_connection(self, sockets.describe_error(error))
            return
        self.owner.check_preface(self, self._preface)

    @property
    def first_bytes(self) -> bytes:
        """What was read from the socket so far."""
        return self._preface

    def evict(self, reason: str) -> None:
        """Close the connection: it did not authenticate in time, or a newer connection needs the place."""
        self.owner.on_evicted(self, reason)

    def on_handler_error(self, error: Exception) -> None:
        """Report a defect in the handler."""
        self.owner.on_handler_error(error)
