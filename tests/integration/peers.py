"""Visitors and targets: the two outer ends of a tunnel, on raw sockets and threads."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from tests.scale import FULL, GUARD, allowed

Address = tuple[str, int]
PATIENCE = GUARD
"""Seconds after which a silent socket fails its test."""


def connect(address: Address, *, timeout: float = PATIENCE, source: str = "") -> socket.socket:
    """A connected socket that fails rather than waits for ever."""
    sock = socket.create_connection(address, timeout, (source, 0) if source else None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def receive_all(sock: socket.socket) -> bytes:
    """Everything up to the end of the stream."""
    parts = []
    while part := sock.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def receive(sock: socket.socket, count: int) -> bytes:
    """Exactly ``count`` bytes, fewer only at the end of the stream."""
    parts = b""
    while len(parts) < count and (part := sock.recv(count - len(parts))):
        parts += part
    return parts


def exchange(address: Address, payload: bytes, *, timeout: float = PATIENCE) -> bytes:
    """What comes back for a payload and a half-close. The payload fits the buffers on the way."""
    with connect(address, timeout=timeout) as sock:
        sock.sendall(payload)
        sock.shutdown(socket.SHUT_WR)
        return receive_all(sock)


def ask(sock: socket.socket, payload: bytes) -> bytes:
    """As many bytes back as were sent."""
    sock.sendall(payload)
    return receive(sock, len(payload))


class Connects(Protocol):
    """How to become a visitor."""

    def __call__(self, *, timeout: float) -> socket.socket: ...


def first_byte(where: Address | Connects, *, within: float) -> float:
    """Seconds until an echo comes back, trying anew as an impatient user would."""
    visit: Connects = partial(connect, where) if isinstance(where, tuple) else where
    limit, patience = allowed(within), 0.5 if FULL else 3.0
    began = time.monotonic()
    while (left := began + limit - time.monotonic()) > 0:
        token = os.urandom(8)
        with contextlib.suppress(OSError), visit(timeout=min(left, patience)) as sock:
            if ask(sock, token) == token:
                return time.monotonic() - began
        time.sleep(0.01)
    raise AssertionError(f"no echo within {limit:g} s")


def reset(sock: socket.socket) -> None:
    """Close so that the other side sees a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def ending(sock: socket.socket) -> str:
    """How a silent stream ends: ``end`` or ``reset``."""
    try:
        rest = receive_all(sock)
    except ConnectionResetError:
        return "reset"
    return f"{len(rest)} bytes" if rest else "end"


def echo(sock: socket.socket) -> None:
    """Send back what comes, to the end."""
    while part := sock.recv(1 << 16):
        sock.sendall(part)
    sock.shutdown(socket.SHUT_WR)


class Target:
    """A listening socket whose connections are served by threads."""

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
        """Where it listens."""
        return self.host, self.port

    @property
    def active(self) -> int:
        """Connections that are being served."""
        with self._lock:
            return len(self._open)

    def close(self) -> None:
        """Stop listening and cut every connection."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
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
            sock.settimeout(PATIENCE)
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
    """An address whose kernel never answers: its backlog is full and nobody accepts."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=0)
        self.host, self.port = "127.0.0.1", self._listener.getsockname()[1]
        self._stuffing: list[socket.socket] = []
        while len(self._stuffing) < 16:
            sock = socket.socket()
            sock.setblocking(False)
            self._stuffing.append(sock)
            with contextlib.suppress(BlockingIOError):
                sock.connect((self.host, self.port))
            if not select.select([], [sock], [], 0.2)[1]:
                return
        raise AssertionError("the backlog never filled")

    def close(self) -> None:
        """Answer again, with a refusal."""
        for sock in self._stuffing:
            sock.close()
        self._listener.close()
