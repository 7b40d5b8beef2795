"""Lanes in shared connections for ``second_client``, written from ``tunnel/protocol/PROTOCOL.md`` alone."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Protocol

from tests.support.second_codec import (
    MAX_CONTENT_BYTES,
    SHARED,
    CutOffStreamError,
    DamagedStreamError,
    HostPort,
    ServerFaultError,
    decode_address,
    encode_address,
)

OPEN, DATA, END, RESET, CREDIT, LAST, MOVED, WANTED, FAILED = range(1, 10)
WINDOW_BYTES = 65536
MAX_LANES = 16384
_LENGTHS = {
    OPEN: (0, 255),
    DATA: (1, MAX_CONTENT_BYTES),
    END: (0, 0),
    RESET: (0, 0),
    CREDIT: (4, 4),
    LAST: (0, 0),
    MOVED: (8, 8),
    WANTED: (0, 0),
    FAILED: (0, 512),
}
_OF_INGRESS = {OPEN, LAST}
_OF_EGRESS = {WANTED, FAILED}


class Stream(Protocol):
    """Both directions of a visitor, in a lane or on a data connection of its own."""

    async def receive(self) -> bytes: ...
    async def send(self, content: bytes) -> None: ...
    async def end(self) -> None: ...
    async def close(self) -> None: ...
    def reset(self) -> None: ...
    def refuse(self, reason: str) -> None: ...


class Carrier(Stream, Protocol):
    """A data connection, as lanes and their link use it."""

    number: int

    def write(self, content: bytes) -> None: ...
    def announce_end(self) -> None: ...
    async def drain(self) -> None: ...
    def show_end(self) -> None: ...
    def close_socket(self) -> None: ...


class Link(Protocol):
    """What lanes need of their link."""

    def send_frame(self, kind: int, payload: bytes) -> None: ...
    def claim_connection(self, number: int) -> Carrier | None: ...
    async def take_connection(self) -> Carrier: ...


def encode_lane_frame(lane: int, kind: int, payload: bytes = b"") -> bytes:
    """Return a frame of a shared connection."""
    return struct.pack(">IBH", lane, kind, len(payload)) + payload


class Lane:
    """A visitor in a shared connection; it may move to a data connection of its own."""

    def __init__(self, shared: SharedConnection, number: int, visitor: HostPort | None) -> None:
        self.shared, self.number, self.visitor = shared, number, visitor
        self.sent = self.credited_by_peer = 0
        self.received = self.credited = 0
        self.has_sent_end = self.has_received_end = False
        self.failure: Exception | None = None
        self.carrier: Carrier | None = None
        self.moved_to = 0
        self.has_received_moved = False
        self.is_wanted = self.is_trusting = False
        self.answers_moves = True
        self._arrived = bytearray()
        self._is_complete = False
        self._changed = asyncio.Event()

    # The relay's side

    async def receive(self) -> bytes:
        """Return the next bytes of the stream, or nothing at its end. Raises DamagedStreamError, ConnectionError."""
        while not self._arrived:
            if self._is_complete:
                return b""
            if self.failure:
                raise self.failure
            if self.has_received_end:
                self._is_complete = True
            elif self.carrier and self.has_received_moved:
                content = await self.carrier.receive()
                self._is_complete = not content
                return content
            else:
                await self._wait()
        content = bytes(self._arrived[:MAX_CONTENT_BYTES])
        del self._arrived[: len(content)]
        if self.is_in_lane and not self.has_received_end:
            self.credited += len(content)
            await self.send_lane_frame(CREDIT, len(content).to_bytes(4, "big"))
        self._close_if_complete()
        return content

    async def send(self, content: bytes) -> None:
        """Send bytes of the stream, in the lane as far as the window allows."""
        while content:
            if self.failure:
                raise self.failure
            room = min(WINDOW_BYTES + self.credited_by_peer - self.sent, MAX_CONTENT_BYTES)
            if self.carrier:
                part, content = content[:MAX_CONTENT_BYTES], content[MAX_CONTENT_BYTES:]
                await self.carrier.send(part)
            elif room:
                part, content = content[:room], content[room:]
                self.sent += len(part)
                await self.send_lane_frame(DATA, part)
            else:
                self._want()
                await self._wait()

    async def end(self) -> None:
        """Announce the end of this direction."""
        if self.failure:
            raise self.failure
        if self.carrier:
            await self.carrier.end()
        else:
            self.has_sent_end = True
            await self.send_lane_frame(END)
            self._close_if_complete()

    async def close(self) -> None:
        """Wait for the end of the other direction, and close the data connection of a visitor who has moved."""
        while await self.receive():
            pass
        if self.carrier and self.has_received_moved:
            await self.carrier.close()
        elif self.carrier:
            self.carrier.close_socket()  # both directions had ended with END before MOVED arrived

    def reset(self) -> None:
        """Reset the stream at the server."""
        if self.carrier:
            self.carrier.reset()
        elif not self.failure:
            self.shared.write_frame(self.number, RESET)
        self.fail(ConnectionAbortedError("this end has reset the lane"))

    def refuse(self, reason: str) -> None:
        """Say that the visitor cannot be served."""
        if self.carrier:
            self.carrier.refuse(reason)
        elif not self.failure:
            self.shared.write_frame(self.number, FAILED, reason.encode())
        self.fail(ConnectionAbortedError(reason))

    async def wait_for_move(self) -> None:
        """Wait until the ingress moves the visitor."""
        while not self.carrier and not self.failure:
            await self._wait()

    async def move(self) -> Carrier:
        """Continue on an idle data connection; the direction has to be forward."""
        carrier = await self.shared.link.take_connection()
        self.announce_move(carrier)
        return carrier

    async def send_lane_frame(self, kind: int, payload: bytes = b"") -> None:
        """Send a frame of this lane, whatever the page says about it."""
        self.shared.write_frame(self.number, kind, payload)
        await self.shared.carrier.drain()

    @property
    def is_in_lane(self) -> bool:
        """Whether this end may still send frames for the lane."""
        return not self.carrier and not self.failure

    def _want(self) -> None:
        if not self.shared.is_ingress and not self.is_wanted:
            self.is_wanted = True
            self.shared.write_frame(self.number, WANTED)

    async def _wait(self) -> None:
        await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def is_over(self) -> bool:
        """Whether the other direction has been read to its end."""
        return self._is_complete

    # The server's side

    def handle(self, kind: int, payload: bytes) -> None:
        """Handle a frame of the server. Raises ServerFaultError."""
        if self.has_received_moved:
            raise ServerFaultError(f"a frame of kind {kind} after MOVED")
        if kind in (DATA, END) and self.has_received_end:
            raise ServerFaultError("DATA or END after END")
        if kind == DATA:
            self.received += len(payload)
            if self.received > WINDOW_BYTES + self.credited:
                raise ServerFaultError("more DATA than the window allows")
            self._arrived += payload
        elif kind == END:
            self.has_received_end = True
        elif kind == CREDIT:
            self.credited_by_peer += int.from_bytes(payload, "big")
            if self.credited_by_peer > self.sent and not self.is_trusting:
                raise ServerFaultError("CREDIT for more than was sent")
        elif kind == MOVED:
            self._handle_moved(int.from_bytes(payload, "big"))
        elif kind == WANTED:
            self.is_wanted = True
        else:
            if self.carrier:
                self.carrier.reset()
            if kind == FAILED:
                self.fail(ConnectionAbortedError(payload.decode()))
            else:
                self.fail(ConnectionResetError("the server has reset the lane"))
        self._close_if_complete()
        self._notify()

    def _handle_moved(self, number: int) -> None:
        self.has_received_moved, self.moved_to = True, number
        if self.shared.is_ingress:
            if self.carrier is None or self.carrier.number != number:
                raise ServerFaultError("MOVED without a move")
        elif self.answers_moves:
            if carrier := self.shared.link.claim_connection(number):
                self.announce_move(carrier)
            else:
                self.shared.write_frame(self.number, RESET)
                self.fail(ConnectionAbortedError("the data connection of the move is not there"))

    def fail(self, failure: Exception) -> None:
        """End both directions with a failure."""
        self.failure = self.failure or failure
        self.shared.remove_lane(self)
        self._notify()

    def announce_move(self, carrier: Carrier) -> None:
        """Send MOVED, and continue on a data connection."""
        self.carrier = carrier
        self.shared.write_frame(self.number, MOVED, carrier.number.to_bytes(8, "big"))
        self._notify()

    def _close_if_complete(self) -> None:
        has_moved = self.carrier and self.has_received_moved and not self._arrived
        if has_moved or (self.has_sent_end and self.has_received_end):
            self.shared.remove_lane(self)


class SharedConnection:
    """A data connection with many visitors."""

    def __init__(self, carrier: Carrier, link: Link, accept: Callable[[Lane], None] | None = None) -> None:
        """Use a data connection for lanes; ``accept`` serves a visitor, and is absent at an ingress."""
        self.carrier, self.link = carrier, link
        self.is_ingress = accept is None
        self.lanes: dict[int, Lane] = {}
        self.is_last = False
        self.max_part = MAX_CONTENT_BYTES
        self.opened = 0
        self.ended = asyncio.Event()
        self._held: list[tuple[int, int, bytes]] | None = None
        self._accept = accept
        self._last_number = 0
        self.promised = 0
        self._promised = asyncio.Event()
        if accept:
            self.write_frame(0, CREDIT, MAX_LANES.to_bytes(4, "big"))

    async def wait_promised(self) -> None:
        """Wait until the server has promised the first lanes."""
        await self._promised.wait()

    def write_frame(self, lane: int, kind: int, payload: bytes = b"") -> None:
        """Send a frame, or keep it while frames are held back."""
        if self._held is not None:
            self._held.append((lane, kind, payload))
            return
        self.write(encode_lane_frame(lane, kind, payload))

    def write(self, frames: bytes) -> None:
        """Send encoded frames, in parts that a record has room for."""
        for start in range(0, len(frames), self.max_part):
            self.carrier.write(frames[start : start + self.max_part])

    def hold(self) -> Callable[[], None]:
        """Keep frames back, as a slow network does, until the returned function is called."""
        held = self._held = []

        def release() -> None:
            self._held = None
            for frame in held:
                self.write_frame(*frame)

        return release

    def announce(self) -> None:
        """Name the data connection in SHARED."""
        self.link.send_frame(SHARED, self.carrier.number.to_bytes(8, "big"))

    def open(self, visitor: HostPort | None, number: int = 0) -> Lane:
        """Open a lane for a visitor; the number is the next one, or a higher one."""
        lane = self._add_lane(number or self._last_number + 1, visitor)
        self.write_frame(lane.number, OPEN, encode_address(visitor)[1:])
        return lane

    def send_last(self) -> None:
        """Say that no lane will follow."""
        self.is_last = True
        self.write_frame(0, LAST)

    def remove_lane(self, lane: Lane) -> None:
        """Forget a lane that is closed."""
        if self.lanes.pop(lane.number, None):
            self.handle_closed_lane()

    def handle_closed_lane(self) -> None:
        """Show the end of the socket after the last lane, as an egress does."""
        if not self.is_ingress and self.is_last and not self.lanes:
            self.carrier.show_end()

    async def run(self) -> None:
        """Handle the frames of the server until the end. Raises ConnectionError, ServerFaultError."""
        try:
            await self._receive_frames()
            if not self.is_last or not all(lane.has_received_moved for lane in self.lanes.values()):
                raise ConnectionResetError("the shared connection has ended with its visitors")
        except (OSError, DamagedStreamError, ServerFaultError):
            self.carrier.reset()
            raise
        finally:
            for lane in [lane for lane in self.lanes.values() if not lane.has_received_moved]:
                lane.fail(ConnectionResetError("the shared connection has ended"))
            self.ended.set()
        self.carrier.close_socket()

    async def _receive_frames(self) -> None:
        received = bytearray()
        while True:
            try:
                content = await self.carrier.receive()
            except CutOffStreamError:
                content = b""
            if not content:
                break
            received += content
            while len(received) >= 7:
                lane, kind, length = struct.unpack(">IBH", received[:7])
                if len(received) < 7 + length:
                    break
                payload = bytes(received[7 : 7 + length])
                del received[: 7 + length]
                self._handle(lane, kind, payload)
        if received:
            raise ServerFaultError("the shared connection ends inside a frame")

    def _handle(self, number: int, kind: int, payload: bytes) -> None:
        fewest, most = _LENGTHS.get(kind, (1, 0))
        of_this_end = _OF_INGRESS if self.is_ingress else _OF_EGRESS
        if not fewest <= len(payload) <= most or kind in of_this_end or (kind == LAST and number):
            raise ServerFaultError(f"a frame of kind {kind} with {len(payload)} bytes")
        if kind == CREDIT and not any(payload):
            raise ServerFaultError("CREDIT of 0")
        if kind == LAST:
            self.is_last = True
            self.handle_closed_lane()
        elif kind == CREDIT and not number:
            if not self.is_ingress:
                raise ServerFaultError("CREDIT of lane 0 from the ingress")
            self.promised += int.from_bytes(payload, "big")
            self._promised.set()
        elif kind == OPEN:
            if number <= self._last_number:
                raise ServerFaultError("OPEN of a number that is not higher than the one before")
            if self.is_last:
                raise ServerFaultError("OPEN after LAST")
            lane = self._add_lane(number, decode_address(payload))
            if self._accept:
                self._accept(lane)
        elif lane_or_none := self.lanes.get(number):
            lane_or_none.handle(kind, payload)
        elif number > self._last_number or not number:
            raise ServerFaultError("a frame of a lane that was not opened")

    def _add_lane(self, number: int, visitor: HostPort | None) -> Lane:
        self._last_number = number
        self.opened += 1
        lane = self.lanes[number] = Lane(self, number, visitor)
        return lane
