"""The control channel: frames over TLS over one TCP connection, without asyncio's transports."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from tunnel.model.errors import TunnelError
from tunnel.protocol.errors import ProtocolError
from tunnel.protocol.frame_codec import MIN_FRAME_BYTES, Frame, FrameDecoder
from tunnel.runtime import sockets
from tunnel.runtime.reactor import HANGUP, READABLE, WRITABLE
from tunnel.runtime.resolver import has_local_address
from tunnel.runtime.tls import MAX_HANDSHAKE_BYTES, TlsError, TlsSession

if TYPE_CHECKING:
    from tunnel.runtime.reactor import Reactor

_BYTES_PER_TURN: Final = 1 << 13
"""Read in one turn. A peer that sends much must not delay the other tunnels: 1,000 small frames take milliseconds."""
_PENDING_READ_BYTES: Final = 4096  # in one turn, before the peer has authenticated: hundreds may send at once
_MAX_UNREAD_FRAMES: Final = 16  # kept until they are wanted; the rest stays in the kernel and stops the peer
MAX_UNSENT_BYTES: Final = 1 << 22
"""A peer that leaves so much unread is gone, whatever the kernel reports."""


class ChannelLostError(TunnelError):
    """The control channel is closed; the message is the reason."""


class FrameReceiver(Protocol):
    """Receives the frames of a channel once the handshake is complete."""

    def on_frames(self, received: list[Frame]) -> None:
        """Handle frames that arrived together, in order. A ProtocolError raised here closes the channel."""

    def on_closed(self, reason: str) -> None:
        """Handle the end of the channel, which is closed."""

    def on_handler_error(self, error: Exception) -> None:
        """Handle a defect in ``on_frames``."""


class ControlChannel:
    """One end of a control channel. Owns its socket."""

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.SocketType,
        session: TlsSession,
        read_size: int,
        first: bytes = b"",
        *,
        max_unsent_bytes: int = MAX_UNSENT_BYTES,
        max_pending_bytes: int = MAX_HANDSHAKE_BYTES,
    ) -> None:
        """``sock`` is registered with the reactor already; ``first`` are bytes that were read from it.

        ``max_pending_bytes``: what the peer may send before ``note_authenticated``.
        """
        self._reactor = reactor
        self._sock = sock
        self._session = session
        self._read_size = read_size
        self._max_unsent_bytes = max_unsent_bytes
        self._pending_bytes_left: int | None = max_pending_bytes - len(first)  # None once the peer is authenticated
        self._is_paused = False  # input is left unread, in the kernel and in the session
        self._decoder = FrameDecoder()
        self._frames: deque[Frame] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._receiver: FrameReceiver | None = None
        self._unsent = bytearray()  # each turn may append to megabytes: never copied as a whole
        self._peer_closed = False
        self.closed_reason: str | None = None
        """why the channel is closed; None while it is open"""
        self.peer = sockets.format_peer(sock)
        self.local = sockets.format_address(sock.getsockname())
        session.receive_data(first)
        reactor.set_handler(sock, self._ready)

    # --- handshake ------------------------------------------------------------------------------------------------

    async def secure(self) -> bytes:
        """Complete the TLS handshake; the peer's certificate as DER. Raises ChannelLostError."""
        self._continue_handshake()
        if self.closed_reason is None:
            self._peer_closed = True  # the previous owner of the socket may have received the hang-up event
            self._read()
        while not self._session.is_established:
            await self._wait_for_change()
        return self._session.peer_certificate()

    async def receive(self) -> Frame:
        """The next frame of the handshake. Raises ChannelLostError."""
        while not self._frames:
            await self._wait_for_change()
        frame = self._frames.popleft()
        self._resume()
        return frame

    def note_authenticated(self) -> None:
        """Let the peer send without a limit in all: its proof was right."""
        self._pending_bytes_left = None

    def set_receiver(self, receiver: FrameReceiver) -> None:
        """Pass frames to ``receiver`` from now on; those that arrived before, and a loss, are passed at once.

        The peer has authenticated.
        """
        self.note_authenticated()
        reason = self.closed_reason
        self._receiver = receiver
        frames = list(self._frames)
        self._frames.clear()
        try:
            receiver.on_frames(frames)
        except ProtocolError as error:
            self.close(str(error))
        if reason is not None:
            receiver.on_closed(reason)
        self._resume()

    # --- open -----------------------------------------------------------------------------------------------------

    def send(self, frames: bytes) -> None:
        """Send frames at once, with one write. Does nothing when the channel is closed."""
        if self.closed_reason is not None:
            return
        try:
            self._session.write(frames)
        except TlsError as error:
            self.close(str(error))
            return
        self._write(self._session.data_to_send())

    def has_local_address(self) -> bool:
        """Whether this host still has the address from which the channel was made."""
        try:
            return has_local_address(self._sock.getsockname())
        except OSError:  # closed
            return True

    def min_round_trip_s(self) -> float | None:
        """The shortest round trip of its segments of late, as the kernel has measured it; None if it is closed."""
        return None if self.closed_reason is not None else sockets.min_round_trip_s(self._sock)

    def set_read_size(self, size: int) -> None:
        """Read ``size`` bytes at once from now on."""
        self._read_size = size

    def on_handler_error(self, error: Exception) -> None:
        """Close the channel because of a defect in one of its handlers, and report it to the receiver."""
        receiver = self._receiver
        self.close("a defect in this program")
        if receiver is not None:
            receiver.on_handler_error(error)

    def check_open(self) -> None:
        """Raise ChannelLostError if the channel is closed."""
        if self.closed_reason is not None:
            raise ChannelLostError(self.closed_reason)

    async def _wait_for_change(self) -> None:
        self.check_open()
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake_waiter(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self, reason: str) -> None:
        """Close the socket. Harmless when closed."""
        if self.closed_reason is not None:
            return
        self.closed_reason = reason
        self._reactor.close(self._sock)
        self._wake_waiter()
        if self._receiver is not None:
            self._receiver.on_closed(reason)

    # --- bytes ----------------------------------------------------------------------------------------------------

    def _ready(self, events: int) -> None:
        if events & HANGUP:
            self._peer_closed = True
        if events & WRITABLE and self._unsent:
            self._write_unsent()
        if self.closed_reason is None and (events & READABLE or not events):
            self._read()

    def _read(self) -> None:
        budget = _BYTES_PER_TURN
        while budget > 0:
            if self._is_paused:
                return
            size = self._read_size if self._pending_bytes_left is None else _PENDING_READ_BYTES
            try:
                data = self._sock.recv(size)
            except BlockingIOError:
                self._peer_closed = False  # or this read had returned the end
                return
            except OSError as error:
                self.close(sockets.describe_error(error))
                return
            if not data:
                self.close("the other end closed the connection")
                return
            if self._pending_bytes_left is not None and not self._take_pending_bytes(len(data)):
                return
            self._session.receive_data(data)
            self._process_input_or_close()
            if self.closed_reason is not None or (len(data) < size and not self._peer_closed):
                return
            budget -= len(data) if self._pending_bytes_left is None else _BYTES_PER_TURN
        self._reactor.call_again(self._ready)

    def _take_pending_bytes(self, count: int) -> bool:
        """Count bytes that came before the peer has authenticated; return whether there may be so many."""
        self._pending_bytes_left = (self._pending_bytes_left or 0) - count
        if self._pending_bytes_left < 0:
            self.close("the other end sent too many bytes before it had authenticated")
            return False
        return True

    def _process_input_or_close(self) -> None:
        try:
            self._process_input()
        except (ProtocolError, TlsError) as error:
            self._write(self._session.data_to_send())  # a TLS alert, if there is one
            self.close(str(error))

    def _process_input(self) -> None:
        if not self._session.is_established:
            self._continue_handshake()
            if not self._session.is_established:
                return
        session, scratch = self._session, self._reactor.scratch
        while self._receiver is not None and session.has_input and (got := session.read_into(scratch)):
            self._receiver.on_frames(self._decoder.feed(bytes(scratch[:got])))
            if self.closed_reason is not None:
                return
        while self._receiver is None and (view := self._unread_room()) and (got := session.read_into(view)):
            self._frames.extend(self._decoder.feed(bytes(view[:got])))
            self._wake_waiter()
        if session.bytes_to_send:
            self._write(session.data_to_send())
        if session.peer_closed:
            self.close("the other end closed the connection")

    def _unread_room(self) -> memoryview:
        """Where to read plaintext without a receiver: no more than fits the frames that may stay unread."""
        room = _MAX_UNREAD_FRAMES - len(self._frames)
        self._is_paused = room <= 0
        return self._reactor.scratch[: max(0, room) * MIN_FRAME_BYTES]

    def _resume(self) -> None:
        """Continue to read what was left unread, in the next turn."""
        if self._is_paused and self.closed_reason is None and len(self._frames) < _MAX_UNREAD_FRAMES:
            self._is_paused = False
            self._reactor.call_again(self._read_on)

    def _read_on(self, _events: int) -> None:
        if self.closed_reason is None:
            self._process_input_or_close()
        if self.closed_reason is None:
            self._read()

    def _continue_handshake(self) -> None:
        try:
            is_complete = self._session.do_handshake()
        except TlsError as error:
            self._write(self._session.data_to_send())
            self.close(str(error))
            return
        self._write(self._session.data_to_send())
        if is_complete:
            self._wake_waiter()

    def _write(self, data: bytes) -> None:
        if not data or self.closed_reason is not None:
            return
        if self._unsent:
            self._unsent += data  # the reactor reports when the socket is writable again
        else:
            self._unsent += data[self._send(data) :]
        if len(self._unsent) > self._max_unsent_bytes:
            self.close("the other end reads no control frames")

    def _write_unsent(self) -> None:
        with memoryview(self._unsent) as unsent:
            sent = self._send(unsent)
        del self._unsent[:sent]

    def _send(self, data: bytes | memoryview) -> int:
        """Send what the kernel accepts now; return how many bytes need no other attempt."""
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self.close(sockets.describe_error(error))
            return len(data)
