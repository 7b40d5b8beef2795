"""The control channel: frames over TLS over one TCP connection, without asyncio's transports."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from tunnel.model.errors import TunnelError
from tunnel.protocol.errors import ProtocolError
from tunnel.protocol.frames import Frame, FrameDecoder
from tunnel.runtime import sockets
from tunnel.runtime.reactor import HANGUP, READABLE, WRITABLE
from tunnel.runtime.tls import TlsError, TlsSession

if TYPE_CHECKING:
    from tunnel.runtime.reactor import Reactor

_READS_PER_TURN: Final = 64  # a peer that sends much must not starve the other tunnels
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
    ) -> None:
        """``sock`` is registered with the reactor already; ``first`` are bytes that were read from it."""
        self._reactor = reactor
        self._sock = sock
        self._session = session
        self._read_size = read_size
        self._max_unsent_bytes = max_unsent_bytes
        self._decoder = FrameDecoder()
        self._frames: deque[Frame] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._receiver: FrameReceiver | None = None
        self._is_secure = False
        self._unsent: bytes | memoryview = b""
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
            self._peer_closed = False
        while not self._is_secure:
            await self._wait_for_change()
        return self._session.peer_certificate()

    async def receive(self) -> Frame:
        """The next frame of the handshake. Raises ChannelLostError."""
        while not self._frames:
            await self._wait_for_change()
        return self._frames.popleft()

    def set_receiver(self, receiver: FrameReceiver) -> None:
        """Pass frames to ``receiver`` from now on; those that arrived before, and a loss, are passed at once."""
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

    def set_read_size(self, size: int) -> None:
        """Read ``size`` bytes at once from now on."""
        self._read_size = size

    def on_handler_error(self, error: Exception) -> None:
        """Close the channel because of a defect in one of its handlers, and report it to the receiver."""
        receiver = self._receiver
        self.close("a defect in this program")
        if receiver is not None:
            receiver.on_handler_error(error)

    async def _wait_for_change(self) -> None:
        if self.closed_reason is not None:
            raise ChannelLostError(self.closed_reason)
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
            self._write(self._unsent)
        if self.closed_reason is None and (events & READABLE or not events):
            self._read()

    def _read(self) -> None:
        for _ in range(_READS_PER_TURN):
            try:
                data = self._sock.recv(self._read_size)
            except BlockingIOError:
                return
            except OSError as error:
                self.close(sockets.describe_error(error))
                return
            if not data:
                self.close("the other end closed the connection")
                return
            self._session.receive_data(data)
            try:
                self._process_input()
            except (ProtocolError, TlsError) as error:
                self._write(self._session.data_to_send())  # a TLS alert, if there is one
                self.close(str(error))
            if self.closed_reason is not None or (len(data) < self._read_size and not self._peer_closed):
                return
        self._reactor.call_again(self._ready)

    def _process_input(self) -> None:
        if not self._is_secure:
            self._continue_handshake()
            if not self._is_secure:
                return
        view = self._reactor.scratch
        while got := self._session.read_into(view):
            frames = self._decoder.feed(bytes(view[:got]))
            if self._receiver is not None:
                self._receiver.on_frames(frames)
            else:
                self._frames.extend(frames)
                self._wake_waiter()
            if self.closed_reason is not None:
                return
        if self._session.bytes_to_send:
            self._write(self._session.data_to_send())
        if self._session.peer_closed:
            self.close("the other end closed the connection")

    def _continue_handshake(self) -> None:
        is_complete = False
        try:
            is_complete = self._session.do_handshake()
        except TlsError as error:
            self._write(self._session.data_to_send())
            self.close(str(error))
            return
        self._write(self._session.data_to_send())
        if is_complete and not self._is_secure:
            self._is_secure = True
            self._wake_waiter()

    def _write(self, data: bytes | memoryview) -> None:
        if self._unsent and data is not self._unsent:
            data = bytes(self._unsent) + bytes(data)
        if not data or self.closed_reason is not None:
            return
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._unsent = b""
            self.close(sockets.describe_error(error))
            return
        self._unsent = memoryview(data)[sent:] if sent < len(data) else b""
        if len(self._unsent) > self._max_unsent_bytes:
            self.close("the other end reads no control frames")
