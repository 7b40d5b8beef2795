"""The way to a broker, or to anything else that speaks TCP: it can stand still, or break again and again."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading

from tests.integration.peers import Address, connect


class Road:
    """A TCP proxy on loopback. Its manners may change at any moment."""

    def __init__(self, upstream: Address) -> None:
        self.way = threading.Event()
        """whether bytes go through; those of a connection that is given up in the meantime are lost"""
        self.way.set()
        self.taken = 0
        """connections so far"""
        self._upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """For a broker at its end."""
        return f"mqtt://127.0.0.1:{self.port}"

    def kick(self) -> None:
        """Break every connection there is."""
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End all."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.kick()
        self.way.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.taken += 1
            threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        with contextlib.suppress(OSError), near, connect(self._upstream) as far:
            near.settimeout(None)
            far.settimeout(None)
            with self._lock:
                self._open |= {near, far}
            try:
                back = threading.Thread(target=self._pump, args=(far, near), daemon=True)
                back.start()
                self._pump(near, far)
                back.join()
            finally:
                with self._lock:
                    self._open -= {near, far}

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        waiting: queue.Queue[bytes] = queue.Queue()
        sender = threading.Thread(target=self._send, args=(waiting, sink), daemon=True)
        sender.start()
        data = b"more"
        while data:
            try:
                data = source.recv(1 << 16)
            except OSError:
                data = b""
            if not data and not self.way.is_set():
                with waiting.mutex:
                    waiting.queue.clear()
                with contextlib.suppress(OSError):
                    sink.shutdown(socket.SHUT_RDWR)
            waiting.put(data)
        sender.join()

    def _send(self, waiting: queue.Queue[bytes], sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                data = waiting.get()
                self.way.wait()
                if not data:
                    break
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)
