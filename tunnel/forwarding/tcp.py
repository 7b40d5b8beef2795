"""Bytes from one socket to the other, both ways, with half-close and reset carried over.

A relay owns two connected sockets: ``near``, the visitor's or the target's, and ``far``, the data connection. Each of
its two flows reads one and writes the other. A flow copies through the reactor's buffer; one that has carried bulk lets
the kernel splice instead. Flows of encrypted data connections are in ``tunnel.carriers.encrypted``.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import TYPE_CHECKING, Final, Protocol

from tunnel.runtime import sockets
from tunnel.runtime.reactor import BUFFER_SIZE, ERROR, HANGUP, READ_WRITE, READABLE, WRITABLE
from tunnel.runtime.splice import FLAGS, UNSUPPORTED_ERRNOS

if TYPE_CHECKING:
    from tunnel.runtime.reactor import Reactor
    from tunnel.runtime.splice import Pipe, PipePool

READS_PER_TURN: Final = 8  # buffers moved in one turn: a fat stream must not starve the others, and is worth a pipe
SPLICES_PER_TURN: Final = 16  # times in one turn that a pipe is filled
MIN_SPLICED_BYTES: Final = (
    1 << 14
)  # bytes in a turn below which splicing does not pay; a segment on loopback has nearly 1 << 16
RESET_FLUSH_TIMEOUT_S: Final = (
    5.0  # seconds in which what a program said before its reset may still get past a stalled reader
)
_RESET: Final = struct.pack("ii", 1, 0)


class ByteCounter:
    """Bytes that went one way, in all."""

    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total = 0


class RelayOwner(Protocol):
    """Who started a relay and wants to know of its end."""

    def on_relay_closed(self, relay: Relay) -> None:
        """Both sockets are closed, or will be at the end of the batch."""

    def on_relay_error(self, relay: Relay, error: Exception) -> None:
        """Besides, a defect was the cause."""


class RelayLink(Protocol):
    """The link, as its relays see it."""

    relays: dict[int, Relay]
    """those launched on it that still run"""

    @property
    def is_client(self) -> bool:
        """Whether this is the client's end."""

    def send_stream_ended(self, ident: int, total: int) -> bool:
        """Tell the other end that a data connection will bring no more than so many bytes; whether that was done.

        Whoever ends a TCP connection first keeps its port for a minute (TIME_WAIT, RFC 9293 §3.6.1). A client that did
        so with 28,000 ephemeral ports would be stuck at some 470 visitors a second. So a client tells the end, and
        the server, whose port is one anyway, is the first to close.
        """


