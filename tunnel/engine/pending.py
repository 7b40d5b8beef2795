"""A connection at a server that has not authenticated yet: reads its first bytes, and TLS where data uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.protocol.preface import DATA_TLS_PROOF_SIZE, PREFACE_SIZE, TLS_HANDSHAKE_BYTE
from tunnel.runtime import sockets, tls
from tunnel.runtime.reactor import HANGUP, READABLE

if TYPE_CHECKING:
    import asyncio
    import socket
    import ssl

    from tunnel.engine.server import LinkAcceptor


class PendingConnection:
    """Owns its socket until a control channel or the pool takes it over, or it is closed."""

    __slots__ = (
        "_acceptor",
        "_is_data_only",
        "_peer",
        "_preface",
        "_proof",
        "_session",
        "ident",
        "is_registered",
        "is_settled",
        "peer_closed",
        "sock",
        "task",
    )

    def __init__(self, acceptor: LinkAcceptor, sock: socket.SocketType, peer: object, *, data_only: bool) -> None:
        """``data_only``: it arrived on the data port, where a control channel is not accepted."""
        self.sock = sock
        self.is_settled = False
        """whether it was pooled or closed"""
        self.is_registered = False
        """whether the reactor watches the socket"""
        self.peer_closed = False
        """whether the peer has finished sending: the reactor reports that only once"""
        self.task: asyncio.Task[None] | None = None
        """the handshake of a control channel"""
        self.ident: int | None = None
        """id of the data connection, once its preface was valid"""
        self._peer = peer
        self._acceptor = acceptor
        self._is_data_only = data_only
        self._preface = b""
        self._proof = b""
        self._session: tls.TlsSession | None = None

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
        try:
            if self._session is not None:
                self._continue_tls(self._session)
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
            return
        except (OSError, tls.TlsError) as error:
            self._acceptor.refuse_data_connection(self, sockets.describe_error(error))
            return
        self._acceptor.check_preface(self, self._preface)

    def start_tls(self, ident: int, context: ssl.SSLContext) -> None:
        """Start TLS after a valid preface; the proof inside it completes the authentication."""
        self.ident = ident
        self._session = tls.TlsSession(context, server_side=True)
        self.read()

    def _continue_tls(self, session: tls.TlsSession) -> None:
        if self.ident is None:
            return
        session.receive_from(self.sock)
        if not session.is_established:
            session.do_handshake()
            self.sock.send(session.data_to_send())
        if session.is_established:
            size = DATA_TLS_PROOF_SIZE - len(self._proof)
            buffer = memoryview(bytearray(size))
            self._proof += bytes(buffer[: session.read_into(buffer)])
            if len(self._proof) == DATA_TLS_PROOF_SIZE:
                self._acceptor.check_data_proof(self, self.ident, self._proof, session)

    def evict(self, reason: str) -> None:
        """Close the connection: it did not authenticate in time, or a newer connection needs the place."""
        self._acceptor.on_evicted(self, reason)

    def on_handler_error(self, error: Exception) -> None:
        """Report a defect in the handler."""
        self._acceptor.on_handler_error(error)
