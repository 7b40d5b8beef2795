"""Pairs of connected sockets, and resets, for tests that work on sockets directly."""

from __future__ import annotations

import asyncio
import socket
import struct

from tests.support.waiting import run_loop_turns
from tunnel.runtime.sockets import set_stream_options

_SMALL_BUFFER_BYTES = 4096


def tcp_pair(*, small: bool = False) -> tuple[socket.socket, socket.socket]:
    """Return both ends of a loopback connection, non-blocking; ``small`` limits their buffers to a few kilobytes."""
    with socket.socket() as listener:
        if small:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER_BYTES)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        ours = socket.socket()
        if small:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER_BYTES)
        ours.connect(listener.getsockname())
        theirs, _ = listener.accept()
    for sock in (ours, theirs):
        sock.setblocking(False)
        set_stream_options(sock)
        if small:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SMALL_BUFFER_BYTES)
    return ours, theirs


def close_with_reset(sock: socket.SocketType) -> None:
    """Close the socket so that the peer receives a RST (SO_LINGER with a timeout of 0 s)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def close_listener(server: asyncio.Server) -> None:
    """Stop accepting, let what was accepted so far become connections, then close the listening sockets.

    ``Server.close`` alone loses a connection that was accepted in the same turn: until Python 3.12, its transport
    fails at ``Server._attach``, and its socket stays open.
    """
    loop = asyncio.get_running_loop()
    for listener in server.sockets:
        loop.remove_reader(listener.fileno())
    await run_loop_turns(10)  # a connection that was accepted in the last turn becomes a task after four
    server.close()