class Flow:
    """One direction of a relay. It is ``blocked`` while the sink takes no more, ``ended`` when all is passed on."""

    __slots__ = (
        "_bulk",
        "_end_offset",
        "_meter",
        "_passed",
        "_peer_closed",
        "_pending",
        "_pipe",
        "_reset_on_eof",
        "_scratch",
        "_sink",
        "_source",
        "blocked",
        "ended",
        "peer",
        "relay",
    )

    peer: Flow

    def __init__(self, relay: Relay, source: socket.SocketType, sink: socket.SocketType, meter: ByteCounter) -> None:
        self.relay = relay
        self.blocked = False
        self.ended = False
        self._source = source
        self._sink = sink
        self._scratch = relay.reactor.scratch
        self._meter = meter
        self._pending: bytes | memoryview = b""
        self._peer_closed = False  # the source has finished: read on until its end shows
        self._reset_on_eof = False  # the source was seen reset through a failed write: its end is a reset
        self._bulk = False
        self._pipe: Pipe | None = None
        self._passed = 0
        self._end_offset = -1  # bytes after which the source has ended, where the other end of the link has said so

    def set_end_offset(self, total: int) -> None:
        """The source ends after ``total`` bytes, though its socket will not show it."""
        self._end_offset = total
        if self._passed == total and not self.ended:
            self._source_ended()

    def ready(self, events: int) -> None:
        """Handler of the source: it has bytes to read, or room for those that go the other way."""
        if events == READ_WRITE:  # nearly always
            if self.peer.blocked:
                self.peer.resume()
            self.pump(events)
            return
        if events & ERROR and self.ended:
            self.relay.finish()  # it said its end and was reset since: nobody takes what would still come
            return
        if events & WRITABLE and self.peer.blocked:
            self.peer.resume()
        relay = self.relay
        if events & READABLE and relay.open:
            self.pump(events)
        if events & ERROR and relay.open:
            relay.reactor.call_later(RESET_FLUSH_TIMEOUT_S, self._give_up)

    def _give_up(self) -> None:
        """The source was reset, and the sink has not taken the last it said: that shall not keep a place."""
        self.relay.finish(reset=self._sink)

    def pump(self, events: int) -> None:
        """Move what the source has, as far as the sink takes it. A handler of the reactor's kind."""
        if events & HANGUP:
            self._peer_closed = True
        if self.blocked or self.ended:
            return
        if self._bulk:
            self._splice()
            return
        view = self._scratch
        reads = 0
        while True:
            try:
                got = self._source.recv_into(view)
            except BlockingIOError:
                break
            except OSError:
                self._source_broke()
                return
            if not got:
                self._source_ended()
                return
            try:
                sent = self._sink.send(view[:got])
            except BlockingIOError:
                sent = 0
            except OSError:
                self._sink_broke()
                return
            self._meter.total += sent
            self._passed += sent
            if sent != got:
                self._pending = bytes(view[sent:got])
                self.blocked = True
                return
            if got < BUFFER_SIZE and not self._peer_closed:
                break  # a short read emptied the socket: whatever comes next is a new event
            reads += 1
            if reads == READS_PER_TURN:
                self._bulk = got == BUFFER_SIZE and self.relay.pipes.can_splice
                self.relay.reactor.call_again(self.pump)
                return
        if self._passed == self._end_offset:
            self._source_ended()

    def resume(self) -> None:
        """The sink takes bytes again."""
        if self._pending and not self._flush():
            return
        self.blocked = False
        if self._pipe is not None:
            self._splice()
        else:
            self.pump(0)

    def _flush(self) -> bool:
        """Write the tail; whether nothing of it is left."""
        try:
            sent = self._sink.send(self._pending)
        except BlockingIOError:
            return False
        except OSError:
            self._pending = b""
            self._sink_broke()
            return False
        self._meter.total += sent
        self._passed += sent
        self._pending = memoryview(self._pending)[sent:] if sent < len(self._pending) else b""
        return not self._pending

    def _splice(self) -> None:
        pipe = self._pipe or self.relay.pipes.acquire()
        if pipe is None:
            self._bulk = False
            self.relay.reactor.call_again(self.pump)
            return
        self._pipe = pipe
        moved = 0
        for _ in range(SPLICES_PER_TURN):
            if not pipe.buffered:
                try:
                    pipe.buffered = os.splice(self._source.fileno(), pipe.write_fd, pipe.size, flags=FLAGS)
                except BlockingIOError:  # the pipe is empty, so it is the source that has nothing
                    self._bulk = moved >= MIN_SPLICED_BYTES
                    self._return_pipe()
                    if self._passed == self._end_offset:
                        self._source_ended()
                    return
                except OSError as error:
                    if error.errno in UNSUPPORTED_ERRNOS:
                        self._cannot_splice()
                    else:
                        self._source_broke()
                    return
                if not pipe.buffered:
                    self._return_pipe()
                    self._source_ended()
                    return
            try:
                sent = os.splice(pipe.read_fd, self._sink.fileno(), pipe.buffered, flags=FLAGS)
            except BlockingIOError:
                self.blocked = True
                return
            except OSError:
                self._sink_broke()
                return
            pipe.buffered -= sent
            moved += sent
            self._meter.total += sent
            self._passed += sent
        self.relay.reactor.call_again(self._go_on)

    def _go_on(self, _events: int) -> None:
        if not self.ended and not self.blocked:
            self._splice()

    def _cannot_splice(self) -> None:
        """The kernel will not splice here: from now on everybody copies."""
        self.relay.pipes.disable_splicing()
        self._bulk = False
        self._return_pipe()
        self.relay.reactor.call_again(self.pump)

    def _return_pipe(self) -> None:
        if self._pipe is not None:
            self.relay.pipes.release(self._pipe)
            self._pipe = None

    def _source_ended(self) -> None:
        if self._reset_on_eof:
            self._source_broke()
            return
        self._pass_end()

    def _pass_end(self) -> None:
        """All is delivered: the sink's peer shall see the end, if it does not see the end of everything."""
        self.ended = True
        if self.peer.ended:
            self.relay.finish()
        elif not self._tell_end():
            self.close_sink()

    def _tell_end(self) -> bool:
        return self.relay.told_end(self, self._passed)

    def close_sink(self) -> None:
        """Show the end on the sink itself."""
        try:
            self._sink.shutdown(socket.SHUT_WR)
        except OSError:
            self._sink_broke()

    def _source_broke(self) -> None:
        """The source was reset before its end: the sink's peer shall see the same."""
        self.relay.finish(reset=self._sink)

    def _sink_broke(self) -> None:
        """The sink takes no more, ever. What its peer said before is still delivered, then the source is reset."""
        peer = self.peer
        if peer.ended:
            self.relay.finish()
            return
        self.ended = True
        peer._reset_on_eof = True  # noqa: SLF001  two halves of one thing
        peer.pump(HANGUP)

    def on_handler_error(self, error: Exception) -> None:
        """A defect in a handler of this flow."""
        self.relay.on_handler_error(error)

    def release(self) -> None:
        """Let go of everything: the relay is over."""
        self.ended = True
        self.peer = _CLOSED_FLOW
        self._pending = b""
        self._return_pipe()


