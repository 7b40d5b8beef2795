"""A visitor's part of a data connection that many share: what is sent and received in it, and how far both ends are.

A lane carries what a data connection would carry, in frames (``tunnel.protocol.lane_frames``). Its window bounds what
may lie unread at the other end, so that no visitor delays another. A visitor whose window is used up has bulk to move,
or a reader that does not keep up: in both cases the visitor moves to a data connection (``lane_relay``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from tunnel.forwarding.lane_flows import FromLaneFlow, ToLaneFlow
from tunnel.model.spec import Proto
from tunnel.model.visitors import lane_ident
from tunnel.protocol.lane_frames import CREDIT, WINDOW_BYTES, LaneKind, encode_lane_frame
from tunnel.protocol.payloads import U64, clip_text
from tunnel.protocol.visitor_address import UNKNOWN
from tunnel.runtime.reactor import READABLE

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from tunnel.forwarding.base import OwnedConnection
    from tunnel.forwarding.flow import ByteCounter, Flow
    from tunnel.forwarding.lane_relay import LaneRelay
    from tunnel.forwarding.tcp import Relay

_CREDIT_AT: Final = WINDOW_BYTES // 4  # delivered bytes that are worth a frame
_ASK_AGAIN_BYTES: Final = 1 << 20  # sent after a request to move that was refused, before the next one


class LaneOwner(Protocol):
    """The shared connection, as its lanes see it."""

    ident: int
    """the id of the data connection"""
    is_congested: bool
    """whether much waits for the socket: nothing more may be sent until ``resume`` is called"""

    def send(self, frame: bytes) -> None:
        """Send a frame at the end of the batch, together with all others."""

    def wait_for_room(self, flow: Flow) -> None:
        """Call the ``resume`` of a flow when there is room."""

    def forget(self, lane: Lane) -> None:
        """Forget a lane, which is closed."""

    def move(self, lane: Lane) -> None:
        """Give a visitor a data connection of its own at the end of the batch, if there is one."""

    def unanswered_s(self) -> float | None:
        """Return the seconds since the last sign of the other end if it leaves data unacknowledged; else None."""


class Lane:
    """One visitor's part of a shared connection, at one end. Until a relay has it, its caller owns it."""

    __slots__ = (
        "_ask_at",
        "_credit_at",
        "_credited",
        "_early",
        "_is_open",
        "_uncredited",
        "_watcher",
        "events",
        "has_received_end",
        "has_received_move",
        "has_sent_end",
        "ident",
        "is_moving",
        "moved_to",
        "name",
        "number",
        "owner",
        "received",
        "relay",
        "visitor_address",
        "window",
    )

    proto: ClassVar = Proto.TCP
    use: ClassVar = 0

    def __init__(self, owner: LaneOwner, number: int, visitor_address: bytes = UNKNOWN) -> None:
        self.name = lane_ident(owner.ident, number)
        """what the id of its visitor is made of"""
        self.ident = self.name
        """under which the relay is found: its name, then the id of the data connection"""
        self.number = number
        self.visitor_address = visitor_address
        self.received = 0
        """bytes received"""
        self.window = WINDOW_BYTES
        """bytes that may be sent"""
        self.has_sent_end = False
        """whether END was sent"""
        self.has_received_end = False
        """whether END was received"""
        self.has_received_move = False
        """whether the other end sends on the data connection from now on"""
        self.is_moving = False
        """whether this end does"""
        self.moved_to: OwnedConnection | None = None
        """the data connection on which the visitor continues, once there is one"""
        self.relay: LaneRelay | None = None
        """the relay, once there is one, until the lane is closed"""
        self.events = 0
        self.owner = owner
        """the shared connection"""
        self._watcher: Callable[[int], None] | None = None
        self._early: list[bytes] | None = None  # what came before the relay
        self._uncredited = self._credited = 0
        self._credit_at = _CREDIT_AT
        self._ask_at = WINDOW_BYTES  # bytes that were sent when a move is asked for
        self._is_open = True

    def create_flows(
        self, relay: Relay, near: socket.SocketType, from_near: ByteCounter, to_near: ByteCounter
    ) -> tuple[Flow, Flow]:
        """Create the flows of a relay between ``near`` and this lane: from near, and to near."""
        return ToLaneFlow(relay, near, from_near, self), FromLaneFlow(relay, near, to_near, self)

    # --- sending --------------------------------------------------------------------------------------------------

    def _send(self, kind: LaneKind, payload: bytes = b"") -> None:
        self.owner.send(encode_lane_frame(self.number, kind, payload))

    def open(self) -> None:
        """Announce a new visitor to the egress."""
        self._send(LaneKind.OPEN, self.visitor_address)

    def send(self, data: bytes) -> None:
        """Send bytes, at most ``window`` and ``MAX_DATA_BYTES``."""
        self.window -= len(data)
        self.owner.send(encode_lane_frame(self.number, LaneKind.DATA, data))

    def send_end(self) -> None:
        """Announce that this direction is complete."""
        self.has_sent_end = True
        self._send(LaneKind.END)

    def send_wanted(self) -> None:
        """Ask the ingress for a data connection."""
        self._send(LaneKind.WANTED)

    def wait_for_room(self, flow: Flow) -> None:
        """Resume a flow when the shared connection has room; without a window that comes with ``CREDIT``."""
        if self.owner.is_congested:
            self.owner.wait_for_room(flow)
        elif not self.is_moving and flow.passed >= self._ask_at:
            self._ask_at = flow.passed + _ASK_AGAIN_BYTES
            self.owner.move(self)

    def note_delivered(self, count: int) -> None:
        """Let the other end send as much again as has left this end."""
        self._uncredited += count
        if self._uncredited >= self._credit_at:
            self._return_credit()

    def _return_credit(self) -> None:
        if self.has_received_move:
            if self.relay is not None:
                self.relay.continue_move()
        elif self._is_open and not self.has_received_end:
            self._send(LaneKind.CREDIT, CREDIT.pack(self._uncredited))
            self._credited += self._uncredited
            self._uncredited = 0

    # --- receiving ------------------------------------------------------------------------------------------------

    @property
    def may_receive(self) -> bool:
        """Whether the other end may send bytes, or their end."""
        return not (self.has_received_end or self.has_received_move)

    def receive(self, data: bytes) -> bool:
        """Deliver bytes of the other end; return whether its window allows them."""
        self.received += len(data)
        if self.received - self._credited > WINDOW_BYTES:
            return False
        if self.relay is not None:
            self.relay.receive(data)
        else:
            if self._early is None:
                self._early = []
            self._early.append(data)
            self._note_event()
        return True

    def receive_end(self) -> None:
        """Note that the other end has sent everything."""
        self.has_received_end = True
        if self.relay is not None:
            self.relay.end_lane(self.received)
        else:
            self._note_event()

    def receive_reset(self) -> None:
        """Close the lane: the other end has closed it, before it was complete."""
        relay = self.relay
        self._leave()
        if relay is not None:
            relay.on_lane_reset()
        else:
            self._note_event()

    def receive_credit(self, count: int) -> bool:
        """Send on, if this end has waited for that; return whether the other end may have received so much."""
        self.window += count
        is_allowed = count > 0 and self.window <= WINDOW_BYTES
        if is_allowed and self.relay is not None:
            self.relay.on_credit()
        return is_allowed

    def receive_move(self) -> None:
        """Read on from the data connection when everything in the lane is delivered."""
        self.has_received_move = True
        self._credit_at = 0  # check after each delivery whether it was the last one
        if self.relay is not None:
            self.relay.continue_move()

    def receive_cut(self) -> bool:
        """React to the end of the shared connection; return whether the visitor was reset.

        Only a visitor whose directions are complete, or have moved, does without it.
        """
        has_moved = self.has_received_move and self.relay is not None
        if has_moved or (self.has_sent_end and self.has_received_end):
            self._is_open = False
            return False
        self.receive_reset()
        return True

    def _note_event(self) -> None:
        """Note what a data connection would show as an event: there is something to relay."""
        self.events |= READABLE
        if self._watcher is not None:
            self._watcher(READABLE)

    def watch(self, handler: Callable[[int], None] | None) -> None:
        """Call ``handler`` when something comes before a relay has started; None: only gather it."""
        self._watcher = handler

    # --- the relay ------------------------------------------------------------------------------------------------

    def attach(self, relay: LaneRelay) -> None:
        """Deliver to a relay from now on, first what has come before."""
        early, self._early, self._watcher = self._early or (), None, None
        if not self._is_open:
            relay.on_lane_reset()
            return
        self.relay = relay
        for data in early:
            if relay.is_open:
                relay.receive(data)
        if relay.is_open and self.has_received_end:
            relay.end_lane(self.received)
        if relay.is_open and self.moved_to is not None:
            relay.move(self.moved_to)

    @property
    def may_move(self) -> bool:
        """Whether the visitor could continue on a data connection: its relay runs, and has not moved."""
        return not self.is_moving and self.relay is not None and self.relay.is_open

    def move_to(self, data: OwnedConnection) -> None:
        """Let the visitor continue on a data connection, which its relay owns from then on."""
        self.moved_to = data
        if self.relay is not None:
            self.relay.move(data)

    def send_move(self, data: OwnedConnection) -> None:
        """Announce that this end sends on a data connection from now on."""
        self.is_moving = True
        self.ident = data.ident
        self._send(LaneKind.MOVED, U64.pack(data.ident))

    # --- the end --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the lane. The other end resets what is not complete, unless the data connection shows how it ends."""
        if self._is_open and not (self.is_moving or (self.has_sent_end and self.has_received_end)):
            self._send(LaneKind.RESET)
        self._leave()

    reset = close
    """the same: a lane has no other end"""

    def fail(self, reason: str) -> None:
        """Close the lane before a relay has it, because the visitor cannot be served; ``reason`` is a sentence."""
        if self._is_open:
            self._send(LaneKind.FAILED, clip_text(reason))
        self._leave()

    def leave(self) -> None:
        """Forget the lane: both ends continue on a data connection."""
        self._leave()

    def _leave(self) -> None:
        self._is_open = False
        self.relay = self._watcher = None
        if self.moved_to is not None and not self.is_moving:
            self.moved_to.close()
            self.moved_to = None
        self.owner.forget(self)
