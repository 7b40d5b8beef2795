"""Floods of connections from a process of their own, so that they take no time from the measuring process.

``python -m tests.faults.floods HOST PORT HEX RATE SOURCE…``: RATE connections a second, from each source address in
turn, that send the bytes HEX and stay open until the other end closes them. Ends with SIGTERM.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from tests.support.peers import Address
from tests.support.processes import ROOT
from tunnel.runtime.tls import TlsSession, pinned_context

_MAX_OPEN = 2048
_BATCHES_PER_S = 100


def client_hello() -> bytes:
    """The first bytes of a TLS client."""
    session = TlsSession(pinned_context(), server_side=False)
    session.do_handshake()
    return session.data_to_send()


class Flood:
    """A flood as a context manager; ``sent`` is the number of connections, once it has ended."""

    def __init__(self, address: Address, payload: bytes, rate: int, sources: Sequence[str] = ("",)) -> None:
        self.sent = 0
        arguments = [*map(str, address), payload.hex(), str(rate), *sources]
        self._process = subprocess.Popen(
            (sys.executable, "-m", "tests.faults.floods", *arguments),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._process.terminate()
        self.sent = int(self._process.communicate(timeout=10)[0] or 0)


def _connect(address: Address, payload: bytes, source: str) -> socket.socket | None:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family)
    sock.setblocking(False)
    try:
        if source:
            sock.bind((source, 0))
        sock.connect_ex(address)
        if payload:
            sock.send(payload)
    except OSError:
        sock.close()
        return None
    return sock


def _run(address: Address, payload: bytes, rate: int, sources: Iterator[str]) -> None:
    held: deque[socket.socket] = deque()
    sent, began = 0, time.monotonic()

    def stop(_number: int, _frame: object) -> None:
        raise SystemExit

    signal.signal(signal.SIGTERM, stop)
    try:
        while True:
            while sent < (time.monotonic() - began) * rate:
                sock = _connect(address, payload, next(sources))
                sent += 1
                if sock is not None:
                    held.append(sock)
                if len(held) > _MAX_OPEN:
                    held.popleft().close()
            time.sleep(1 / _BATCHES_PER_S)
    finally:
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.write(str(sent))
            sys.stdout.flush()


def _main() -> None:
    host, port, payload, rate, *sources = sys.argv[1:]

    def in_turn() -> Iterator[str]:
        while True:
            yield from sources

    _run((host, int(port)), bytes.fromhex(payload), int(rate), in_turn())


if __name__ == "__main__":
    _main()
