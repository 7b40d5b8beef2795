"""The two flows of a relay whose data connection is encrypted: one seals, one opens."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from tunnel.forwarding.tcp import Flow, Meter, Relay
from tunnel.runtime.reactor import ENDING
from tunnel.runtime.tls import RECORD, TlsError, TlsSession

if TYPE_CHECKING:
    from collections.abc import Callable

_CHUNK: Final = 8 * RECORD  # plaintext sealed, or ciphertext opened, in one go
_CHUNKS: Final = 4  # of them in one turn


class SealingFlow(Flow):
    """From a plain source into an encrypted sink."""

    __slots__ = ("_closing", "_session")

    def __init__(
        self, relay: Relay, source: socket.SocketType, sink: socket.SocketType, meter: Meter, session: TlsSession
    ) -> None:
        super().__init__(relay, source, sink, meter)
        self._session = session
        self._closing = False  # close_notify is written, the socket's own end follows the last byte of it

    def pump(self, events: int) -> None:
        """As in the plain flow; the meter counts plaintext."""
        if events & ENDING:
            self._hung = True
        if self.blocked or self.ended or self._closing:
            return
        chunk = self._view[:_CHUNK]
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
            if not self.push(self._session.take()) or (got < _CHUNK and not self._hung):
                return
        self.relay.reactor.again(self.pump)

    def push(self, sealed: bytes) -> bool:
        """Send ciphertext, which need not be of this flow's own making; whether the sink took all of it."""
        if self.blocked:
            self._tail = bytes(self._tail) + sealed
            return False
        try:
            sent = self._sink.send(sealed)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._sink_broke()
            return False
        if sent == len(sealed):
            return True
        self._tail = memoryview(sealed)[sent:]
        done = self._flush_sealed()
        self.blocked = not done and not self.ended
        return done

    def _flush_sealed(self) -> bool:
        while self._tail:
            try:
                sent = self._sink.send(self._tail)
            except BlockingIOError:
                return False
            except OSError:
                self._tail = b""
                self._sink_broke()
                return False
            self._tail = memoryview(self._tail)[sent:] if sent < len(self._tail) else b""
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
        if self._doomed:
            self._source_broke()
            return
        self._closing = True
        self._session.close_notify()
        if self.push(self._session.take()):
            self._pass_end()


class OpeningFlow(Flow):
    """From an encrypted source into a plain sink."""

    __slots__ = ("_answer", "_is_left", "_session")

    def __init__(
        self,
        relay: Relay,
        source: socket.SocketType,
        sink: socket.SocketType,
        meter: Meter,
        session: TlsSession,
        answer: Callable[[bytes], bool],
    ) -> None:
        super().__init__(relay, source, sink, meter)
        self._session = session
        self._is_left = True  # the session may hold something that was not opened yet
        self._answer = answer  # sends what TLS itself has to say back, such as the answer to a key update

    def pump(self, events: int) -> None:
        """As in the plain flow; the meter counts plaintext."""
        if events & ENDING:
            self._hung = True
        if self.blocked or self.ended:
            return
        session = self._session
        more = True
        for _ in range(_CHUNKS):
            if not (self._is_left and session.readable):
                got = self._fetch()
                if got < 0:
                    return
                more = got == _CHUNK or self._hung  # a short read emptied the socket: what comes next is a new event
            try:
                opened = self._open()
            except TlsError:
                self._source_broke()
                return
            self._is_left = opened == len(self._view)
            delivered = not opened or self._deliver(opened)
            if session.pending_out and self.relay.open:
                self._answer(session.take())  # not before: it may come back here and use the buffer
            if not delivered or not self.relay.open:
                return
            if self._is_left:
                continue
            if session.closed:
                self._source_ended()
                return
            if not more:
                return
        self.relay.reactor.again(self.pump)

    def _open(self) -> int:
        """Plaintext of as many records as there are whole, into the buffer; how many bytes."""
        view, session, filled = self._view, self._session, 0
        while filled < len(view) and session.readable:  # a read in vain costs more than a small record
            got = session.read_into(view[filled:] if filled else view)
            if not got:
                break
            filled += got
        return filled

    def _deliver(self, opened: int) -> bool:
        try:
            sent = self._sink.send(self._view[:opened])
        except BlockingIOError:
            sent = 0
        except OSError:
            self._sink_broke()
            return False
        self._meter.total += sent
        if sent < opened:
            self._tail = bytes(self._view[sent:opened])
            self.blocked = self._is_left = True  # until then, the other flow may have had to look into the session
            return False
        return True

    def _fetch(self) -> int:
        """Ciphertext from the source into the session: how many bytes, 0 at its end, -1 if there is nothing."""
        chunk = self._view[:_CHUNK]
        try:
            got = self._source.recv_into(chunk)
        except BlockingIOError:
            return -1
        except OSError:
            self._source_broke()
            return -1
        if got:
            self._session.feed(chunk[:got])
        else:
            self._session.feed_eof()
        return got
