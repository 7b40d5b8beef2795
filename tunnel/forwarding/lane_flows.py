"""The two directions of a visitor in a lane, with a limit of the rate and without."""

from __future__ import annotations

from os import read, write
from typing import TYPE_CHECKING

from tunnel.forwarding.flow import COPIED, DRAINED, ENDED, LIVE, OPEN, RESET, STOPPED, Flow, FlowState
from tunnel.forwarding.limited_flow import LimitedFlow
from tunnel.protocol.lane_frames import MAX_DATA_BYTES

if TYPE_CHECKING:
    import socket

    from tunnel.forwarding.flow import ByteCounter
    from tunnel.forwarding.lanes import Lane
    from tunnel.forwarding.tcp import Relay


class _LaneFlow(Flow):
    """One direction of a visitor in a lane."""

    __slots__ = ("_lane",)

    max_read_bytes = MAX_DATA_BYTES

    def __init__(self, relay: Relay, near: socket.SocketType, counter: ByteCounter, lane: Lane) -> None:
        super().__init__(relay, near, near, counter)
        self._lane = lane


class ToLaneFlow(_LaneFlow):
    """From a visitor or target into its lane."""

    __slots__ = ()

    def _transfer(self) -> int:
        lane = self._lane
        read_bytes = min(self._read_bytes, lane.window)
        if read_bytes <= 0 or lane.owner.is_congested:
            self.state = FlowState.BLOCKED
            lane.wait_for_room(self)
            return STOPPED
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
        lane.send(data)
        self._counter.total += got
        self._passed += got
        if got == read_bytes:
            return COPIED
        return DRAINED if self._source_state is LIVE else self._end_or_read_on()

    def _on_source_ended(self) -> None:
        if self._source_state is RESET:
            self._on_source_failed()
            return
        self.state = ENDED
        self._lane.send_end()
        if self.peer.state is ENDED:
            self.relay.close(None, self)

    def _reset_sink(self) -> None:
        self.relay.reset(None)


class FromLaneFlow(_LaneFlow):
    """From its lane to a visitor or target. The shared connection calls ``receive``; nothing is read here."""

    __slots__ = ()

    def receive(self, data: bytes) -> None:
        """Deliver bytes now, or as soon as the sink takes them."""
        if self.state is not OPEN:
            if self.state is not ENDED:
                self._pending = b"".join((self._pending, data))
            return
        try:
            sent = write(self._sink_fd, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._on_sink_failed()
            return
        self._counter.total += sent
        self._passed += sent
        if sent != len(data):
            self._pending = data[sent:]
            self.state = FlowState.BLOCKED
        self._lane.note_delivered(sent)

    def _transfer(self) -> int:
        self._lane.note_delivered(0)  # after everything that has waited: then the visitor may move
        return DRAINED

    def _on_source_ended(self) -> None:
        super()._on_source_ended()
        self._lane.note_delivered(0)  # this was the last of what has waited: then the visitor may move

    def finish_with_reset(self) -> None:
        """Reset the sink: the data connection that the visitor has moved to has failed."""
        self._on_source_failed()

    def _count(self, sent: int) -> None:
        super()._count(sent)
        self._lane.note_delivered(sent)

    def _deliver(self, sent: int) -> None:
        """Count bytes that the sink has taken in a transfer, which charges them if there is a limit."""
        self._counter.total += sent
        self._passed += sent
        self._lane.note_delivered(sent)

    @property
    def is_empty(self) -> bool:
        """Whether everything that was received is delivered, or never will be."""
        return not self._pending


class LimitedToLaneFlow(LimitedFlow, ToLaneFlow):
    """Into a lane at a limited rate."""

    __slots__ = ()
    unlimited = ToLaneFlow

    def _transfer_within(self, allowed: int) -> int:
        self._read_bytes = min(self.max_read_bytes, allowed)
        return super(LimitedFlow, self)._transfer()

    def _unbind_reads(self) -> None:
        self._read_bytes = self.max_read_bytes


class LimitedFromLaneFlow(LimitedFlow, FromLaneFlow):
    """From a lane at a limited rate."""

    __slots__ = ()
    unlimited = FromLaneFlow

    def receive(self, data: bytes) -> None:
        """Deliver bytes as far as the limit permits; the rest waits."""
        if self.state is ENDED:
            return
        self._pending = b"".join((self._pending, data))
        if self.state is OPEN:
            self.pump(0)

    def _transfer_within(self, allowed: int) -> int:
        pending = memoryview(self._pending)
        if not pending:
            return super(LimitedFlow, self)._transfer()
        part = pending[:allowed]
        try:
            sent = self._sink.send(part)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._pending = b""
            self._on_sink_failed()
            return STOPPED
        self._pending = bytes(pending[sent:])
        if sent < len(part):
            self.state = FlowState.BLOCKED
        self._deliver(sent)
        if self.state is not OPEN:
            return STOPPED
        return COPIED if self._pending else DRAINED

    def _unbind_reads(self) -> None:
        """Nothing is read here."""
