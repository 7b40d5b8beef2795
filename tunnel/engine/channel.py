"""The control channel: frames over one TLS connection, batched on the way out, in order on the way in."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from tunnel.protocol.frames import Decoder, Frame, ProtocolError
from tunnel.runtime import sockets
from tunnel.runtime.reactor import ENDING, READ, WRITE
from tunnel.runtime.tls import TlsError, TlsSession

if TYPE_CHECKING:
    from tunnel.runtime.reactor import Reactor

_READS: Final = 64  # in one turn: a talkative other end must not starve the tunnels beside it
_UNSENT_LIMIT: Final = 1 << 22  # bytes; who takes nothing for so long is gone, whatever the kernel says


class ChannelLostError(Exception):
    """The control channel is over; the message says why."""


class Listener(Protocol):
    """Who hears the frames of a channel once the handshake is over."""

    def heard(self, received: list[Frame]) -> None:
        """Frames that arrived together, in order. A ProtocolError out of this ends the channel."""

    def lost(self, reason: str) -> None:
        """The channel is over and closed."""

    def crashed(self, error: Exception) -> None:
        """A defect while frames were handled."""


class Channel:
    """One end of a control channel. Owns its socket."""

    def __init__(
        self, reactor: Reactor, sock: socket.SocketType, session: TlsSession, read_size: int, first: bytes = b""
    ) -> None:
        """``sock`` is watched by the reactor already; ``first`` are bytes that were read from it."""
        self._reactor = reactor
        self._sock = sock
        self._session = session
        self._read_size = read_size
        self._decoder = Decoder()
        self._frames: deque[Frame] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._listener: Listener | None = None
        self._secure = False
        self._out: list[bytes] = []
        self._unsent: bytes | memoryview = b""
        self._flush_due = False
        self._hung = False
        self.loss: str | None = None
        """why the channel is over, or None while it is not"""
        self.peer = sockets.peer_of(sock)
        self.local = sockets.show(sock.getsockname())
        session.feed(first)
        reactor.hand_over(sock, self._ready)

    async def secure(self) -> bytes:
        """Complete the TLS handshake; the other end's certificate as DER. Raises ChannelLostError."""
        self._handshake()
        if self.loss is None:
            self._hung = True  # an end that came with the first bytes was told to whoever had the socket before
            self._read()
            self._hung = False
        while not self._secure:
            await self._news()
        return self._session.certificate()

    async def receive(self) -> Frame:
        """The next frame of the handshake. Raises ChannelLostError."""
        while not self._frames:
            await self._news()
        return self._frames.popleft()

    def listen(self, listener: Listener) -> None:
        """From now on frames go to ``listener``; what came before, frames and the loss of the channel, is told now."""
        over = self.loss
        self._listener = listener
        frames = list(self._frames)
        self._frames.clear()
        try:
            listener.heard(frames)
        except ProtocolError as error:
            self._lose(str(error))
        if over is not None:
            listener.lost(over)

    def send(self, frame: bytes) -> None:
        """Send a frame together with all others of this turn."""
        if self.loss is None:
            self._out.append(frame)
            if not self._flush_due:
                self._flush_due = True
                self._reactor.defer(self._flush)

    def close(self, reason: str) -> None:
        """End the channel: what was given to ``send`` before is tried once more, then the socket is closed."""
        if self.loss is None:
            self._flush()
        self._lose(reason)

    def set_read_size(self, size: int) -> None:
        """Read so many bytes at once from now on."""
        self._read_size = size

    def crashed(self, error: Exception) -> None:
        """A defect in a handler of this channel."""
        listener = self._listener
        self._lose("a defect in this program")
        if listener is not None:
            listener.crashed(error)

    async def _news(self) -> None:
        if self.loss is not None:
            raise ChannelLostError(self.loss)
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _lose(self, reason: str) -> None:
        if self.loss is not None:
            return
        self.loss = reason
        self._out.clear()
        self._reactor.close(self._sock)
        self._wake()
        if self._listener is not None:
            self._listener.lost(reason)

    def _ready(self, events: int) -> None:
        if events & ENDING:
            self._hung = True
        if events & WRITE and self._unsent:
            self._push(self._unsent)
        if self.loss is None and (events & READ or not events):
            self._read()

    def _read(self) -> None:
        for _ in range(_READS):
            try:
                data = self._sock.recv(self._read_size)
            except BlockingIOError:
                return
            except OSError as error:
                self._lose(sockets.describe(error))
                return
            if not data:
                self._lose("the other end closed the connection")
                return
            self._session.feed(data)
            try:
                self._digest()
            except (ProtocolError, TlsError) as error:
                self._push(self._session.take())  # the alert, if there is one, tells the other end
                self._lose(str(error))
            if self.loss is not None or (len(data) < self._read_size and not self._hung):
                return
        self._reactor.again(self._ready)

    def _digest(self) -> None:
        if not self._secure:
            self._handshake()
            if not self._secure:
                return
        view = self._reactor.view
        while got := self._session.read_into(view):
            frames = self._decoder.feed(bytes(view[:got]))
            if self._listener is not None:
                self._listener.heard(frames)
            else:
                self._frames.extend(frames)
                self._wake()
            if self.loss is not None:
                return
        if self._session.pending_out:
            self._push(self._session.take())
        if self._session.closed:
            self._lose("the other end closed the connection")

    def _handshake(self) -> None:
        done = False
        try:
            done = self._session.handshake()
        except TlsError as error:
            self._push(self._session.take())
            self._lose(str(error))
            return
        self._push(self._session.take())
        if done and not self._secure:
            self._secure = True
            self._wake()

    def _flush(self) -> None:
        self._flush_due = False
        if self._out and self.loss is None:
            frames, self._out = self._out, []
            try:
                self._session.write(b"".join(frames))
            except TlsError as error:
                self._lose(str(error))
                return
            self._push(self._session.take())

    def _push(self, data: bytes | memoryview) -> None:
        if self._unsent and data is not self._unsent:
            data = bytes(self._unsent) + bytes(data)
        if not data or self.loss is not None:
            return
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._unsent = b""
            self._lose(sockets.describe(error))
            return
        self._unsent = memoryview(data)[sent:] if sent < len(data) else b""
        if len(self._unsent) > _UNSENT_LIMIT:
            self._lose("the other end takes no more signals")
