"""Many quiet connections, and the numbers of a process under them, at a cost that leaves the machine to the product."""

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

from tests.integration.peers import Address, receive

_TICKS = os.sysconf("SC_CLK_TCK")


def want_descriptors(count: int) -> None:
    """Let this process have at least so many; root may, others get what the system lets them have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (count, max(hard, count)))
        except (OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def descriptors(pid: int) -> int:
    """How many a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208  names are all that is wanted


def cpu_seconds(pid: int) -> float:
    """What a process has used of processors so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def gulp(sock: socket.socket) -> None:
    """A target that takes what ``pour`` sends, and says when it has all of it."""
    room = memoryview(bytearray(1 << 18))
    while head := receive(sock, 8):
        (left,) = struct.unpack("!Q", head)
        while left and (got := sock.recv_into(room, min(left, len(room)))):
            left -= got
        sock.sendall(b"k")


def pour(sock: socket.socket, size: int) -> float:
    """Seconds until so many bytes have arrived at the other end."""
    block = bytes(1 << 18)
    began = time.monotonic()
    sock.sendall(struct.pack("!Q", size))
    for _ in range(size // len(block)):
        sock.sendall(block)
    assert receive(sock, 1) == b"k"
    return time.monotonic() - began


class Crowd:
    """Echoes whatever comes, on any number of connections, from one thread: a target without a thread for each."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._listener.setblocking(False)
        self.host, self.port = "127.0.0.1", int(self._listener.getsockname()[1])
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._bell, self._rope = socket.socketpair()
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def address(self) -> Address:
        return self.host, self.port

    def close(self) -> None:
        """End all."""
        self._rope.close()
        self._thread.join(10)

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is self._bell:
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
