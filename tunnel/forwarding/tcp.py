"""Bytes from one socket to the other, both ways, with half-close and reset carried over.

A relay owns two connected sockets: ``near``, the visitor's or the target's, and ``far``, the data connection. Each of
its two flows reads one and writes the other. A flow copies through the reactor's buffer; one that has carried bulk lets
the kernel splice instead. Flows of encrypted data connections are in ``sealed``.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import TYPE_CHECKING, Final, Protocol

from tunnel.runtime import sockets
from tunnel.runtime.reactor import BROKEN, BUFFER_SIZE, CALM, ENDING, READ, WRITE
from tunnel.runtime.splice import FLAGS, UNABLE

if TYPE_CHECKING:
    from tunnel.runtime.reactor import Reactor
    from tunnel.runtime.splice import Pipe, Pipes

_READS: Final = 8  # buffers moved in one turn: a fat stream must not starve the others, and is worth a pipe
_SPLICES: Final = 16  # times in one turn that a pipe is filled
_THIN: Final = 1 << 14  # bytes in a turn below which splicing does not pay; a segment on loopback has nearly 1 << 16
_LAST_WORDS: Final = 5.0  # seconds in which what a program said before its reset may still get past a stalled reader
_RESET: Final = struct.pack("ii", 1, 0)


class Meter:
    """Bytes that went one way, in all."""

    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total = 0


class RelayOwner(Protocol):
    """Who started a relay and wants to know of its end."""

    def relay_done(self, relay: Relay) -> None:
        """Both sockets are closed, or will be at the end of the batch."""

    def relay_crashed(self, relay: Relay, error: Exception) -> None:
        """Besides, a defect was the cause."""


class EndTeller(Protocol):
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
        "_bulk", "_doomed", "_expected", "_hung", "_meter", "_passed", "_pipe", "_sink", "_source", "_tail", "_view",
        "blocked", "ended", "relay", "twin",
    )  # fmt: skip

    twin: Flow

    def __init__(self, relay: Relay, source: socket.SocketType, sink: socket.SocketType, meter: Meter) -> None:
        self.relay = relay
        self.blocked = False
        self.ended = False
        self._source = source
        self._sink = sink
        self._view = relay.reactor.view
        self._meter = meter
        self._tail: bytes | memoryview = b""
        self._hung = False  # the source has finished: read on until its end shows
        self._doomed = False  # the source was seen reset through a failed write: its end is a reset
        self._bulk = False
        self._pipe: Pipe | None = None
        self._passed = 0
        self._expected = -1  # bytes after which the source has ended, where the other end of the link has said so

    def expect(self, total: int) -> None:
        """The source ends after ``total`` bytes, though its socket will not show it."""
        self._expected = total
        if self._passed == total and not self.ended:
            self._source_ended()

    def ready(self, events: int) -> None:
        """Handler of the source: it has bytes to read, or room for those that go the other way."""
        if events == CALM:  # nearly always
            if self.twin.blocked:
                self.twin.resume()
            self.pump(events)
            return
        if events & BROKEN and self.ended:
            self.relay.finish()  # it said its end and was reset since: nobody takes what would still come
            return
        if events & WRITE and self.twin.blocked:
            self.twin.resume()
        relay = self.relay
        if events & READ and relay.open:
            self.pump(events)
        if events & BROKEN and relay.open:
            relay.reactor.later(_LAST_WORDS, self._give_up)

    def _give_up(self) -> None:
        """The source was reset, and the sink has not taken the last it said: that shall not keep a place."""
        self.relay.finish(reset=self._sink)

    def pump(self, events: int) -> None:
        """Move what the source has, as far as the sink takes it. A handler of the reactor's kind."""
        if events & ENDING:
            self._hung = True
        if self.blocked or self.ended:
            return
        if self._bulk:
            self._splice()
            return
        view = self._view
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
                self._tail = bytes(view[sent:got])
                self.blocked = True
                return
            if got < BUFFER_SIZE and not self._hung:
                break  # a short read emptied the socket: whatever comes next is a new event
            reads += 1
            if reads == _READS:
                self._bulk = got == BUFFER_SIZE and self.relay.pipes.usable
                self.relay.reactor.again(self.pump)
                return
        if self._passed == self._expected:
            self._source_ended()

    def resume(self) -> None:
        """The sink takes bytes again."""
        if self._tail and not self._flush():
            return
        self.blocked = False
        if self._pipe is not None:
            self._splice()
        else:
            self.pump(0)

    def _flush(self) -> bool:
        """Write the tail; whether nothing of it is left."""
        try:
            sent = self._sink.send(self._tail)
        except BlockingIOError:
            return False
        except OSError:
            self._tail = b""
            self._sink_broke()
            return False
        self._meter.total += sent
        self._passed += sent
        self._tail = memoryview(self._tail)[sent:] if sent < len(self._tail) else b""
        return not self._tail

    def _splice(self) -> None:
        pipe = self._pipe or self.relay.pipes.take()
        if pipe is None:
            self._bulk = False
            self.relay.reactor.again(self.pump)
            return
        self._pipe = pipe
        moved = 0
        for _ in range(_SPLICES):
            if not pipe.held:
                try:
                    pipe.held = os.splice(self._source.fileno(), pipe.inlet, pipe.size, flags=FLAGS)
                except BlockingIOError:  # the pipe is empty, so it is the source that has nothing
                    self._bulk = moved >= _THIN
                    self._return_pipe()
                    if self._passed == self._expected:
                        self._source_ended()
                    return
                except OSError as error:
                    if error.errno in UNABLE:
                        self._cannot_splice()
                    else:
                        self._source_broke()
                    return
                if not pipe.held:
                    self._return_pipe()
                    self._source_ended()
                    return
            try:
                sent = os.splice(pipe.outlet, self._sink.fileno(), pipe.held, flags=FLAGS)
            except BlockingIOError:
                self.blocked = True
                return
            except OSError:
                self._sink_broke()
                return
            pipe.held -= sent
            moved += sent
            self._meter.total += sent
            self._passed += sent
        self.relay.reactor.again(self._go_on)

    def _go_on(self, _events: int) -> None:
        if not self.ended and not self.blocked:
            self._splice()

    def _cannot_splice(self) -> None:
        """The kernel will not splice here: from now on everybody copies."""
        self.relay.pipes.usable = False
        self._bulk = False
        self._return_pipe()
        self.relay.reactor.again(self.pump)

    def _return_pipe(self) -> None:
        if self._pipe is not None:
            self.relay.pipes.give_back(self._pipe)
            self._pipe = None

    def _source_ended(self) -> None:
        if self._doomed:
            self._source_broke()
            return
        self._pass_end()

    def _pass_end(self) -> None:
        """All is delivered: the sink's peer shall see the end, if it does not see the end of everything."""
        self.ended = True
        if self.twin.ended:
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
        twin = self.twin
        if twin.ended:
            self.relay.finish()
            return
        self.ended = True
        twin._doomed = True  # noqa: SLF001  two halves of one thing
        twin.pump(ENDING)

    def crashed(self, error: Exception) -> None:
        """A defect in a handler of this flow."""
        self.relay.crashed(error)

    def release(self) -> None:
        """Let go of everything: the relay is over."""
        self.ended = True
        self.twin = _NOBODY
        self._tail = b""
        self._return_pipe()


