"""A data connection that many visitors share, at either end: it moves the frames of their lanes.

What the lanes send in a batch of events leaves in one write, which is why visitors share a connection at all: most of
what a small request costs is its system calls.
"""

from __future__ import annotations

import contextlib
import socket
from os import read, write
from typing import TYPE_CHECKING, Final, Protocol

from tunnel.engine.relays import VANISHED_AFTER_S
from tunnel.forwarding.lanes import Lane
from tunnel.protocol.errors import ProtocolError
from tunnel.protocol.lane_frames import CREDIT, LAST_LANE, MAX_LANES, LaneDecoder, LaneKind, encode_lane_frame
from tunnel.protocol.payloads import U64, decode_text
from tunnel.runtime import sockets
from tunnel.runtime.reactor import HANGUP, READABLE, WRITABLE

if TYPE_CHECKING:
    from tunnel.engine.link import Link
    from tunnel.engine.pool import DataConnection
    from tunnel.forwarding.flow import Flow
    from tunnel.protocol.lane_frames import LaneFrame
    from tunnel.runtime.reactor import Reactor

_READ_BYTES: Final = 1 << 16
_FRAMES_PER_TURN: Final = 256  # each may cost a write: some milliseconds
_CONGESTED_BYTES: Final = 1 << 18  # that wait for the socket: then lanes send no more
_LANES_PROMISED: Final = 256  # by an egress, beyond the open ones: each will need a descriptor for its target
_STALLED_S: Final = 3.0  # without an acknowledgement, after which new visitors get another connection
_LATE_OPEN_S: Final = 10.0  # after the link is lost, in which OPEN may arrive that was sent before
_END_TIMEOUT_S: Final = 10.0  # for the other end to close a connection without lanes
_OPEN: Final = LaneKind.OPEN.value
_DATA: Final = LaneKind.DATA.value
_END: Final = LaneKind.END.value
_RESET: Final = LaneKind.RESET.value
_CREDIT: Final = LaneKind.CREDIT.value
_MOVED: Final = LaneKind.MOVED.value
_FAILED: Final = LaneKind.FAILED.value
_LAST: Final = LaneKind.LAST.value


class LaneUser(Protocol):
    """The ingress or egress, as a shared connection sees it."""

    def serve_lane(self, link: Link, lane: Lane) -> None:
        """Serve a visitor that has arrived at the other end; only an egress is called."""

    def move_visitor(self, link: Link, lane: Lane) -> None:
        """Let a visitor continue on a data connection of its own, if there is one."""

    def on_lane_failed(self, link: Link, lane: Lane, reason: str) -> None:
        """Disconnect a visitor that the egress cannot serve; only an ingress is called."""

    def on_lane_reset(self, link: Link, lane: Lane) -> None:
        """Stop to dial the target for a visitor that has left; only an egress is called."""

    def on_shared_lost(self, shared: SharedConnection) -> None:
        """Take the visitors that can be served in another way, before the others are reset."""

    def on_shared_closed(self, shared: SharedConnection, violation: str | None, lost: int) -> None:
        """Forget a shared connection, which is closed; ``lost`` visitors were reset.

        ``violation``: what was wrong with the bytes in it.
        """

    def on_handler_error(self, error: Exception) -> None:
        """End the engine because of a defect."""


