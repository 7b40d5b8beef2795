"""Floods of connections from a process of their own, so that they take no time from the measuring process.

``python -m tests.faults.floods flood HOST PORT HEX RATE SOURCE…``: RATE connections a second, from each source address
in turn, that send the bytes HEX and stay open until the other end closes them.
``python -m tests.faults.floods endless HOST PORT HEX COUNT``: COUNT connections at a time that send the bytes HEX again
and again, and are made again when they are closed.
``python -m tests.faults.floods datagrams HOST PORT HEX RATE [CPU]``: RATE datagrams HEX a second, each from another
source address of 127.0.0.0/8, as of a flood with forged sources; on the processor CPU alone.
``python -m tests.faults.floods echo HOST PORT "" 0``: a UDP port that answers each datagram with its bytes.
They end with SIGTERM and print how many connections or datagrams were made.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import NoReturn, Self

from tests.support.peers import Address
from tests.support.processes import ROOT
from tunnel.runtime.tls import TlsSession, pinned_context

_MAX_OPEN = 2048
_BATCHES_PER_S = 100
_RECONNECT_PAUSE_S = 0.01
_FLOOD_NICE = 5
_FIRST_SOURCE = 0x7F010000  # 127.1.0.0
_SOURCES = 0xFD0000
_IP_PKTINFO = 8  # linux/in.h
_PKTINFO = struct.Struct("=I4s4s")  # ip(7): interface, local address, destination


def client_hello() -> bytes:
    """The first bytes of a TLS client."""
    session = TlsSession(pinned_context(), server_side=False)
    session.do_handshake()
    return session.data_to_send()


class _Sender:
    """A process that makes connections, as a context manager; ``sent`` is their number, once it has ended."""

    def __init__(self, kind: str, address: Address, payload: bytes, *arguments: str) -> None:
        self.sent = 0
        self._process = subprocess.Popen(
            (sys.executable, "-m", "tests.faults.floods", kind, *map(str, address), payload.hex(), *arguments),
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


class Flood(_Sender):
    """So many connections a second, from several source addresses."""

    def __init__(self, address: Address, payload: bytes, rate: int, sources: Sequence[str] = ("",)) -> None:
        super().__init__("flood", address, payload, str(rate), *sources)


class EndlessSenders(_Sender):
    """So many connections at a time, each of which sends without end."""

    def __init__(self, address: Address, payload: bytes, count: int) -> None:
        super().__init__("endless", address, payload, str(count))


class DatagramFlood(_Sender):
    """So many datagrams a second to a port of this host, each from another source; on one processor if given."""

    def __init__(self, address: Address, payload: bytes, rate: int, processor: int | None = None) -> None:
        super().__init__("datagrams", address, payload, str(rate), *(() if processor is None else (str(processor),)))


class DatagramEcho(_Sender):
    """A UDP port of this host that sends each datagram back."""

    def __init__(self, address: Address) -> None:
        super().__init__("echo", address, b"", "0")


@contextlib.contextmanager
def leave_a_processor() -> Iterator[int | None]:
    """Let this thread, and what it starts, use all processors but one, as if that were another host's; yield which.

    None if there is one alone.
    """
    all_processors = os.sched_getaffinity(0)
    left = max(all_processors) if len(all_processors) > 1 else None
    os.sched_setaffinity(0, all_processors - {left} if left is not None else all_processors)
    try:
        yield left
    finally:
        os.sched_setaffinity(0, all_processors)


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


def _flood(address: Address, payload: bytes, rate: int, sources: Iterator[str], made: Iterator[int]) -> NoReturn:
    """Make connections without end, and count each with ``made``."""
    held: deque[socket.socket] = deque()
    began = time.monotonic()
    for number, source in enumerate(sources):
        while number >= (time.monotonic() - began) * rate:
            time.sleep(1 / _BATCHES_PER_S)
        sock = _connect(address, payload, source)
        next(made)
        if sock is not None:
            held.append(sock)
        if len(held) > _MAX_OPEN:
            held.popleft().close()
    raise AssertionError("the sources never end")


def _send_endlessly(address: Address, payload: bytes, made: Iterator[int]) -> None:
    """Send on one connection after the other, and count each with ``made``."""
    while True:
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=1) as sock:
            next(made)
            while True:
                sock.sendall(payload)
        time.sleep(_RECONNECT_PAUSE_S)


def _send_datagrams(address: Address, payload: bytes, rate: int, made: Iterator[int]) -> NoReturn:
    """Send datagrams without end, each from another address, and count each with ``made``."""
    os.nice(_FLOOD_NICE)  # another host has a processor of its own for this
    sock, began = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), time.monotonic()
    for number in itertools.count():
        while number >= (time.monotonic() - began) * rate:
            time.sleep(1 / _BATCHES_PER_S)
        source = (_FIRST_SOURCE + number % _SOURCES).to_bytes(4)
        info = _PKTINFO.pack(0, source, bytes(4))
        sock.sendmsg((payload,), ((socket.IPPROTO_IP, _IP_PKTINFO, info),), 0, address)
        next(made)
    raise AssertionError("the numbers never end")


def _echo_datagrams(address: Address, made: Iterator[int]) -> NoReturn:
    """Answer datagrams without end, and count each with ``made``."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(address)
        while True:
            with contextlib.suppress(OSError):  # a flow has ended
                sock.sendto(*sock.recvfrom(1 << 16))
                next(made)


def _main() -> None:
    kind, host, port, payload, number, *sources = sys.argv[1:]
    address, data, made = (host, int(port)), bytes.fromhex(payload), itertools.count()
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit())
    try:
        if kind == "datagrams":
            if sources:
                os.sched_setaffinity(0, {int(sources[0])})
            _send_datagrams(address, data, int(number), made)
        if kind == "echo":
            _echo_datagrams(address, made)
        if kind == "flood":
            _flood(address, data, int(number), itertools.cycle(sources), made)
        os.nice(_FLOOD_NICE)  # as for datagrams: another host has a processor of its own
        for _ in range(int(number)):
            threading.Thread(target=_send_endlessly, args=(address, data, made), daemon=True).start()
        signal.pause()
    finally:
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.write(str(next(made)))
            sys.stdout.flush()


if __name__ == "__main__":
    _main()