_CLOSED_FLOW: Final = Flow.__new__(Flow)
"""The peer of a flow that is over: itself would be a cycle, and all that it holds would wait for the collector."""
_CLOSED_FLOW.ended = _CLOSED_FLOW.blocked = True


class Relay:
    """Two sockets joined. Owns both from its making to its end."""

    __slots__ = (
        "_far",
        "_from_near",
        "_near",
        "_owner",
        "_to_near",
        "_told",
        "ident",
        "keepalive_enabled",
        "link",
        "open",
        "pipes",
        "reactor",
    )

    _from_near: Flow
    _to_near: Flow

    def __init__(
        self,
        ident: int,
        link: RelayLink,
        reactor: Reactor,
        pipes: PipePool,
        near: socket.SocketType,
        far: socket.SocketType,
        owner: RelayOwner,
    ) -> None:
        self.ident = ident
        """the id of its data connection"""
        link.relays[ident] = self
        self.link = link
        """the link that it was launched on; it may be lost by now"""
        self.open = True
        self.keepalive_enabled = False
        """whether ``keep_alive`` was called"""
        self.pipes = pipes
        self.reactor = reactor
        self._near = near
        self._far = far
        self._owner = owner
        self._told = False  # the end of what comes from ``near`` was told over the link, not shown on ``far``

    def start(self, from_near: Flow, to_near: Flow, near_events: int | None, far_events: int) -> None:
        """Begin. The events are those that the sockets had so far; None: ``near`` is not watched yet."""
        from_near.peer, to_near.peer = to_near, from_near
        self._from_near, self._to_near = from_near, to_near
        self.reactor.set_handler(self._far, to_near.ready)
        if near_events is None:
            self.reactor.register(self._near, from_near.ready)
        else:
            self.reactor.set_handler(self._near, from_near.ready)
            if near_events & READABLE:
                from_near.ready(near_events)
        if far_events & READABLE and self.open:
            to_near.ready(far_events)

    def told_end(self, flow: Flow, total: int) -> bool:
        """Whether the end of this flow was told over the link, and need not be shown on the socket."""
        if flow is self._from_near and self.link.send_stream_ended(self.ident, total):
            self._told = True
            return True
        return False

    def set_end_offset(self, total: int) -> None:
        """The other end of the link says that the data connection brings so many bytes in all."""
        if self.open:
            self._to_near.set_end_offset(total)

    def on_link_lost(self) -> None:
        """What was told may have been lost with the link: show it after all."""
        if self._told and self.open:
            self._told = False
            self._from_near.close_sink()

    def enable_keepalive(self) -> None:
        """It has lived for a while: watch over both connections."""
        self.keepalive_enabled = True
        for sock in (self._near, self._far):
            sockets.enable_keepalive(sock)

    def finish(self, reset: socket.SocketType | None = None) -> None:
        """Close both sockets, ``reset`` with a reset instead of an orderly end."""
        if not self.open:
            return
        self.open = False
        for flow in (self._from_near, self._to_near):
            flow.release()
        del self._from_near, self._to_near  # they hold this relay: without the cycle all goes at once, not in the GC
        if reset is not None:
            with contextlib.suppress(OSError):
                reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.link.relays.pop(self.ident, None)
        self.reactor.close(self._near)
        self.reactor.close(self._far)
        self._owner.on_relay_closed(self)

    def on_handler_error(self, error: Exception) -> None:
        """A defect in a handler: this relay ends, its neighbours do not notice."""
        if self.open:
            self.finish()
            self._owner.on_relay_error(self, error)
