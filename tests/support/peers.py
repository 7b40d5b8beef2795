"""Visitors and targets: the two outer ends of a tunnel, on blocking sockets and threads."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from tests.support.scale import GUARD_S, IS_FULL_SCALE, time_allowed

Address = tuple[str, int]
SOCKET_TIMEOUT_S = GUARD_S
"""Seconds after which a silent socket fails its test."""
_RETRY_INTERVAL_S = 0.01
_FILLED_AFTER_S = 0.2


def connect(address: Address, *, timeout: float = SOCKET_TIMEOUT_S, source: str = "") -> socket.socket:
    """Return a connected socket whose operations fail after ``timeout`` seconds."""
    sock = socket.create_connection(address, timeout, (source, 0) if source else None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def receive_all(sock: socket.socket) -> bytes:
    """Receive everything up to the end of the stream."""
    parts = []
    while part := sock.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def receive_exactly(sock: socket.socket, count: int) -> bytes:
    """Receive ``count`` bytes; fewer only if the stream ends."""
    parts = b""
    while len(parts) < count and (part := sock.recv(count - len(parts))):
        parts += part
    return parts


def exchange(address: Address, payload: bytes, *, timeout: float = SOCKET_TIMEOUT_S) -> bytes:
    """Return the answer to a payload and a half-close. The payload must fit the buffers on the way."""
    with connect(address, timeout=timeout) as sock:
        sock.sendall(payload)
        sock.shutdown(socket.SHUT_WR)
        return receive_all(sock)


def round_trip(sock: socket.socket, payload: bytes) -> bytes:
    """Send a payload and receive as many bytes."""
    sock.sendall(payload)
    return receive_exactly(sock, len(payload))


class VisitorFactory(Protocol):
    """Connects a new visitor."""

    def __call__(self, *, timeout: float) -> socket.socket: ...


def time_to_first_byte(where: Address | VisitorFactory, *, within: float) -> float:
    """Return the seconds until an echo comes back, retrying as an impatient user would."""
    visit: VisitorFactory = partial(connect, where) if isinstance(where, tuple) else where
    limit, attempt_timeout = time_allowed(within), 0.5 if IS_FULL_SCALE else 3.0
    began = time.monotonic()
    while (left := began + limit - time.monotonic()) > 0:
        token = os.urandom(8)
        with contextlib.suppress(OSError), visit(timeout=min(left, attempt_timeout)) as sock:
            if round_trip(sock, token) == token:
                return time.monotonic() - began
        time.sleep(_RETRY_INTERVAL_S)
    raise AssertionError(f"no echo within {limit:g} s")


def read_stream_end(sock: socket.socket) -> str:
    """Read to the end of a stream: ``end`` for an empty one, ``reset``, or the number of bytes before the end."""
    try:
        rest = receive_all(sock)
    except ConnectionResetError:
        return "reset"
    return f"{len(rest)} bytes" if rest else "end"


def echo(sock: socket.socket) -> None:
    """Send back every byte, then the end of the stream."""
    while part := sock.recv(1 << 16):
        sock.sendall(part)
    sock.shutdown(socket.SHUT_WR)


class Target:
    """A listening socket whose connections are served by one thread each."""

    def __init__(
        self, serve: Callable[[socket.socket], None], host: str = "127.0.0.1", listener: socket.socket | None = None
    ) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = listener or socket.create_server((host, 0), family=family, backlog=1024)
        self.serve = serve
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.host = host
        self.port: int = self._listener.getsockname()[1]
        self.accepted = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def address(self) -> Address:
        """The address it listens on."""
        return self.host, self.port

    @property
    def active(self) -> int:
        """The number of connections being served."""
        with self._lock:
            return len(self._open)

    def close(self) -> None:
        """Stop listening and shut down every connection."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(SOCKET_TIMEOUT_S)
        self._listener.close()
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.settimeout(SOCKET_TIMEOUT_S)
            with self._lock:
                self.accepted += 1
                self._open.add(sock)
            threading.Thread(target=self._run, args=(sock,), daemon=True).start()

    def _run(self, sock: socket.socket) -> None:
        try:
            with sock, contextlib.suppress(OSError):
                self.serve(sock)
        finally:
            with self._lock:
                self._open.discard(sock)


class BlackHole:
    """An address that never answers a SYN: its backlog is full and nothing accepts."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=0)
        self.host, self.port = "127.0.0.1", self._listener.getsockname()[1]
        self._fillers: list[socket.socket] = []
        while len(self._fillers) < 16:
            sock = socket.socket()
            sock.setblocking(False)
            self._fillers.append(sock)
            with contextlib.suppress(BlockingIOError):
                sock.connect((self.host, self.port))
            if not select.select([], [sock], [], _FILLED_AFTER_S)[1]:
                return
        raise AssertionError("the backlog never filled")

    def close(self) -> None:
        """Answer again, with a refusal."""
        for sock in self._fillers:
            sock.close()
        self._listener.close()
