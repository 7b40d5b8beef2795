"""The two flows of a relay whose data connection is encrypted: one seals, one opens."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from tunnel.forwarding.tcp import ByteCounter, Flow, Relay
from tunnel.runtime.reactor import HANGUP
from tunnel.runtime.tls import MAX_RECORD_SIZE, TlsError, TlsSession

if TYPE_CHECKING:
    from collections.abc import Callable

_CHUNK: Final = 8 * MAX_RECORD_SIZE  # plaintext encrypted, or ciphertext opened, in one go
_CHUNKS: Final = 4  # of them in one turn


class EncryptingFlow(Flow):
    """From a plain source into an encrypted sink."""

    __slots__ = ("_closing", "_session")

    def __init__(
        self, relay: Relay, source: socket.SocketType, sink: socket.SocketType, meter: ByteCounter, session: TlsSession
    ) -> None:
        super().__init__(relay, source, sink, meter)
        self._session = session
        self._closing = False  # close_notify is written, the socket's own end follows the last byte of it

    def pump(self, events: int) -> None:
        """As in the plain flow; the meter counts plaintext."""
        if events & HANGUP:
            self._peer_closed = True
        if self.blocked or self.ended or self._closing:
            return
        chunk = self._scratch[:_CHUNK]
        for _ in range(_CHUNKS):
            try:
                got = self._source.recv_into(chunk)
            except BlockingIOError:
                return
            except OSError:
                self._source_broke()
                return
            if not got:
                self._source_ended()
                return
            try:
                self._session.write(chunk[:got])
            except TlsError:
                self._sink_broke()
                return
            self._meter.total += got
            if not self.push(self._session.data_to_send()) or (got < _CHUNK and not self._peer_closed):
                return
        self.relay.reactor.call_again(self.pump)

    def push(self, encrypted: bytes) -> bool:
        """Send ciphertext, which need not be of this flow's own making; whether the sink took all of it."""
        if self.blocked:
            self._pending = bytes(self._pending) + encrypted
            return False
        try:
            sent = self._sink.send(encrypted)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._sink_broke()
            return False
        if sent == len(encrypted):
            return True
        self._pending = memoryview(encrypted)[sent:]
        done = self._flush_sealed()
        self.blocked = not done and not self.ended
        return done

    def _flush_sealed(self) -> bool:
        while self._pending:
            try:
                sent = self._sink.send(self._pending)
            except BlockingIOError:
                return False
            except OSError:
                self._pending = b""
                self._sink_broke()
                return False
            self._pending = memoryview(self._pending)[sent:] if sent < len(self._pending) else b""
        return True

    def resume(self) -> None:
        """The sink takes bytes again."""
        if not self._flush_sealed():
            return
        self.blocked = False
        if self._closing:
            self._pass_end()
        else:
            self.pump(0)

    def _tell_end(self) -> bool:
        return self.relay.link.is_client  # close_notify has told it; a server shows it on the socket besides

    def _source_ended(self) -> None:
        if self._reset_on_eof:
            self._source_broke()
            return
        self._closing = True
        self._session.close_notify()
        if self.push(self._session.data_to_send()):
            self._pass_end()


class DecryptingFlow(Flow):
    """From an encrypted source into a plain sink."""

    __slots__ = ("_answer", "_is_left", "_session")

    def __init__(
        self,
        relay: Relay,
        source: socket.SocketType,
        sink: socket.SocketType,
        meter: ByteCounter,
        session: TlsSession,
        answer: Callable[[bytes], bool],
    ) -> None:
        super().__init__(relay, source, sink, meter)
        self._session = session
        self._is_left = True  # the session may hold something that was not opened yet
        self._answer = answer  # sends what TLS itself has to say back, such as the answer to a key update

    def pump(self, events: int) -> None:
        """As in the plain flow; the meter counts plaintext."""
        if events & HANGUP:
            self._peer_closed = True
        if self.blocked or self.ended:
            return
        session = self._session
        more = True
        for _ in range(_CHUNKS):
            if not (self._is_left and session.has_input):
                got = self._fetch()
                if got < 0:
                    return
                more = (
                    got == _CHUNK or self._peer_closed
                )  # a short read emptied the socket: what comes next is a new event
            try:
                opened = self._open()
            except TlsError:
                self._source_broke()
                return
            self._is_left = opened == len(self._scratch)
            delivered = not opened or self._deliver(opened)
            if session.bytes_to_send and self.relay.open:
                self._answer(session.data_to_send())  # not before: it may come back here and use the buffer
            if not delivered or not self.relay.open:
                return
            if self._is_left:
                continue
            if session.peer_closed:
                self._source_ended()
                return
            if not more:
                return
        self.relay.reactor.call_again(self.pump)

    def _open(self) -> int:
        """Plaintext of as many records as there are whole, into the buffer; how many bytes."""
        view, session, filled = self._scratch, self._session, 0
        while filled < len(view) and session.has_input:  # a read in vain costs more than a small record
            got = session.read_into(view[filled:] if filled else view)
            if not got:
                break
            filled += got
        return filled

    def _deliver(self, opened: int) -> bool:
        try:
            sent = self._sink.send(self._scratch[:opened])
        except BlockingIOError:
            sent = 0
        except OSError:
            self._sink_broke()
            return False
        self._meter.total += sent
        if sent < opened:
            self._pending = bytes(self._scratch[sent:opened])
            self.blocked = self._is_left = True  # until then, the other flow may have had to look into the session
            return False
        return True

    def _fetch(self) -> int:
        """Ciphertext from the source into the session: how many bytes, 0 at its end, -1 if there is nothing."""
        chunk = self._scratch[:_CHUNK]
        try:
            got = self._source.recv_into(chunk)
        except BlockingIOError:
            return -1
        except OSError:
            self._source_broke()
            return -1
        if got:
            self._session.receive_data(chunk[:got])
        else:
            self._session.receive_eof()
        return got