class SharedConnection:
    """One end of a shared connection. Owns its socket; the lanes belong to their relays."""

    def __init__(self, reactor: Reactor, connection: DataConnection, link: Link, user: LaneUser) -> None:
        """``connection`` was taken out of its pool; the reactor watches it already."""
        self.ident = connection.ident
        self.sock = connection.sock
        self.link = link
        self.lanes: Final[dict[int, Lane]] = {}
        """the open ones by their numbers"""
        self.moved: Final[dict[int, DataConnection]] = {}
        """the data connections to which their visitors move, by id"""
        self.is_congested = False
        self.promised = 0
        """lanes that may be opened yet"""
        self.may_grow = True
        """whether more lanes may come"""
        self._reactor = reactor
        self._user = user
        self._is_ingress = link.is_ingress
        self._fd = connection.sock.fileno()
        self._codec = connection.flow_source.create_codec(connection.ident, connection.use)
        self._decoder = LaneDecoder(is_ingress=link.is_ingress)
        self._latest = connection.use  # the highest number of a lane so far: no visitor gets the id of one before
        self._received: list[LaneFrame] = []  # the last one first: what was decoded and not handled yet
        self._out: list[bytes] = []
        self._unsent: bytes | memoryview = b""
        self._waiting_bytes = 0  # in both
        self._waiting: dict[Flow, None] = {}
        self._movers: list[Lane] = []
        self._is_flush_due = self._is_read_due = False
        self._is_open = True
        self._has_shown_end = self._has_peer_ended = False
        sockets.enable_keepalive(connection.sock)
        reactor.set_handler(connection.sock, self._on_events)
        self._promise_lanes()
        if connection.events & READABLE:
            self._on_events(connection.events)

    def __len__(self) -> int:
        return len(self.lanes)

    # --- lanes ----------------------------------------------------------------------------------------------------

    def create_lane(self) -> Lane | None:
        """Return a new lane for a visitor; None if there is no room for one."""
        if not (self.may_grow and self.promised):
            return None
        if self._latest >= LAST_LANE:
            self.retire()
            return None
        self.promised -= 1
        self._latest += 1
        lane = self.lanes[self._latest] = Lane(self, self._latest)
        return lane

    def _promise_lanes(self) -> None:
        """At an egress: let the ingress open more lanes, as far as there are descriptors for their targets."""
        if self._is_ingress or not self.may_grow or self.promised > _LANES_PROMISED // 2:
            return
        wanted = min(_LANES_PROMISED, MAX_LANES - len(self.lanes)) - self.promised
        count = self._reactor.fd_budget.promise(wanted) if wanted > 0 else 0
        if count:
            self.promised += count
            self.send(encode_lane_frame(0, LaneKind.CREDIT, CREDIT.pack(count)))

    def retire(self) -> None:
        """Open no lanes any more, at an ingress; the egress closes the connection after the present ones."""
        if self.may_grow:
            self.may_grow = False
            self.send(encode_lane_frame(0, LaneKind.LAST))
            self._close_if_unused()

    def on_link_lost(self) -> None:
        """Let the visitors finish without the link; new ones do not come any more."""
        if self._is_ingress:
            self.retire()
        elif self.may_grow:
            self._reactor.call_later(_LATE_OPEN_S, self._refuse_lanes)

    def _refuse_lanes(self) -> None:
        """Accept no lanes any more, at an egress: an ingress in order has sent LAST by now."""
        self.may_grow, self.promised = False, 0
        self._close_if_unused()

    def check(self) -> None:
        """Promise what has become free; give up a connection whose bytes are not acknowledged."""
        self._promise_lanes()
        waited_s = self.unanswered_s() or 0.0
        if waited_s > VANISHED_AFTER_S:
            self.close()
        elif waited_s > _STALLED_S and self._is_ingress:
            self.retire()

    def unanswered_s(self) -> float | None:
        """Return the seconds since the last sign of the other end if it leaves data unacknowledged; else None."""
        return sockets.unanswered_s(self.sock) if self._is_open else None

    def forget(self, lane: Lane) -> None:
        """Forget a lane, which is closed."""
        self.lanes.pop(lane.number, None)
        if lane.moved_to is not None:
            self.moved.pop(lane.moved_to.ident, None)
        if not self.may_grow:
            self._close_if_unused()
        elif not self.promised:
            self._promise_lanes()

    def _close_if_unused(self) -> None:
        """Close the connection after its last lane: the egress first, which has read everything by then."""
        if not self.lanes and self._is_open:
            self._flush_later()
            self._reactor.call_later(_END_TIMEOUT_S, self._close_unused)

    def _close_unused(self) -> None:
        if not self.lanes:
            self.close()

    def _show_end(self) -> None:
        """Show the ingress the end, and close when it has closed: with bytes unread, a close would discard others."""
        self._has_shown_end = True
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def move(self, lane: Lane) -> None:
        """Give a visitor a data connection of its own at the end of the batch, if there is one."""
        self._movers.append(lane)
        self._flush_later()

    # --- sending --------------------------------------------------------------------------------------------------

    def send(self, frame: bytes) -> None:
        """Send a frame at the end of the batch, together with all others."""
        self._out.append(frame)
        self._waiting_bytes += len(frame)
        if self._waiting_bytes > _CONGESTED_BYTES:
            self.is_congested = True
        if not self._is_flush_due:
            self._flush_later()

    def wait_for_room(self, flow: Flow) -> None:
        """Call the ``resume`` of a flow when there is room."""
        self._waiting[flow] = None

    def _flush_later(self) -> None:
        if not self._is_flush_due:
            self._is_flush_due = True
            self._reactor.defer(self._flush)

    def _flush(self) -> None:
        self._is_flush_due = False
        if self._movers:
            movers, self._movers = self._movers, []
            for lane in movers:
                self._user.move_visitor(self.link, lane)
        out = self._out
        if not self._is_open:
            out.clear()
            return
        if out and not self._unsent:
            sealed = self._codec.seal_frames(out[0] if len(out) == 1 else b"".join(out))
            out.clear()
            self._write(sealed)
        while self._waiting and not self.is_congested and not self._unsent:
            flow = next(iter(self._waiting))
            del self._waiting[flow]
            flow.resume()
        is_unused = not (self.may_grow or self.lanes or self._out or self._unsent)
        if is_unused and not (self._is_ingress or self._has_shown_end):
            self._show_end()

    def _write(self, data: bytes | bytearray | memoryview) -> None:
        try:
            sent = write(self._fd, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        self._unsent = memoryview(data)[sent:] if sent < len(data) else b""
        self._waiting_bytes = len(self._unsent)
        if self._waiting_bytes:
            self._waiting_bytes += sum(map(len, self._out))
        self.is_congested = self._waiting_bytes > _CONGESTED_BYTES

    def _on_room(self) -> None:
        """Send on: first what waits, then what the lanes have sent meanwhile."""
        self._write(self._unsent)
        if not self._unsent:
            self._flush()

    # --- receiving ------------------------------------------------------------------------------------------------

    def _on_events(self, events: int) -> None:
        if events & HANGUP:
            self._has_peer_ended = True
        if events & WRITABLE and self._unsent and self._is_open:
            self._on_room()
        if self._is_open and (events & READABLE or not events):
            self._read()

    def _read_on(self, _events: int) -> None:
        self._is_read_due = False
        if self._is_open:
            self._read()

    def _read(self) -> None:
        """Handle some frames; the rest in the next turn."""
        is_more = True
        if not self._received:
            try:
                data = read(self._fd, _READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.close()
                return
            is_more = len(data) == _READ_BYTES or self._has_peer_ended
            if not self._decode(data):
                return
        self._handle_frames()
        if (is_more or self._received) and self._is_open and not self._is_read_due:
            self._is_read_due = True
            self._reactor.call_again(self._read_on)

    def _decode(self, data: bytes) -> bool:
        """Decode what was read; return whether the connection is in order."""
        try:
            frames = self._decoder.feed(self._codec.open_frames(data))
        except ProtocolError as error:
            self.close(str(error))
            return False
        frames.reverse()
        self._received = frames
        return True

    def _handle_frames(self) -> None:
        lanes, received = self.lanes, self._received
        try:
            for _ in range(min(_FRAMES_PER_TURN, len(received))):
                number, kind, payload = received.pop()
                lane = lanes.get(number)
                if lane is None:
                    self._handle_frame_without_lane(number, kind, payload)
                elif kind == _DATA:
                    if not (lane.may_receive and lane.receive(payload)):
                        raise ProtocolError("more bytes than a lane may carry")
                else:
                    self._handle_lane_frame(lane, kind, payload)
        except ProtocolError as error:
            self.close(str(error))

    def _handle_lane_frame(self, lane: Lane, kind: int, payload: bytes) -> None:
        if kind == _END:
            if not lane.may_receive:
                raise ProtocolError("the end of a lane twice")
            lane.receive_end()
        elif kind == _RESET:
            lane.receive_reset()
            self._user.on_lane_reset(self.link, lane)
        elif kind == _CREDIT:
            if not lane.receive_credit(CREDIT.unpack(payload)[0]):
                raise ProtocolError("more credit than a lane has used")
        elif kind == _MOVED:
            self._receive_move(lane, U64.unpack(payload)[0])
        elif kind == _FAILED:
            self._user.on_lane_failed(self.link, lane, decode_text(payload))
        elif kind == LaneKind.WANTED:
            self._user.move_visitor(self.link, lane)
        else:
            raise ProtocolError("a frame of a lane that is open, or of no lane at all")

    def _receive_move(self, lane: Lane, ident: int) -> None:
        if lane.has_received_move or (self._is_ingress and not (lane.is_moving and lane.ident == ident)):
            raise ProtocolError("a visitor that has moved and may not")
        if not self._is_ingress:
            data = self.link.claim(ident)
            if data is None:  # it was lost, or the link was
                lane.close()
                self._user.on_lane_reset(self.link, lane)
                return
            self.moved[ident] = data
            lane.has_received_move = True
            lane.move_to(data)
        lane.receive_move()

    def _handle_frame_without_lane(self, number: int, kind: int, payload: bytes) -> None:
        """Handle what opens a lane, what concerns none, and what was sent before the other end knew of a close."""
        if kind == _OPEN:
            if not (self.may_grow and self.promised) or number <= self._latest:
                raise ProtocolError("a lane that may not be opened")
            self._latest = number
            self.promised -= 1
            lane = self.lanes[number] = Lane(self, number, payload)
            self._promise_lanes()
            self._user.serve_lane(self.link, lane)
        elif not number and kind == _LAST:
            self.may_grow, self.promised = False, 0
            self._close_if_unused()
        elif not number and kind == _CREDIT and self._is_ingress and (count := CREDIT.unpack(payload)[0]):
            self.promised = min(MAX_LANES, self.promised + count)
        elif number > self._latest or not number or kind == _LAST:
            raise ProtocolError("a frame of a lane that was not opened")

    # --- the end --------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Send what waits, then close the connection."""
        if self._is_open:
            self._flush()
        self.close()

    def close(self, violation: str | None = None) -> None:
        """Close the connection, and reset the visitors that still need it. Calling it twice is allowed."""
        if not self._is_open:
            return
        self._is_open = self.may_grow = False
        self.promised = 0
        self._user.on_shared_lost(self)
        self._reactor.close(self.sock)
        lost = sum([lane.receive_cut() for lane in list(self.lanes.values())])
        self.lanes.clear()
        self._waiting.clear()
        self._received.clear()
        self._user.on_shared_closed(self, violation, lost)

    def on_handler_error(self, error: Exception) -> None:
        """Close the connection after a defect, and report it."""
        self.close()
        self._user.on_handler_error(error)
