"""One direction of a relay: a state, and the loop that all kinds of flows share.

A flow reads one socket, its source, and writes another, its sink. What differs between plain copying, splicing,
encrypting and decrypting is a single step, ``_transfer``: read once, write once. The loop around it, fairness, back
pressure, half-close and reset are the same for all.
"""

from __future__ import annotations

import enum
import socket
from abc import ABC, abstractmethod
from types import FunctionType
from typing import TYPE_CHECKING, ClassVar, Final

from tunnel.runtime.reactor import ERROR, HANGUP, READ_WRITE, READABLE, URGENT, WRITABLE

if TYPE_CHECKING:
    from tunnel.forwarding.rate_limiter import FlowLimit
    from tunnel.forwarding.tcp import Relay


class FlowState(enum.Enum):
    """What a flow may do. It reads only while it is OPEN, and never leaves ENDED."""

    OPEN = enum.auto()
    BLOCKED = enum.auto()
    """the sink takes no more; bytes that were read wait in this flow"""
    PAUSED = enum.auto()
    """a limit of the rate permits no more now; what the source has waits there"""
    CLOSING = enum.auto()
    """the source has ended; the last bytes that announce its end wait for the sink"""
    UNANNOUNCED = enum.auto()
    """the source's socket has ended, and the announcement that the stream is complete may still come over the link"""
    ENDED = enum.auto()
    """everything was passed on, or can never be"""


class SourceState(enum.Enum):
    """What is known about the source beyond the bytes read so far."""

    LIVE = enum.auto()
    """a short read has emptied it: whatever comes next is a new event"""
    URGENT = enum.auto()
    """it has sent urgent data, at whose mark a read stops: only a read that finds nothing has emptied it"""
    ENDING = enum.auto()
    """its peer has ended the stream in order, and all of it has arrived: after a short read nothing is left"""
    FINISHED = enum.auto()
    """its peer sends no more and no event will follow: read on until the end, or an error, shows"""
    RESET = enum.auto()
    """it was reset, as a failed write showed: read what its peer sent before, and treat the end as a reset"""


# Looked up once: an attribute of an enum class costs more than a global name, and these are compared for every read.
OPEN: Final = FlowState.OPEN
CLOSING: Final = FlowState.CLOSING
UNANNOUNCED: Final = FlowState.UNANNOUNCED
ENDED: Final = FlowState.ENDED
LIVE: Final = SourceState.LIVE
ENDING: Final = SourceState.ENDING
FINISHED: Final = SourceState.FINISHED
RESET: Final = SourceState.RESET

# What one transfer has come to. A positive number: the source may have more, and the transfer took this share of the
# turn's budget (``RelayLimits.turn_budget``). What costs more CPU gives way to other connections earlier.
SPLICED: Final = 1
COPIED: Final = 2
CRYPTED: Final = 4
CRYPTED_BULK: Final = 8
DRAINED: Final = 0
"""The source has nothing more now."""
STOPPED: Final = -1
"""The flow has left the state OPEN."""


class ByteCounter:
    """Total of the bytes that went one way."""

    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total = 0


