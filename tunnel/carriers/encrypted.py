"""Data connections with TLS inside: after the preface a TLS 1.3 handshake, and a proof that binds it to the link."""

from __future__ import annotations

import secrets
import socket
import ssl
from typing import TYPE_CHECKING, ClassVar

from tunnel.carriers.base import DataHandshake
from tunnel.forwarding.flow import (
    CRYPTED,
    DRAINED,
    LIVE,
    OPEN,
    STOPPED,
    ByteCounter,
    Flow,
    FlowState,
    SourceState,
)
from tunnel.protocol.preface import DATA_TLS_PROOF_SIZE, data_tls_proof, encode_preface
from tunnel.runtime.tls import TlsError, TlsSession, pinned_context

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.forwarding.tcp import Relay


class EncryptingFlow(Flow):
    """From a plain source into an encrypted sink. The counter counts plaintext."""

    __slots__ = ("_session",)

    def __init__(
        self,
        relay: Relay,
        source: socket.SocketType,
        sink: socket.SocketType,
        counter: ByteCounter,
        session: TlsSession,
    ) -> None:
        super().__init__(relay, source, sink, counter)
        self._session = session

    def _transfer(self) -> int:
        scratch = self._scratch
        try:
            got = self._source.recv_into(scratch)
        except BlockingIOError:
            return DRAINED
        except OSError:
            self._on_source_failed()
            return STOPPED
        if not got:
            self._on_source_ended()
            return STOPPED
        try:
            self._session.write(scratch[:got])
        except TlsError:
            self._on_sink_failed()
            return STOPPED
        self._counter.total += got
        if not self.push(self._session.data_to_send()):
            return STOPPED
        return DRAINED if got < self._buffer_size and self._source_state is LIVE else CRYPTED

    def push(self, ciphertext: bytes) -> bool:
        """Send ciphertext, which the other flow may have produced; return whether the sink took all of it."""
        if self._pending:
            self._pending = bytes(self._pending) + ciphertext
            return False
        try:
            sent = self._sink.send(ciphertext)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._on_sink_failed()
            return False
        if sent == len(ciphertext):
            return True
        self._pending = memoryview(ciphertext)[sent:]
        if self.state is OPEN:
            self.state = FlowState.BLOCKED
        return False

    def _count(self, sent: int) -> None:
        """Count nothing: what waits is ciphertext, whose plaintext was counted when it was read."""

    def _announce_end(self) -> bool:
        return self.relay.link.is_client  # close_notify has announced it; a server also shows it on the socket

    def _on_source_ended(self) -> None:
        if self._source_state is SourceState.RESET:
            self._on_source_failed()
            return
        self.state = FlowState.CLOSING
        self._session.close_notify()
        if self.push(self._session.data_to_send()):
            self._pass_end()


class DecryptingFlow(Flow):
    """From an encrypted source into a plain sink. The counter counts plaintext."""

    __slots__ = ("_has_undecrypted_input", "_may_receive_more", "_reply", "_session")

    def __init__(
        self,
        relay: Relay,
        source: socket.SocketType,
        sink: socket.SocketType,
        counter: ByteCounter,
        session: TlsSession,
        reply: Callable[[bytes], bool],
    ) -> None:
        """``reply`` sends the answers of the TLS layer, such as the answer to a key update."""
        super().__init__(relay, source, sink, counter)
        self._session = session
        self._has_undecrypted_input = True  # the session may hold input that was not decrypted yet
        self._may_receive_more = True  # the last read has not emptied the source
        self._reply = reply

    def _transfer(self) -> int:
        session = self._session
        if not (self._has_undecrypted_input and session.has_input):
            cost = self._receive()
            if cost <= 0:
                return cost
        try:
            decrypted = self._decrypt()
        except TlsError:
            self._on_source_failed()
            return STOPPED
        self._has_undecrypted_input = decrypted == len(self._scratch)
        is_delivered = not decrypted or self._deliver(decrypted)
        if session.bytes_to_send and self.relay.is_open:
            self._reply(session.data_to_send())  # not earlier: it may call this flow again, which uses the buffer
        if not is_delivered or not self.relay.is_open:
            return STOPPED
        if self._has_undecrypted_input:
            return CRYPTED
        if session.peer_closed:
            self._on_source_ended()
            return STOPPED
        return CRYPTED if self._may_receive_more else DRAINED

    def _yield_turn(self) -> None:
        super()._yield_turn()
        self._may_receive_more = True  # bytes that arrive before the next turn cause no other event

    def _receive(self) -> int:
        """Read ciphertext, or the end of the stream, into the session; return the cost, DRAINED or STOPPED."""
        try:
            got = self._source.recv_into(self._scratch)
        except BlockingIOError:
            return DRAINED
        except OSError:
            self._on_source_failed()
            return STOPPED
        if got:
            self._session.receive_data(self._scratch[:got])
        else:
            self._session.receive_eof()
        self._may_receive_more = got == self._buffer_size or self._source_state is not LIVE
        return CRYPTED

    def _decrypt(self) -> int:
        """Decrypt as many whole records as there are, into the buffer; return the bytes of plaintext."""
        scratch, session, filled = self._scratch, self._session, 0
        while filled < len(scratch) and session.has_input:  # a fruitless read costs more than a small record
            got = session.read_into(scratch[filled:] if filled else scratch)
            if not got:
                break
            filled += got
        return filled

    def _deliver(self, decrypted: int) -> bool:
        """Send plaintext from the buffer; return whether the sink took all of it."""
        try:
            sent = self._sink.send(self._scratch[:decrypted])
        except BlockingIOError:
            sent = 0
        except OSError:
            self._on_sink_failed()
            return False
        self._counter.total += sent
        if sent < decrypted:
            self._pending = bytes(self._scratch[sent:decrypted])
            self.state = FlowState.BLOCKED
            # Meanwhile bytes may arrive, and the other flow's close_notify may read into the session.
            self._has_undecrypted_input = self._may_receive_more = True
            return False
        return True


