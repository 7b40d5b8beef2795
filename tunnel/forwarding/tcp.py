"""TCP from one socket to the other, both ways, with half-close and reset carried over.

A relay owns two connected sockets: ``near``, the visitor's or the target's, and ``far``, the data connection. Each of
its two flows reads one and writes the other. A plain flow copies; one that has carried bulk lets the kernel
splice instead. The flows of encrypted data connections are in ``tunnel.carriers.encrypted_flows``.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from os import read, write
from time import monotonic
from typing import TYPE_CHECKING, ClassVar, Final

from tunnel.forwarding.flow import COPIED, DRAINED, ENDED, LIVE, SPLICED, STOPPED, Flow, FlowState
from tunnel.model.spec import Proto
from tunnel.model.visitor_end import VisitorEnd
from tunnel.model.visitors import visitor_id
from tunnel.protocol.visitor_address import unpack_address
from tunnel.runtime import sockets
from tunnel.runtime.reactor import READABLE
from tunnel.runtime.splice import FLAGS, PIPE_SIZE

if TYPE_CHECKING:
    from tunnel.forwarding.base import ForwardingOwner, RelayLink, UsedConnection
    from tunnel.forwarding.logged import EndNotes
    from tunnel.forwarding.tcp_forwarder import TcpForwarder
    from tunnel.runtime.splice import Pipe


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """How relays share the CPU, and how long they wait."""

    turn_budget: int = 16
    """costs of the transfers in one turn of a flow: a bulk stream must not starve the others, and is worth a pipe"""
    min_spliced_bytes: int = 1 << 14
    """burst below which splicing costs more than it saves; a segment on loopback has nearly 64 KiB"""
    reset_flush_timeout_s: float = 5.0
    """how long bytes that were sent before a reset may wait for a stalled reader"""
    end_timeout_s: float = 5.0
    """how long the announcement of the end of a stream may follow the end of its socket, where the link brings it"""


DEFAULT_LIMITS: Final = RelayLimits()


class _Bulk:
    """What a flow needs while it splices. An object of its own, because most flows never do."""

    __slots__ = ("burst_start", "pipe", "splice_bytes")

    def __init__(self, splice_bytes: int) -> None:
        self.splice_bytes = splice_bytes
        """the most that is read at once"""
        self.pipe: Pipe | None = None
        """pipe with bytes in it, or through which they move"""
        self.burst_start = 0
        """bytes passed before the present pipe was acquired"""


class PlainFlow(Flow):
    """Between two plain sockets: copies, and splices bulk."""

    __slots__ = ("_bulk",)

    max_read_bytes = 1 << 15
    """Bytes. For each larger read the allocator would ask the kernel for memory, and give it back."""

    _bulk: _Bulk
    """set only while ``_is_bulk``"""

    def _transfer(self) -> int:
        if self._is_bulk:
            return self._splice()
        read_bytes = self._read_bytes
        try:
            data = read(self._source_fd, read_bytes)
        except BlockingIOError:
            return DRAINED
        except OSError:
            self._on_source_failed()
            return STOPPED
        got = len(data)
        if not got:
            self._on_source_ended()
            return STOPPED
        try:
            sent = write(self._sink_fd, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._on_sink_failed()
            return STOPPED
        self._counter.total += sent
        self._passed += sent
        if sent != got:
            self._pending = data[sent:]
            self.state = FlowState.BLOCKED
            return STOPPED
        if got == read_bytes:
            return COPIED
        return DRAINED if self._source_state is LIVE else self._end_or_read_on()

    def _yield_turn(self) -> None:
        super()._yield_turn()
        if not self._is_bulk and self.relay.forwarder.pipes.can_splice:
            self._start_bulk(PIPE_SIZE)

    def _start_bulk(self, splice_bytes: int) -> None:
        self._is_bulk = True
        self._bulk = _Bulk(splice_bytes)

    def _splice(self) -> int:
        """Fill a pipe from the source and empty it into the sink."""
        bulk = self._bulk
        pipe = bulk.pipe or self._acquire_pipe()
        if pipe is None:
            self._end_bulk()
            return COPIED
        if not pipe.buffered:
            try:
                pipe.buffered = os.splice(self.source.fileno(), pipe.write_fd, bulk.splice_bytes, flags=FLAGS)
            except BlockingIOError:  # the pipe is empty, so it is the source that has nothing
                if self._source_state is not LIVE:  # or it is at the mark of urgent data, which only a read passes
                    self._end_bulk()
                    return COPIED
                if self._passed - bulk.burst_start < self.relay.forwarder.limits.min_spliced_bytes:
                    self._end_bulk()
                else:
                    self._release_pipe()
                return DRAINED
            except OSError as error:
                return self._on_splice_failed(error)
            if not pipe.buffered:  # the end, or the mark of urgent data with the end behind it: a read shows which
                self._end_bulk()
                return COPIED
        try:
            sent = os.splice(pipe.read_fd, self._sink.fileno(), pipe.buffered, flags=FLAGS)
        except BlockingIOError:
            self.state = FlowState.BLOCKED
            return STOPPED
        except OSError as error:
            return self._on_sink_splice_failed(pipe, error)
        pipe.buffered -= sent
        self._counter.total += sent
        self._passed += sent
        return SPLICED

    def _on_splice_failed(self, error: OSError) -> int:
        """Copy from now on if the error is about splicing; else the source has failed."""
        if not self.relay.forwarder.pipes.is_splice_error(error):
            self._on_source_failed()
            return STOPPED
        self._end_bulk()
        return COPIED

    def _on_sink_splice_failed(self, pipe: Pipe, error: OSError) -> int:
        """Copy what is in the pipe, and all that follows, if the error is about splicing; else the sink has failed."""
        if not self.relay.forwarder.pipes.is_splice_error(error):
            self._on_sink_failed()
            return STOPPED
        self._pending = pipe.read_buffered()
        self.state = FlowState.BLOCKED
        self._end_bulk()
        self.resume()
        return STOPPED

    def _acquire_pipe(self) -> Pipe | None:
        bulk = self._bulk
        bulk.pipe = self.relay.forwarder.pipes.acquire()
        bulk.burst_start = self._passed
        return bulk.pipe

    def _release_pipe(self) -> None:
        pipe, self._bulk.pipe = self._bulk.pipe, None
        if pipe is not None:
            self.relay.forwarder.pipes.release(pipe)

    def _end_bulk(self) -> None:
        super()._end_bulk()
        self._release_pipe()
        del self._bulk


CLOSED_FLOW: Final = PlainFlow.__new__(PlainFlow)
"""The peer of a flow whose relay is closed."""
CLOSED_FLOW.state = ENDED


class Relay:
    """Two joined sockets. Owns both from its start to its end."""

    __slots__ = (
        "_end_is_announced",
        "_from_near",
        "_near",
        "_owner",
        "_to_near",
        "forwarder",
        "ident",
        "is_freed",
        "is_open",
        "keepalive_enabled",
        "link",
        "notes",
        "started_at",
        "use",
        "visitor_address",
    )

    proto: ClassVar = Proto.TCP
    notes: EndNotes
    """set only in relays whose end is logged (``tunnel.forwarding.logged``)"""

    def __init__(
        self,
        forwarder: TcpForwarder,
        data: UsedConnection,
        link: RelayLink,
        near: socket.SocketType,
        owner: ForwardingOwner,
    ) -> None:
        self.ident = data.ident
        self.visitor_address = data.visitor_address
        self.use = data.use
        self.link = link
        self.is_open = True
        self.is_freed = False
        self.keepalive_enabled = False
        self.started_at = monotonic()
        self.forwarder = forwarder
        self._near = near
        self._owner = owner
        self._end_is_announced = False  # the end of what comes from ``near`` was sent over the link, not on ``far``
        first, second = data.create_flows(self, near, forwarder.from_near, forwarder.to_near)
        first.peer, second.peer = second, first
        self._from_near, self._to_near = first, second

    @property
    def id(self) -> str:
        """The visitor's id, the same at both ends."""
        return visitor_id(self.link.ident, self.ident, self.use)

    @property
    def _far(self) -> socket.SocketType:
        """The data connection; of an open relay only."""
        return self._to_near.source

    def start(self, near_events: int | None, far_events: int) -> None:
        """Start to relay. The events are those of the two sockets so far; None: ``near`` is not registered yet."""
        to_near = self._to_near
        self.forwarder.reactor.set_handler(to_near.source, to_near.pump)
        self._start_near(near_events)
        if far_events & READABLE and self.is_open:
            to_near.pump(far_events)

    def _start_near(self, near_events: int | None) -> None:
        from_near, reactor = self._from_near, self.forwarder.reactor
        if near_events is None:
            reactor.register(self._near, from_near.pump)
        else:
            reactor.set_handler(self._near, from_near.pump)
            if near_events & READABLE:
                from_near.pump(near_events)

    def announce_end(self, flow: Flow, total: int) -> bool:
        """Announce the end of a flow over the link, if that is how it is shown; return whether that was done."""
        if flow is self._from_near and self.link.send_stream_ended(self.ident, total):
            self._end_is_announced = True
            return True
        return False

    def set_end_offset(self, total: int) -> None:
        """Note that the data connection carries ``total`` bytes in all, as the other end of the link has announced."""
        if self.is_open:
            self._to_near.set_end_offset(total)

    def note_freed(self) -> None:
        """Note that the egress may use the data connection again."""
        self.is_freed = True

    def on_link_lost(self) -> None:
        """Show an announced end on the socket after all: the announcement may have been lost with the link.

        What the other end would have announced over the link does not come any more.
        """
        if self.is_open:
            self._to_near.on_link_lost()
        if not (self._end_is_announced and self.is_open):
            return
        if self._to_near.leaves_bytes_unread:  # the other end may have closed: bytes would reset what it still sends
            self.forwarder.reactor.call_later(self.forwarder.limits.end_timeout_s, self._show_announced_end)
        else:
            self._show_announced_end()

    def _show_announced_end(self) -> None:
        """Show an end on the socket whose announcement may be lost, unless the relay has ended since."""
        if self.is_open:
            self._end_is_announced = False
            self._from_near.show_end()

    def enable_keepalive(self) -> None:
        """Enable keepalive on both connections, once the relay has lived for a while."""
        self.keepalive_enabled = True
        for sock in (self._near, self._far):
            sockets.enable_keepalive(sock)

    def describe_visitor(self) -> str:
        """Return the visitor's address as text: from LAUNCH, or from the socket at an ingress."""
        address = unpack_address(self.visitor_address)
        return sockets.format_peer(self._near) if address is None else sockets.format_address(address)

    def describe_near(self) -> str | None:
        """Return the address of the peer on the near side as text; None if the kernel no longer knows the address."""
        try:
            return sockets.format_address(self._near.getpeername())
        except OSError:
            return None

    @property
    def flows(self) -> tuple[Flow, Flow]:
        """The flows from near and to near; of an open relay only."""
        return self._from_near, self._to_near

    def passed(self) -> tuple[int, int]:
        """Return the bytes that came from the near side, and those that went to it; of an open relay only."""
        return self._from_near.passed, self._to_near.passed

    @property
    def activity(self) -> int:
        """Bytes that went either way; of an open relay only."""
        return self._from_near.passed + self._to_near.passed

    def unanswered_s(self) -> float | None:
        """Return the seconds since the last sign of a peer that leaves data unacknowledged; None if both answer."""
        waits = [wait for sock in (self._near, self._far) if (wait := sockets.unanswered_s(sock)) is not None]
        return max(waits, default=None)

    @property
    def is_data_unanswered(self) -> bool:
        """Whether it is the other end of the tunnel that leaves data unacknowledged, on the data connection."""
        return sockets.unanswered_s(self._far) is not None

    def abort(self, cause: VisitorEnd | None = None) -> None:
        """Close both sockets so that both peers see a reset."""
        if self.is_open:
            sockets.reset_on_close(self._near)
            sockets.reset_on_close(self._far)
            self.close(cause)

    def release_near(self) -> socket.SocketType | None:
        """End without a trace if nothing was forwarded either way; return the near side, which the caller owns then."""
        if not (self.is_open and self._from_near.is_untouched and self._to_near.is_untouched):
            return None
        reactor, far = self.forwarder.reactor, self._far
        Relay._release_flows(self)  # of this class alone: the visitor has not left, so no log has it
        reactor.unregister(self._near)
        reactor.close(far)
        return self._near

    def fail(self, reason: str) -> None:
        """Close both sockets, because the target was not reached; ``reason`` is a sentence."""
        self.close(VisitorEnd.FAILED)

    def reset(self, sock: socket.SocketType | None) -> None:
        """Close both sides so that the peer of ``sock`` sees a reset instead of an orderly end; None: of a lane."""
        if self.is_open:
            if sock is not None:
                sockets.reset_on_close(sock)
            self.close()

    def close(self, cause: VisitorEnd | None = None, last: Flow | None = None) -> None:
        """Close both sockets. Calling it twice is allowed.

        ``cause`` and ``last``, the flow that has ended last if both have ended in order, concern the access log.
        """
        if not self.is_open:
            return
        reactor, far = self.forwarder.reactor, self._to_near.source
        self._release_flows()
        reactor.close(self._near)
        reactor.close(far)
        self._owner.on_relay_closed(self)

    def finish(self, last: Flow) -> None:
        """End after both streams are complete: close both sockets, or give the data connection back to its link."""
        if not (self.is_open and self.link.reuses and self._to_near.is_source_live):
            self.close(None, last)
            return
        far = self._far
        self._release_flows()
        self.forwarder.reactor.close(self._near)
        self._owner.on_relay_finished(self, far)

    def _release_flows(self) -> None:
        self.is_open = False
        self._from_near.release(CLOSED_FLOW)
        self._to_near.release(CLOSED_FLOW)
        del self._from_near, self._to_near  # they refer to this relay: a cycle would wait for the garbage collector

    def on_stream_error(self, error: Exception) -> None:
        """Report that what arrived on the data connection was changed on the way."""
        self._owner.on_stream_error(self, error)

    def on_handler_error(self, error: Exception) -> None:
        """End this relay alone after a defect in a handler; other relays are not affected."""
        if self.is_open:
            self.close(VisitorEnd.DEFECT)
            self._owner.on_relay_error(self, error)
