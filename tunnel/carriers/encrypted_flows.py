"""The flows of encrypted data connections: one seals what comes from the near side, one opens what goes to it."""

from __future__ import annotations

import socket
from os import read, write
from typing import TYPE_CHECKING, Final

from tunnel.forwarding.flow import (
    CLOSING,
    CRYPTED,
    CRYPTED_BULK,
    DRAINED,
    ENDED,
    ENDING,
    LIVE,
    RESET,
    STOPPED,
    UNANNOUNCED,
    ByteCounter,
    Flow,
    FlowState,
)
from tunnel.protocol.records import (
    MAX_CONTENT_BYTES,
    MAX_RECORD_BYTES,
    RecordError,
    RecordPlace,
    RecordReader,
    RecordWriter,
)

if TYPE_CHECKING:
    from tunnel.forwarding.tcp import Relay

_MAX_RECORDS: Final = 8  # of a read: system calls of half the size cost an eighth more CPU for bulk
BULK_READ_BYTES: Final = _MAX_RECORDS * MAX_RECORD_BYTES
"""The most that a flow that carries bulk reads at once."""


class EncryptingFlow(Flow):
    """From a plain source into an encrypted sink. The counter counts content."""

    __slots__ = ("_contents", "_is_end_sealed", "_places", "_writer")

    max_read_bytes = MAX_CONTENT_BYTES

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
        self._is_end_sealed = False  # whether the record of the end has followed the last content

    def _transfer(self) -> int:
        if self._is_bulk:
            return self._transfer_bulk()
        try:
            content = read(self._source_fd, self._read_bytes)
        except BlockingIOError:
            return DRAINED
        except OSError:
            self._on_source_failed()
            return STOPPED
        got = len(content)
        if not got:
            self._on_source_ended()
            return STOPPED
        self._counter.total += got
        self._passed += got
        record = self._writer.seal_content(content)
        if self._source_state is ENDING and got < self._read_bytes:
            record += self._writer.seal_end()
            self._is_end_sealed = True
        try:
            sent = write(self._sink_fd, record)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._on_sink_failed()
            return STOPPED
        if sent != len(record):
            self._pending = record[sent:]
            self.state = CLOSING if self._is_end_sealed else FlowState.BLOCKED
            return STOPPED
        if self._is_end_sealed:
            self._pass_end()
            return STOPPED
        self._is_bulk = got == self._read_bytes
        return DRAINED if self._source_state is LIVE and not self._is_bulk else CRYPTED

    def _transfer_bulk(self) -> int:
        """Seal several records in place, in the shared buffer."""
        contents, scratch = self._contents, self.relay.forwarder.reactor.scratch
        try:
            got = self.source.recvmsg_into(contents)[0]
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
        writer = self._writer
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
        self._is_bulk = got == len(contents) * MAX_CONTENT_BYTES
        return CRYPTED_BULK if self._is_bulk or self._source_state is not LIVE else DRAINED

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

    def _announce_end(self) -> bool:
        """Announce the end over the link unless the last record has; return False if a FIN must show the end."""
        return self.relay.link.announces_ends if self._is_end_sealed else super()._announce_end()

    def show_end(self) -> None:
        """Send the record that announces the end and show the end on the socket, in one segment if the sink allows."""
        record = self._writer.seal_end()
        try:
            sent = self._sink.send(record, socket.MSG_MORE)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._on_sink_failed()
            return
        self.state = CLOSING
        self._pending = record[sent:]
        if self._pending:
            return
        if self.peer.state is ENDED:  # a close would drop the record if bytes lay unread: the kernel sends a reset then
            try:
                self._sink.shutdown(socket.SHUT_WR)
            except OSError:
                self._on_sink_failed()
                return
        self._pass_end()


class DecryptingFlow(Flow):
    """From an encrypted source into a plain sink. The counter counts content."""

    __slots__ = ("_reader", "_room")

    max_read_bytes = MAX_RECORD_BYTES

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
        if self._is_bulk:
            return self._transfer_bulk()
        reader = self._reader
        try:
            received = read(self._source_fd, self._read_bytes)
        except BlockingIOError:
            return DRAINED
        except OSError:
            self._on_source_failed()
            return STOPPED
        if not received:
            self._await_end()
            return STOPPED
        try:
            content = reader.open_received(received)
        except RecordError as error:
            self._on_record_error(error)
            return STOPPED
        if content and not self._deliver_content(content):
            return STOPPED
        if reader.has_ended:
            self._on_source_ended()
            return STOPPED
        self._is_bulk = len(received) == self._read_bytes
        return DRAINED if self._source_state is LIVE and not self._is_bulk else CRYPTED

    def _deliver_content(self, content: bytes) -> bool:
        """Send the content of small records; return whether the sink took all of it."""
        try:
            if self._reader.has_ended and self._source_state is not RESET:  # the FIN leaves in the same segment
                sent = self._sink.send(content, socket.MSG_MORE)
            else:
                sent = write(self._sink_fd, content)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._on_sink_failed()
            return False
        self._counter.total += sent
        self._passed += sent
        if sent == len(content):
            return True
        self._pending = content[sent:]
        self.state = FlowState.BLOCKED
        return False

    def _transfer_bulk(self) -> int:
        """Open several records in place, in the shared buffer."""
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
            self._on_record_error(error)
            return STOPPED
        if contents and not self._deliver(contents):
            return STOPPED
        if reader.has_ended:
            self._on_source_ended()
            return STOPPED
        self._is_bulk = got > MAX_RECORD_BYTES
        if got == len(room) or self._source_state is not LIVE:
            return CRYPTED_BULK if got > BULK_READ_BYTES // 2 else CRYPTED
        return DRAINED

    def _on_record_error(self, error: RecordError) -> None:
        self.relay.on_stream_error(error)
        self._on_source_failed()

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
        link = self.relay.link
        may_continue = link.has_announced_ends or (self.is_untouched and self.peer.is_untouched)
        if self._source_state is RESET or link.is_lost or not may_continue:
            self._on_source_failed()
            return
        self.state = UNANNOUNCED
        forwarder = self.relay.forwarder
        forwarder.reactor.call_later(forwarder.limits.end_timeout_s, self.on_link_lost)  # no announcement has come