class Flow(ABC):
    """One direction of a relay, which owns both sockets."""

    __slots__ = (
        "_counter",
        "_end_offset",
        "_is_bulk",
        "_passed",
        "_pending",
        "_read_bytes",
        "_sink",
        "_sink_fd",
        "_source_fd",
        "_source_state",
        "limit",
        "peer",
        "relay",
        "source",
        "state",
    )

    max_read_bytes: ClassVar[int]
    """the most that is read at once, unless this flow carries bulk"""

    limit: FlowLimit
    """set only in flows whose rate is limited (``tunnel.forwarding.limited_flow``)"""
    peer: Flow
    """the other direction"""

    def __init_subclass__(cls) -> None:
        """Give each class a copy of ``pump``: the interpreter's inline caches are of one class each (PEP 659)."""
        super().__init_subclass__()
        if "pump" in cls.__dict__:
            return
        pump = Flow.pump
        copied = FunctionType(pump.__code__.replace(), pump.__globals__, pump.__name__)
        copied.__qualname__, copied.__doc__ = pump.__qualname__, pump.__doc__
        cls.pump = copied  # type: ignore[method-assign]  # the same function, with caches of its own

    def __init__(self, relay: Relay, source: socket.SocketType, sink: socket.SocketType, counter: ByteCounter) -> None:
        self.relay = relay
        self.state = OPEN
        self.source = source
        self._sink = sink
        self._source_fd = source.fileno()  # os.read and os.write cost less than the methods of a socket
        self._sink_fd = sink.fileno()
        self._read_bytes = self.max_read_bytes
        self._counter = counter
        self._pending: bytes | memoryview = b""  # bytes that the sink has not taken yet
        self._source_state = LIVE
        self._is_bulk = False  # whether this flow uses what only bulk is worth
        self._passed = 0
        self._end_offset = -1  # bytes after which the source has ended, once the other end of the link has announced it

    # --- the loop -------------------------------------------------------------------------------------------------

    def pump(self, events: int) -> None:
        """Move what the source has, as far as the sink takes it. The reactor's handler of the source.

        The same socket is the sink of the other flow, so room to write resumes that one.
        """
        if events != READ_WRITE and not self._handle_rare_events(events):
            return
        if self.peer.state is not OPEN and events & WRITABLE:
            self.peer.resume()
        if self.state is not OPEN:  # the one place where reading pauses: back pressure, and a limit of the rate
            return
        spent = 0
        while (cost := self._transfer()) > 0:
            spent += cost
            if spent >= self.relay.forwarder.limits.turn_budget:
                self._yield_turn()
                return
        if cost == DRAINED and self._passed == self._end_offset:
            self._on_source_ended()

    @abstractmethod
    def _transfer(self) -> int:
        """Read once from the source and write to the sink what was read; return its cost, DRAINED or STOPPED."""

    def _yield_turn(self) -> None:
        """Let other connections have their turn, although the source has more."""
        self.relay.forwarder.reactor.call_again(self.pump)

    def _handle_rare_events(self, events: int) -> bool:
        """Handle any mask but the usual one; return whether the source may be read now.

        No bits at all: the flow asked to be called again.
        """
        if events & URGENT and self._source_state is LIVE:
            self._source_state = SourceState.URGENT
        if events & HANGUP and self._source_state is not RESET:
            self._source_state = ENDING if self._source_state is LIVE and not events & ERROR else FINISHED
        if events & ERROR:
            self._on_source_error()
            return False
        if events and not events & READABLE:
            if self.peer.state is not OPEN:
                self.peer.resume()
            return False
        return True

    def _on_source_error(self) -> None:
        """Handle a reset of the source: deliver what was received before it, for a limited time."""
        relay = self.relay
        if self.state is ENDED:  # reset after its end: its peer will not read what the other flow would still deliver
            relay.close()
            return
        self.pump(READ_WRITE)
        if relay.is_open:
            relay.forwarder.reactor.call_later(relay.forwarder.limits.reset_flush_timeout_s, self._on_flush_timeout)

    def _on_flush_timeout(self) -> None:
        """Stop waiting for a sink that does not take the last bytes of a source that was reset."""
        self._reset_sink()

    def resume(self) -> None:
        """Continue after the sink has become writable."""
        if self.state is ENDED or self.state is UNANNOUNCED:
            return
        if self._pending and not self._flush_pending():
            return
        if self.state is CLOSING:
            self._pass_end()
            return
        self.state = OPEN
        self.pump(0)

    def _flush_pending(self) -> bool:
        """Send the bytes that wait for the sink; return whether none is left and the sink still works."""
        try:
            sent = self._sink.send(self._pending)
        except BlockingIOError:
            return False
        except OSError:
            self._pending = b""
            self._on_sink_failed()
            return False
        self._count(sent)
        self._pending = memoryview(self._pending)[sent:] if sent < len(self._pending) else b""
        return not self._pending

    def _count(self, sent: int) -> None:
        """Count bytes of ``_pending`` that the sink has taken."""
        self._counter.total += sent
        self._passed += sent

    # --- ends and failures ----------------------------------------------------------------------------------------

    def set_end_offset(self, total: int) -> None:
        """Note that the source ends after ``total`` bytes, although its socket will not show it."""
        self._end_offset = total
        if self._passed == total and self.state is not ENDED:
            self._on_source_ended()

    def _on_source_ended(self) -> None:
        """Show the sink's peer the end, now that everything is delivered; end the relay after both ends."""
        if self._source_state is RESET:  # as a failed write has shown: see ``finish_with_reset``
            self._on_source_failed()
            return
        self.state = ENDED
        relay, is_last = self.relay, self.peer.state is ENDED
        if is_last and not relay.link.reuses:
            relay.close(None, self)
            return
        if not self._announce_end() and not is_last:
            self.half_close_sink()
        if is_last:
            relay.finish(self)

    _pass_end = _on_source_ended
    """the same for a flow that overrides ``_on_source_ended``, because it sends more before that"""

    def _announce_end(self) -> bool:
        """Announce the end by other means than the sink's socket; return whether that was done."""
        return self.relay.announce_end(self, self._passed)

    def _end_or_read_on(self) -> int:
        """Handle the end after a short read that was the last one; else return the cost of one that may not be."""
        if self._source_state is not ENDING:
            return COPIED
        self._on_source_ended()
        return STOPPED

    @property
    def passed(self) -> int:
        """Bytes of the visitor or the target that this flow has moved."""
        return self._passed

    @property
    def is_untouched(self) -> bool:
        """Whether nothing has come from the source, not even an end that is known to be true."""
        return not self._passed and not self._pending and self.state in {OPEN, UNANNOUNCED}

    @property
    def leaves_bytes_unread(self) -> bool:
        """Whether this flow reads nothing now, although its source may have something."""
        return self.state in {FlowState.BLOCKED, FlowState.PAUSED}

    @property
    def is_source_live(self) -> bool:
        """Whether the source has shown neither an end nor a failure, nor urgent data."""
        return self._source_state is LIVE

    def on_link_lost(self) -> None:
        """Treat the stream as cut off if only an announcement over the link could still complete it."""
        if self.state is UNANNOUNCED:
            self._on_source_failed()

    def show_end(self) -> None:
        """Show the end of the source on the sink's connection: it was announced over a link that is lost."""
        self.half_close_sink()

    def half_close_sink(self) -> None:
        """Show the end on the sink's socket."""
        try:
            self._sink.shutdown(socket.SHUT_WR)
        except OSError:
            self._on_sink_failed()

    def _on_source_failed(self) -> None:
        """Reset the sink, because the source was reset before its end."""
        self._reset_sink()

    def _reset_sink(self) -> None:
        self.relay.reset(self._sink)

    def continue_from(self, before: Flow) -> None:
        """Take the place of a flow that has delivered all that it has read: read on, or have ended as that has."""
        self._source_state = before._source_state
        if before.state is ENDED:
            self.state = ENDED

    def _on_sink_failed(self) -> None:
        """End this flow, because the sink will never take bytes again.

        What the sink's peer sent before it failed is still delivered by the other flow, then the source is reset.
        """
        peer = self.peer
        if peer.state is ENDED:
            self.relay.close()
            return
        self.state = ENDED
        peer.finish_with_reset()

    def finish_with_reset(self) -> None:
        """Deliver what the source has left, then reset the sink."""
        self._source_state = RESET
        self.pump(0)

    def on_handler_error(self, error: Exception) -> None:
        """Report a defect in a handler of this flow to its relay."""
        self.relay.on_handler_error(error)

    def release(self, closed_flow: Flow) -> None:
        """Drop all references that the relay's end leaves useless; ``closed_flow`` becomes the peer.

        Its own peer would make a cycle, so that everything in it waits for the garbage collector.
        """
        self.state = ENDED
        self._source_fd = self._sink_fd = -1  # the numbers belong to other sockets soon
        self.peer = closed_flow
        self._pending = b""
        if self._is_bulk:
            self._end_bulk()

    def _end_bulk(self) -> None:
        """Stop to use what only bulk is worth."""
        self._is_bulk = False
