"""A TCP proxy in front of a broker that can hold all data back or break its connections."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading

from tests.support.peers import Address, connect


class BrokerProxy:
    """A TCP proxy on loopback whose behaviour may change at any moment."""

    def __init__(self, upstream: Address) -> None:
        self.is_flowing = threading.Event()
        """set while bytes pass; while it is clear, the bytes of connections that close are lost"""
        self.is_flowing.set()
        self.accepted = 0
        """number of connections accepted so far"""
        self._upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """The URL of the broker through this proxy."""
        return f"mqtt://127.0.0.1:{self.port}"

    def break_connections(self) -> None:
        """Shut down all open connections."""
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop listening and break all connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.break_connections()
        self.is_flowing.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._proxy, args=(near,), daemon=True).start()

    def _proxy(self, near: socket.socket) -> None:
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
            if not data and not self.is_flowing.is_set():
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
                self.is_flowing.wait()
                if not data:
                    break
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


class OldBroker(BrokerProxy):
    """A broker that speaks version 3.1.1 only: it answers a CONNECT of version 5 with ``refusal`` and hangs up."""

    def __init__(self, upstream: Address, refusal: bytes = b"") -> None:
        self._refusal = refusal
        super().__init__(upstream)

    def _proxy(self, near: socket.socket) -> None:
        # The level of the protocol is byte 9 where the length of CONNECT takes one byte, byte 10 where it takes two.
        head = near.recv(11, socket.MSG_PEEK | socket.MSG_WAITALL)
        if head[head.index(b"MQTT") + 4] == 5:
            with contextlib.suppress(OSError), near:
                near.sendall(self._refusal)
                near.recv(1 << 16)
            return
        super()._proxy(near)
