"""Targets and senders for many connections or bulk data that use little CPU themselves, and readings of a process."""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import socket
import struct
import threading
import time
from pathlib import Path

from tests.support.peers import Address, receive_exactly

_TICKS = os.sysconf("SC_CLK_TCK")


def raise_descriptor_limit(count: int) -> None:
    """Raise the descriptor limit of this process to ``count``, or to the hard limit without root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (count, max(hard, count)))
        except (OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def count_descriptors(pid: int) -> int:
    """Return the number of open descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208  only the names are needed


def cpu_seconds(pid: int) -> float:
    """Return the CPU time in seconds that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def serve_bulk(sock: socket.socket) -> None:
    """Serve ``send_bulk``: receive everything, then acknowledge it with one byte."""
    room = memoryview(bytearray(1 << 18))
    while head := receive_exactly(sock, 8):
        (left,) = struct.unpack("!Q", head)
        while left and (got := sock.recv_into(room, min(left, len(room)))):
            left -= got
        sock.sendall(b"k")


def send_bulk(sock: socket.socket, size: int) -> float:
    """Send ``size`` bytes; return the seconds until their acknowledgement."""
    block = bytes(1 << 18)
    began = time.monotonic()
    sock.sendall(struct.pack("!Q", size))
    for _ in range(size // len(block)):
        sock.sendall(block)
    assert receive_exactly(sock, 1) == b"k"
    return time.monotonic() - began


class SelectorEchoTarget:
    """An echo target for any number of connections with a single thread."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._listener.setblocking(False)
        self.host, self.port = "127.0.0.1", int(self._listener.getsockname()[1])
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._stop_receiver, self._stop_sender = socket.socketpair()
        self._selector.register(self._stop_receiver, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def address(self) -> Address:
        return self.host, self.port

    def close(self) -> None:
        """Close all connections and end the thread."""
        self._stop_sender.close()
        self._thread.join(10)

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is self._stop_receiver:
                    for other in [key.fileobj for key in self._selector.get_map().values()]:
                        assert isinstance(other, socket.socket)
                        other.close()
                    self._selector.close()
                    return
                if sock is self._listener:
                    self._accept()
                else:
                    self._answer(sock)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                sock, _ = self._listener.accept()
                self._selector.register(sock, selectors.EVENT_READ)

    def _answer(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(1 << 16)
        except OSError:
            data = b""
        if data:
            sock.sendall(data)
        else:
            self._selector.unregister(sock)
            sock.close()
