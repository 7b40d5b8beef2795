"""Encrypted data connections: after the preface, every byte is in a record of ``tunnel.protocol.records``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.carriers.encrypted_flows import BULK_READ_BYTES, DecryptingFlow, EncryptingFlow
from tunnel.forwarding.flow import CRYPTED, DRAINED, OPEN, STOPPED, ByteCounter, Flow, FlowState
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


def record_places(scratch: memoryview) -> list[RecordPlace]:
    """Return the places of full records in the shared buffer. Raises ValueError if there is no room for all."""
    if len(scratch) < BULK_READ_BYTES:
        raise ValueError(f"the buffer has {len(scratch)} bytes and needs {BULK_READ_BYTES}")
    return [RecordPlace(scratch, start) for start in range(0, BULK_READ_BYTES, MAX_RECORD_BYTES)]


def _bound_contents(contents: list[memoryview], allowed: int) -> list[memoryview]:
    """Return the first places of contents, with room for ``allowed`` bytes together at most."""
    full, left = divmod(allowed, MAX_CONTENT_BYTES)
    return contents[:full] + [content[:left] for content in contents[full : full + 1] if left]


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

    def seal_frames(self, content: bytes) -> bytes | bytearray:
        """Return the records of some content; costs less than ``seal`` where one record has room for it."""
        return self._writer.seal_content(content) if len(content) <= MAX_CONTENT_BYTES else self.seal(content)

    def open_frames(self, received: bytes) -> bytes:
        """Return the contents of the records that are complete, in one piece. Raises RecordError."""
        content = self._reader.open_received(received)
        if self._reader.has_ended:
            raise RecordError("the end of a stream that has none")
        return content

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
        self._read_bytes = len(self._contents[0])
        bound = sum(map(len, self._contents)) if self._is_bulk else self._read_bytes
        before = self._passed
        cost = super(LimitedFlow, self)._transfer()
        return CRYPTED if cost == DRAINED and self._passed - before == bound else cost

    def _unbind_reads(self) -> None:
        self._contents = [place.content for place in self._places]
        self._read_bytes = self.max_read_bytes


class LimitedDecryptingFlow(LimitedFlow, DecryptingFlow):
    """Decrypts at a limited rate."""

    __slots__ = ()
    unlimited = DecryptingFlow

    def _transfer_within(self, allowed: int) -> int:
        if not self._pending:
            self._is_bulk = True  # which reads into a part of the shared buffer that can be bounded
            room = self.relay.forwarder.reactor.scratch
            self._room = room[: min(BULK_READ_BYTES, len(self._reader.rest) + allowed)]
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
        self._room = self.relay.forwarder.reactor.scratch[:BULK_READ_BYTES]


class EncryptedCarrier:
    """The encrypted data connections of one link, at either end of it."""

    def __init__(self, secret: bytes, scratch: memoryview, *, is_client: bool) -> None:
        """``secret`` is the link's; ``scratch`` is the reactor's shared buffer, with room for eight records."""
        self._keys = LinkKeys(secret)
        self._places = record_places(scratch)
        self._contents = [place.content for place in self._places]
        self._room = scratch[:BULK_READ_BYTES]
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
