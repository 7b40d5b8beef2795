"""A connection at a server that has not authenticated yet: its first bytes, and the handshake of a data connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.model.errors import TunnelError
from tunnel.protocol.preface import PREFACE_SIZE, TLS_HANDSHAKE_BYTE
from tunnel.runtime import sockets
from tunnel.runtime.reactor import HANGUP, READABLE

if TYPE_CHECKING:
    import socket

    from tunnel.carriers.base import DataHandshake
    from tunnel.engine.link import Link
    from tunnel.engine.link_acceptor import LinkAcceptor


class PendingConnection:
    """Owns its socket until a control channel or the pool takes it over, or it is closed."""

    __slots__ = (
        "_acceptor",
        "_data_handshake",
        "_is_data_only",
        "_peer",
        "_preface",
        "is_waiting",
        "peer_closed",
        "sock",
    )

    def __init__(self, acceptor: LinkAcceptor, sock: socket.SocketType, peer: object, *, data_only: bool) -> None:
        """``data_only``: it arrived on the data port, where a control channel is not accepted."""
        self.sock = sock
        self.is_waiting = False
        """whether more bytes have to arrive, as of the last ``read``"""
        self.peer_closed = False
        """whether the peer has finished sending: the reactor reports that only once"""
        self._data_handshake: tuple[Link, int, DataHandshake] | None = None  # with the id of the data connection
        self._peer = peer
        self._acceptor = acceptor
        self._is_data_only = data_only
        self._preface = b""

    @property
    def peer(self) -> str:
        """Remote address with port."""
        return sockets.format_address(self._peer)

    @property
    def address(self) -> str:
        """Remote address without the port."""
        return self.peer.rpartition(":")[0]

    def ready(self, events: int) -> None:
        """Handle reactor events until the connection is identified; for data connections until it is proven."""
        if events & HANGUP:
            self.peer_closed = True
        if events & READABLE:
            self.read()

    def read(self) -> None:
        """Read what has arrived, and continue the authentication."""
        self.is_waiting = False
        try:
            if self._data_handshake is not None:
                link, ident, handshake = self._data_handshake
                if handshake.advance(self.sock):
                    self._acceptor.on_data_handshake_complete(self, link, ident, handshake.stream)
                else:
                    self.is_waiting = True
                return
            while len(self._preface) < PREFACE_SIZE:
                data = self.sock.recv(PREFACE_SIZE - len(self._preface))
                if not data:
                    self._acceptor.discard(self)
                    return
                self._preface += data
                if self._preface[0] == TLS_HANDSHAKE_BYTE and not self._is_data_only:
                    self._acceptor.start_handshake(self, self._preface)
                    return
        except BlockingIOError:
            self.is_waiting = True
            return
        except (OSError, TunnelError) as error:
            self._acceptor.refuse_data_connection(self, sockets.describe_error(error))
            return
        self._acceptor.check_preface(self, self._preface)

    def start_data_handshake(self, link: Link, ident: int, handshake: DataHandshake) -> None:
        """Start what follows a valid preface: it completes the authentication of the data connection."""
        self._data_handshake = (link, ident, handshake)
        self.read()

    def evict(self, reason: str) -> None:
        """Close the connection: it did not authenticate in time, or a newer connection needs the place."""
        self._acceptor.on_evicted(self, reason)

    def on_handler_error(self, error: Exception) -> None:
        """Report a defect in the handler."""
        self._acceptor.on_handler_error(error)
