"""The relay of a visitor in a lane that moves to a data connection for bulk: with nothing lost and nothing twice.

Sending moves at once, and a frame in the lane says so. Reading moves when everything in the lane is delivered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.forwarding.flow import ENDED, OPEN, FlowState
from tunnel.forwarding.lane_flows import FromLaneFlow, ToLaneFlow
from tunnel.forwarding.tcp import CLOSED_FLOW, Relay
from tunnel.model.visitors import visitor_id
from tunnel.runtime import sockets
from tunnel.runtime.reactor import ERROR, READABLE, WRITABLE

if TYPE_CHECKING:
    import socket

    from tunnel.forwarding.base import ForwardingOwner, OwnedConnection, RelayLink
    from tunnel.forwarding.flow import Flow
    from tunnel.forwarding.lanes import Lane
    from tunnel.forwarding.tcp_forwarder import TcpForwarder
    from tunnel.model.visitor_end import VisitorEnd


class LaneRelay(Relay):
    """A relay in a lane; later, perhaps, on a data connection of its own. Owns the near side, the lane and that."""

    __slots__ = ("_data", "_early_events", "_lane", "_next", "_passed_before")

    def __init__(
        self,
        forwarder: TcpForwarder,
        data: Lane,
        link: RelayLink,
        near: socket.SocketType,
        owner: ForwardingOwner,
    ) -> None:
        self._lane = data
        self._data: OwnedConnection | None = None  # the data connection, once there is one
        self._next: Flow | None = None  # what reads it as soon as the lane is empty
        self._early_events = 0  # of the data connection, until then
        self._passed_before = (0, 0)  # in the lane
        super().__init__(forwarder, data, link, near, owner)

    @property
    def id(self) -> str:
        """The visitor's id, which stays the same when the visitor moves."""
        return visitor_id(self.link.ident, self._lane.name, 0)

    @property
    def _far(self) -> socket.SocketType:
        if self._data is None:
            raise RuntimeError("a visitor in a lane has no data connection")
        return self._data.sock

    def start(self, near_events: int | None, far_events: int) -> None:
        """Start to relay. What came in the lane so far is delivered first."""
        del far_events
        self._start_near(near_events)
        if self.is_open:
            self._lane.attach(self)

    # --- the lane -------------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Deliver what came in the lane."""
        flow = self._to_near
        if isinstance(flow, FromLaneFlow):
            flow.receive(data)

    def end_lane(self, total: int) -> None:
        """Note that the lane carries ``total`` bytes in all."""
        if isinstance(self._to_near, FromLaneFlow):
            self._to_near.set_end_offset(total)

    def set_end_offset(self, total: int) -> None:
        """Note that the data connection carries ``total`` bytes in all, as the other end of the link has announced."""
        if self.is_open and self._data is not None:
            if self._next is not None:
                self._data.end_offset = total
            else:
                self._to_near.set_end_offset(total)

    def on_lane_reset(self) -> None:
        """Reset both sides: what comes from the other end was cut off."""
        if self.is_open and isinstance(self._to_near, FromLaneFlow):
            self.reset(self._near)

    def reset(self, sock: socket.SocketType | None) -> None:
        """Close everything so that both peers see a reset: the end of a data connection must not look like one."""
        if self.is_open and self._data is not None:
            if sock is None:  # of a flow in the lane, by a timer from before the move
                return
            sockets.reset_on_close(self._data.sock)
        super().reset(sock)

    def on_credit(self) -> None:
        """Send on, if the flow has waited for the window."""
        flow = self._from_near
        if flow.state is FlowState.BLOCKED and isinstance(flow, ToLaneFlow):
            flow.resume()

    # --- the move -------------------------------------------------------------------------------------------------

    def move(self, data: OwnedConnection) -> None:
        """Send on a data connection from now on, and read from it once the lane is empty."""
        lane, before, near, reactor = self._lane, self._from_near, self._near, self.forwarder.reactor
        self._data = data
        self._owner.on_relay_moved(self, data)
        lane.send_move(data)
        from_near, to_near = data.create_flows(self, near, self.forwarder.from_near, self.forwarder.to_near)
        self._from_near, self._next = from_near, to_near
        from_near.peer, to_near.peer, self._to_near.peer = self._to_near, from_near, from_near
        self._passed_before = (before.passed, 0)
        from_near.continue_from(before)
        before.release(CLOSED_FLOW)
        self._owner.on_flows_changed(self)
        self._early_events = data.events
        reactor.set_handler(near, from_near.pump)
        reactor.set_handler(data.sock, self._on_data_events)
        if self.keepalive_enabled:
            sockets.enable_keepalive(data.sock)
        if from_near.state is OPEN:
            from_near.pump(0)
        self.continue_move()

    def _on_data_events(self, events: int) -> None:
        """Note what the data connection has until the lane is empty; only sending goes on."""
        self._early_events |= events
        if events & ERROR:
            self.reset(self._near)
            return
        from_near = self._from_near
        if events & WRITABLE and from_near.state is not OPEN:
            from_near.resume()

    def continue_move(self) -> None:
        """Read from the data connection, if everything in the lane is delivered."""
        if self.is_open and self._next is not None and self._lane.has_received_move:
            self._switch_if_empty(self._next)

    def _switch_if_empty(self, new: Flow) -> None:
        lane, flow, data = self._lane, self._to_near, self._data
        if data is None or not isinstance(flow, FromLaneFlow) or not flow.is_empty:
            return
        if lane.has_received_end and flow.state is not ENDED:  # its end is passed on next
            return
        self._next = None
        self._passed_before = (self._passed_before[0], flow.passed)
        new.continue_from(flow)
        self._to_near, self._from_near.peer = new, new
        flow.release(CLOSED_FLOW)
        lane.leave()
        self._owner.on_flows_changed(self)
        self.forwarder.reactor.set_handler(data.sock, new.pump)
        if data.end_offset is not None:
            new.set_end_offset(data.end_offset)
        if self.is_open and self._early_events & READABLE:
            new.pump(self._early_events)

    # --- what concerns the far side -------------------------------------------------------------------------------

    def on_link_lost(self) -> None:
        """Show announced ends on the data connection; a lane has its own."""
        if self._data is not None:
            super().on_link_lost()

    def enable_keepalive(self) -> None:
        """Enable keepalive, once the relay has lived for a while."""
        self.keepalive_enabled = True
        sockets.enable_keepalive(self._near)
        if self._data is not None:
            sockets.enable_keepalive(self._data.sock)

    def passed(self) -> tuple[int, int]:
        """Return the bytes that came from the near side, and those that went to it; of an open relay only."""
        before, passed = self._passed_before, super().passed()
        return before[0] + passed[0], before[1] + passed[1]

    @property
    def activity(self) -> int:
        """Bytes that went either way; of an open relay only."""
        return sum(self.passed())

    def unanswered_s(self) -> float | None:
        """Return the seconds since the last sign of a peer that leaves data unacknowledged; None if both answer."""
        if self._data is not None:
            return super().unanswered_s()
        waits = sockets.unanswered_s(self._near), self._lane.owner.unanswered_s()
        return max((wait for wait in waits if wait is not None), default=None)

    @property
    def is_data_unanswered(self) -> bool:
        """Whether it is the other end of the tunnel that leaves data unacknowledged."""
        if self._data is not None:
            return super().is_data_unanswered
        return self._lane.owner.unanswered_s() is not None

    def abort(self, cause: VisitorEnd | None = None) -> None:
        """Close everything so that both peers see a reset."""
        if self.is_open:
            sockets.reset_on_close(self._near)
            if self._data is not None:
                sockets.reset_on_close(self._data.sock)
            self.close(cause)

    def release_near(self) -> socket.SocketType | None:
        """End without a trace if nothing was forwarded either way; return the near side, which the caller owns then."""
        if self._data is not None or not (self.is_open and self._from_near.is_untouched and self._to_near.is_untouched):
            return None
        Relay._release_flows(self)  # noqa: SLF001  of that class alone: the visitor has not left, so no log has it
        self.forwarder.reactor.unregister(self._near)
        self._lane.close()
        return self._near

    def close(self, cause: VisitorEnd | None = None, last: Flow | None = None) -> None:
        """Close everything. Calling it twice is allowed; the arguments are as in ``Relay``."""
        del cause, last
        if not self.is_open:
            return
        reactor = self.forwarder.reactor
        self._release_flows()
        reactor.close(self._near)
        self._lane.close()
        if self._data is not None:
            reactor.close(self._data.sock)
        self._owner.on_relay_closed(self)

    def finish(self, last: Flow) -> None:
        """End after both streams are complete: a data connection that was moved to is not used again."""
        self.close(None, last)

    def _release_flows(self) -> None:
        super()._release_flows()
        self._next = None
