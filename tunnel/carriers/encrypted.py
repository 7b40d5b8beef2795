"""The two flows of a relay whose data connection is encrypted with TLS: one encrypts, one decrypts."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, ClassVar

from tunnel.forwarding.flow import (
    DRAINED,
    LIVE,
    MORE,
    OPEN,
    STOPPED,
    ByteCounter,
    Flow,
    FlowState,
    SourceState,
    Transfer,
)
from tunnel.runtime.tls import TlsError, TlsSession

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.forwarding.tcp import Relay


class EncryptingFlow(Flow):
    """From a plain source into an encrypted sink. The counter counts plaintext."""

    __slots__ = ("_session",)

    transfer_cost: ClassVar[int] = 2

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

    def _transfer(self) -> Transfer:
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
        return DRAINED if got < self._buffer_size and self._source_state is LIVE else MORE

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

    transfer_cost: ClassVar[int] = 2

    def __init__(
        self,
        relay: Relay,
        source: socket.SocketType,
        sink: socket.SocketType,
        counter: ByteCounter,
        session: TlsSession,
        reply: Callable[[bytes], bool],
    ) -> None:
        """``reply`` sends what TLS itself has to answer, such as the answer to a key update."""
        super().__init__(relay, source, sink, counter)
        self._session = session
        self._has_undecrypted_input = True  # the session may hold input that was not decrypted yet
        self._may_receive_more = True  # the last read has not emptied the source
        self._reply = reply

    def _transfer(self) -> Transfer:
        session = self._session
        if not (self._has_undecrypted_input and session.has_input):
            result = self._receive()
            if result is not MORE:
                return result
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
            return MORE
        if session.peer_closed:
            self._on_source_ended()
            return STOPPED
        return MORE if self._may_receive_more else DRAINED

    def _yield_turn(self) -> None:
        super()._yield_turn()
        self._may_receive_more = True  # bytes that arrive before the next turn cause no other event

    def _receive(self) -> Transfer:
        """Read ciphertext, or the end of the stream, into the session; MORE: there is something to decrypt."""
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
        return MORE

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