_NOBODY: Final = Flow.__new__(Flow)
"""The twin of a flow that is over: itself would be a cycle, and all that it holds would wait for the collector."""
_NOBODY.ended = _NOBODY.blocked = True


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
        "kept",
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
        link: EndTeller,
        reactor: Reactor,
        pipes: Pipes,
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
        self.kept = False
        """whether ``keep_alive`` was called"""
        self.pipes = pipes
        self.reactor = reactor
        self._near = near
        self._far = far
        self._owner = owner
        self._told = False  # the end of what comes from ``near`` was told over the link, not shown on ``far``

    def start(self, from_near: Flow, to_near: Flow, near_events: int | None, far_events: int) -> None:
        """Begin. The events are those that the sockets had so far; None: ``near`` is not watched yet."""
        from_near.twin, to_near.twin = to_near, from_near
        self._from_near, self._to_near = from_near, to_near
        self.reactor.hand_over(self._far, to_near.ready)
        if near_events is None:
            self.reactor.register(self._near, from_near.ready)
        else:
            self.reactor.hand_over(self._near, from_near.ready)
            if near_events & READ:
                from_near.ready(near_events)
        if far_events & READ and self.open:
            to_near.ready(far_events)

    def told_end(self, flow: Flow, total: int) -> bool:
        """Whether the end of this flow was told over the link, and need not be shown on the socket."""
        if flow is self._from_near and self.link.send_stream_ended(self.ident, total):
            self._told = True
            return True
        return False

    def expect_end(self, total: int) -> None:
        """The other end of the link says that the data connection brings so many bytes in all."""
        if self.open:
            self._to_near.expect(total)

    def link_lost(self) -> None:
        """What was told may have been lost with the link: show it after all."""
        if self._told and self.open:
            self._told = False
            self._from_near.close_sink()

    def keep_alive(self) -> None:
        """It has lived for a while: watch over both connections."""
        self.kept = True
        for sock in (self._near, self._far):
            sockets.keep_alive(sock)

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
        self._owner.relay_done(self)

    def crashed(self, error: Exception) -> None:
        """A defect in a handler: this relay ends, its neighbours do not notice."""
        if self.open:
            self.finish()
            self._owner.relay_crashed(self, error)
