"""Encrypted data connections: after the preface, every byte is in a record of ``tunnel.protocol.records``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.forwarding.flow import (
    CLOSING,
    CRYPTED,
    CRYPTED_BULK,
    DRAINED,
    ENDED,
    LIVE,
    OPEN,
    RESET,
    STOPPED,
    UNANNOUNCED,
    ByteCounter,
    Flow,
    FlowState,
)
from tunnel.forwarding.limited_flow import LimitedFlow
from tunnel.protocol.records import (
    HEADER_BYTES,
    MAX_CONTENT_BYTES,
    MAX_RECORD_BYTES,
    OVERHEAD_BYTES,
    LinkKeys,
    RecordDirection,
    RecordError,
    RecordPlace,
    RecordReader,
    RecordWriter,
)

if TYPE_CHECKING:
    import socket

    from tunnel.forwarding.tcp import Relay

_MAX_RECORDS: Final = 8  # of a read: system calls of half the size cost an eighth more CPU for bulk
_READ_BYTES: Final = _MAX_RECORDS * MAX_RECORD_BYTES


def record_places(scratch: memoryview) -> list[RecordPlace]:
    """Return the places of full records in the shared buffer. Raises ValueError if there is no room for all."""
    if len(scratch) < _READ_BYTES:
        raise ValueError(f"the buffer has {len(scratch)} bytes and needs {_READ_BYTES}")
    return [RecordPlace(scratch, start) for start in range(0, _READ_BYTES, MAX_RECORD_BYTES)]


def _bound_contents(contents: list[memoryview], allowed: int) -> list[memoryview]:
    """Return the first places of contents, with room for ``allowed`` bytes together at most."""
    full, left = divmod(allowed, MAX_CONTENT_BYTES)
    return contents[:full] + [content[:left] for content in contents[full : full + 1] if left]


class EncryptingFlow(Flow):
    """From a plain source into an encrypted sink. The counter counts content."""

    __slots__ = ("_contents", "_places", "_writer")

    def __init__(
        self,
        relay: Relay,
        source: socket.SocketType,
        sink: socket.SocketType,
        counter: ByteCounter,
        writer: RecordWriter,
        places: list[RecordPlace],
        contents: list[memoryview],
    ) -> None:
        """``places`` are those of records in the shared buffer, ``contents`` those of their contents."""
        super().__init__(relay, source, sink, counter)
        self._writer = writer
        self._places = places
        self._contents = contents

    def _transfer(self) -> int:
        contents = self._contents
        try:
            if self._is_bulk:
                got, room = self.source.recvmsg_into(contents)[0], len(contents) * MAX_CONTENT_BYTES
            else:
                got, room = self.source.recv_into(contents[0]), MAX_CONTENT_BYTES
        except BlockingIOError:
            return DRAINED
        except OSError:
            self._on_source_failed()
            return STOPPED
        if not got:
            self._on_source_ended()
            return STOPPED
        self._counter.total += got
        self._passed += got
        writer, scratch = self._writer, self._scratch
        full, left = divmod(got, MAX_CONTENT_BYTES)
        for place in self._places[:full]:
            writer.seal_full(place)
        end = full * MAX_RECORD_BYTES
        if left:
            end = writer.seal(scratch, end, left)
        try:
            sent = self._sink.send(scratch[:end])
        except BlockingIOError:
            sent = 0
        except OSError:
            self._on_sink_failed()
            return STOPPED
        if sent != end:
            self._pending = bytes(scratch[sent:end])
            self.state = FlowState.BLOCKED
            return STOPPED
        is_bulk, self._is_bulk = self._is_bulk, got == room
        if self._is_bulk or self._source_state is not LIVE:
            return CRYPTED_BULK if is_bulk else CRYPTED
        return DRAINED

    def _count(self, sent: int) -> None:
        """Count nothing: what waits are records, whose content was counted when it was read."""

    def _on_source_ended(self) -> None:
        """Pass the end on: over the link if this end announces it there, else in a record.

        In a record, too, where the relay closes the socket next: the announcement may be lost with the link, and then
        nothing could show the end any more.
        """
        link = self.relay.link
        if self._source_state is RESET:
            self._on_source_failed()
        elif link.announces_ends and (link.reuses or self.peer.state is not ENDED):
            self._pass_end()
        else:
            self.show_end()

    def show_end(self) -> None:
        """Send the record that announces the end, then show the end on the socket."""
        self._pending = self._writer.seal_end()
        self.state = CLOSING
        self.resume()


class DecryptingFlow(Flow):
    """From an encrypted source into a plain sink. The counter counts content."""

    __slots__ = ("_reader", "_room")

    def __init__(
        self,
        relay: Relay,
        source: socket.SocketType,
        sink: socket.SocketType,
        counter: ByteCounter,
        reader: RecordReader,
        room: memoryview,
    ) -> None:
        """``room`` is the part of the shared buffer into which records are received."""
        super().__init__(relay, source, sink, counter)
        self._reader = reader
        self._room = room

    def _transfer(self) -> int:
        if self._reader.has_ended:  # and what came before it has waited for the sink
            self._on_source_ended()
            return STOPPED
        reader, room = self._reader, self._room
        start = len(reader.rest)
        if start:
            room[:start] = reader.rest
            room = room[start:]
        try:
            got = self.source.recv_into(room)
        except BlockingIOError:
            return DRAINED
        except OSError:
            self._on_source_failed()
            return STOPPED
        if not got:
            self._await_end()
            return STOPPED
        try:
            contents = reader.open_all(self._room[: start + got])
        except RecordError as error:
            self.relay.on_stream_error(error)
            self._on_source_failed()
            return STOPPED
        if contents and not self._deliver(contents):
            return STOPPED
        if reader.has_ended:
            self._on_source_ended()
            return STOPPED
        if got == len(room) or self._source_state is not LIVE:
            return CRYPTED_BULK if got > _READ_BYTES // 2 else CRYPTED
        return DRAINED

    def _deliver(self, contents: list[memoryview]) -> bool:
        """Send contents of records from the buffer; return whether the sink took all of them."""
        is_single = len(contents) == 1
        size = len(contents[0]) if is_single else sum(map(len, contents))
        try:
            sent = self._sink.send(contents[0]) if is_single else self._sink.sendmsg(contents)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._on_sink_failed()
            return False
        self._counter.total += sent
        self._passed += sent
        if sent == size:
            return True
        self._pending = b"".join(contents)[sent:]
        self.state = FlowState.BLOCKED
        return False

    def _await_end(self) -> None:
        """Handle the end of the socket before the end of the stream: the link may bring that in a moment.

        Or the link is lost in a moment, because the other end was killed: then a visitor of which nothing was forwarded
        can be served over another link, unless the visitor is disconnected now.
        """
        if self._passed == self._end_offset:  # it has brought that already
            self._on_source_ended()
            return
        may_continue = self.relay.link.has_announced_ends or (self.is_untouched and self.peer.is_untouched)
        if self._source_state is RESET or not may_continue:
            self._on_source_failed()
            return
        self.state = UNANNOUNCED
        forwarder = self.relay.forwarder
        forwarder.reactor.call_later(forwarder.limits.end_timeout_s, self.on_link_lost)  # no announcement has come


class RecordCodec:
    """The bytes of datagrams in records, both ways."""

    __slots__ = ("_reader", "_writer")

    def __init__(self, writer: RecordWriter, reader: RecordReader) -> None:
        self._writer = writer
        self._reader = reader

    def seal(self, content: bytes) -> bytearray:
        """Return the records of some content."""
        count = -(-len(content) // MAX_CONTENT_BYTES)
        records = bytearray(len(content) + count * OVERHEAD_BYTES)
        buffer, end = memoryview(records), 0
        for start in range(0, len(content), MAX_CONTENT_BYTES):
            piece = content[start : start + MAX_CONTENT_BYTES]
            records[end + HEADER_BYTES : end + HEADER_BYTES + len(piece)] = piece
            end = self._writer.seal(buffer, end, len(piece))
        return records

    def open(self, received: memoryview) -> list[memoryview]:
        """Return the contents of the records that are complete. Raises RecordError."""
        reader = self._reader
        if reader.rest:
            received = memoryview(bytearray(reader.rest) + received)
        contents = reader.open_all(received)
        if reader.has_ended:
            raise RecordError("the end of a stream that has none")
        return contents


class LimitedEncryptingFlow(LimitedFlow, EncryptingFlow):
    """Encrypts at a limited rate."""

    __slots__ = ()
    unlimited = EncryptingFlow

    def _transfer_within(self, allowed: int) -> int:
        self._contents = _bound_contents([place.content for place in self._places], allowed)
        bound = sum(map(len, self._contents)) if self._is_bulk else len(self._contents[0])
        before = self._passed
        cost = super(LimitedFlow, self)._transfer()
        return CRYPTED if cost == DRAINED and self._passed - before == bound else cost

    def _unbind_reads(self) -> None:
        self._contents = [place.content for place in self._places]


class LimitedDecryptingFlow(LimitedFlow, DecryptingFlow):
    """Decrypts at a limited rate."""

    __slots__ = ()
    unlimited = DecryptingFlow

    def _transfer_within(self, allowed: int) -> int:
        if not self._pending:
            self._room = self._scratch[: min(_READ_BYTES, len(self._reader.rest) + allowed)]
            cost = super(LimitedFlow, self)._transfer()
            return CRYPTED if self._pending and self.state is OPEN else cost
        return CRYPTED if self._send_allowed() else STOPPED

    def _deliver(self, contents: list[memoryview]) -> bool:
        """Send contents as far as the limit permits; what is left of a record waits for the next transfer."""
        if sum(map(len, contents)) <= self.limit.allowed:
            return super()._deliver(contents)
        self._pending = b"".join(contents)
        self._send_allowed()
        return False

    def _send_allowed(self) -> bool:
        """Send what the limit permits of the contents that wait; return whether the sink took it."""
        pending = memoryview(self._pending)
        allowed = pending[: self.limit.allowed]
        try:
            sent = self._sink.send(allowed)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._pending = b""
            self._on_sink_failed()
            return False
        self._counter.total += sent
        self._passed += sent
        self._pending = pending[sent:] if sent < len(pending) else b""
        if sent < len(allowed):
            self.state = FlowState.BLOCKED
            return False
        return True

    def _unbind_reads(self) -> None:
        self._room = self._scratch[:_READ_BYTES]


class EncryptedCarrier:
    """The encrypted data connections of one link, at either end of it."""

    def __init__(self, secret: bytes, scratch: memoryview, *, is_client: bool) -> None:
        """``secret`` is the link's; ``scratch`` is the reactor's shared buffer, with room for eight records."""
        self._keys = LinkKeys(secret)
        self._places = record_places(scratch)
        self._contents = [place.content for place in self._places]
        self._room = scratch[:_READ_BYTES]
        sent, received = RecordDirection.TO_SERVER, RecordDirection.TO_CLIENT
        self._sent, self._received = (sent, received) if is_client else (received, sent)

    def create_flows(
        self,
        relay: Relay,
        near: socket.SocketType,
        far: socket.SocketType,
        from_near: ByteCounter,
        to_near: ByteCounter,
    ) -> tuple[Flow, Flow]:
        """Create one flow that encrypts and one that decrypts."""
        writer = RecordWriter(self._keys, relay.ident, relay.use, self._sent)
        reader = RecordReader(self._keys, relay.ident, relay.use, self._received)
        return (
            EncryptingFlow(relay, near, far, from_near, writer, self._places, self._contents),
            DecryptingFlow(relay, far, near, to_near, reader, self._room),
        )

    def create_codec(self, ident: int, use: int) -> RecordCodec:
        """Create what seals and opens the bytes of datagrams."""
        writer = RecordWriter(self._keys, ident, use, self._sent)
        return RecordCodec(writer, RecordReader(self._keys, ident, use, self._received))