class TlsStream:
    """Bytes inside a TLS session."""

    has_buffered_input: ClassVar[bool] = True

    def __init__(self, session: TlsSession) -> None:
        self._session = session

    def create_flows(
        self,
        relay: Relay,
        near: socket.SocketType,
        far: socket.SocketType,
        from_near: ByteCounter,
        to_near: ByteCounter,
    ) -> tuple[Flow, Flow]:
        """Create one flow that encrypts and one that decrypts."""
        encrypting = EncryptingFlow(relay, near, far, from_near, self._session)
        return encrypting, DecryptingFlow(relay, far, near, to_near, self._session, encrypting.push)


class TlsDialHandshake:
    """The client's side: TLS, whose certificate has to be the control channel's, then the proof inside it."""

    __slots__ = ("_certificate", "_proof", "_session", "stream")

    def __init__(self, context: ssl.SSLContext, certificate: bytes, proof: bytes) -> None:
        self._session = TlsSession(context, server_side=False)
        self.stream = TlsStream(self._session)
        self._certificate = certificate
        self._proof = proof

    @property
    def is_complete(self) -> bool:
        """Whether the proof was sent."""
        return self._session.is_established

    def advance(self, sock: socket.SocketType) -> bool:
        """Continue the TLS handshake, and send the proof once it is complete. Raises TlsError and OSError."""
        session = self._session
        session.receive_from(sock)
        if session.do_handshake():
            if session.peer_certificate() != self._certificate:
                raise TlsError("the data connection shows another certificate than the control channel")
            session.write(self._proof)
        sock.send(session.data_to_send())
        return session.is_established


class TlsAcceptHandshake:
    """The server's side: TLS, then the client's proof inside it."""

    __slots__ = ("_expected_proof", "_received", "_session", "is_complete", "stream")

    def __init__(self, context: ssl.SSLContext, proof: bytes) -> None:
        self._session = TlsSession(context, server_side=True)
        self.stream = TlsStream(self._session)
        self.is_complete = False
        self._expected_proof = proof
        self._received = b""

    def advance(self, sock: socket.SocketType) -> bool:
        """Continue the TLS handshake, then read the proof. Raises TlsError and OSError."""
        session = self._session
        session.receive_from(sock)
        if not session.is_established:
            session.do_handshake()
            sock.send(session.data_to_send())
        if session.is_established:
            buffer = memoryview(bytearray(DATA_TLS_PROOF_SIZE - len(self._received)))
            self._received += bytes(buffer[: session.read_into(buffer)])
            if len(self._received) == DATA_TLS_PROOF_SIZE:
                if not secrets.compare_digest(self._received, self._expected_proof):
                    raise TlsError("a wrong proof inside TLS")
                self.is_complete = True
        return self.is_complete


class TlsDialCarrier:
    """TLS for each data connection, at the client."""

    def __init__(self, secret: bytes, certificate: bytes) -> None:
        """``certificate`` is the control channel's, as DER: data connections have to show the same."""
        self._secret = secret
        self._certificate = certificate
        self._context = pinned_context()

    def start_dial(self, sock: socket.SocketType, ident: int) -> DataHandshake:
        """Send the preface, and the first message of TLS."""
        sock.send(encode_preface(self._secret, ident))
        handshake = TlsDialHandshake(self._context, self._certificate, data_tls_proof(self._secret, ident))
        handshake.advance(sock)
        return handshake


class TlsAcceptCarrier:
    """TLS for each data connection, at the server."""

    def __init__(self, secret: bytes, context: ssl.SSLContext) -> None:
        """``context`` is the one of the control channel."""
        self._secret = secret
        self._context = context

    def start_accept(self, ident: int) -> DataHandshake:
        """Expect TLS, and inside it the proof for this data connection."""
        return TlsAcceptHandshake(self._context, data_tls_proof(self._secret, ident))
