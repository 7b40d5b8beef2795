"""The streams of visitors and targets in the soak. Both ends can compute every byte, so every stream is verified."""

from __future__ import annotations

import contextlib
import enum
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Final

from tests.support.peers import receive_exactly
from tests.support.sockets import close_with_reset

_HEAD: Final = struct.Struct("!BIII")
_BLOCK: Final = random.Random(1).randbytes(1 << 20)
_RING: Final = memoryview(_BLOCK + _BLOCK)
_STEP: Final = 1 << 18


class CorruptError(Exception):
    """A byte arrived that was not sent in that place. No fault of the environment explains that."""


class CutError(Exception):
    """A stream ended in another way than expected."""


class VisitKind(enum.IntEnum):
    """What visitor and target do, in this order."""

    VISITOR_CLOSES = 0
    """request, answer; the visitor closes"""
    TARGET_CLOSES = 1
    """request, answer; the target closes"""
    VISITOR_HALF_CLOSES = 2
    """request and half-close by the visitor, answer"""
    TARGET_HALF_CLOSES = 3
    """answer and half-close by the target, request"""
    BULK = 4
    """streams both ways at once"""
    VISITOR_RESETS = 5
    """request, answer, reset by the visitor"""
    TARGET_RESETS = 6
    """request, answer, reset by the target"""
    LONG_LIVED = 7
    """requests and answers, repeated"""


class TargetReports:
    """What targets saw at the end of streams and visitors cannot see, by the seed of the stream."""

    def __init__(self) -> None:
        self.corruptions: list[str] = []
        self._seen: dict[int, str] = {}
        self._condition = threading.Condition()

    def record(self, seed: int, what: str) -> None:
        """Record how a stream ended at the target."""
        with self._condition:
            self._seen[seed] = what
            self._condition.notify_all()

    def wait(self, seed: int, within: float) -> str:
        """Return how the stream ended at the target. Raises CutError if it did not end."""
        with self._condition:
            if not self._condition.wait_for(lambda: seed in self._seen, within):
                raise CutError("the stream did not end at the target")
            return self._seen.pop(seed)


def stream_bytes(seed: int, offset: int, size: int) -> memoryview:
    """Return a part of the stream of this seed, 1 MiB at most."""
    start = (seed * 4_099 + offset) % len(_BLOCK)
    return _RING[start : start + size]


class VerifiedStream:
    """One end of a connection whose contents are verified."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.established: float | None = None
        """time of the first byte from the peer, or None"""

    def send(self, seed: int, size: int, head: bytes = b"") -> None:
        """Send ``head`` and the stream of this seed."""
        if head:
            self.sock.sendall(head + stream_bytes(seed, 0, min(size, _STEP)))
        for offset in range(_STEP if head else 0, size, _STEP):
            self.sock.sendall(stream_bytes(seed, offset, min(_STEP, size - offset)))

    def receive(self, seed: int, size: int) -> None:
        """Receive exactly the stream of this seed. Raises CorruptError, CutError."""
        buffer = memoryview(bytearray(min(size, _STEP) or 1))
        received = 0
        while received < size:
            count = self.sock.recv_into(buffer[: min(len(buffer), size - received)])
            if not count:
                raise CutError(f"the stream ended after {received} of {size} bytes")
            if buffer[:count] != stream_bytes(seed, received, count):
                raise CorruptError(f"wrong bytes between {received} and {received + count} of {size}")
            self.established = self.established or time.monotonic()
            received += count

    def receive_end(self) -> None:
        """Receive the end of the stream. Raises CorruptError."""
        if self.sock.recv(1):
            raise CorruptError("bytes after the end of the stream")

    def receive_reset(self) -> None:
        """Receive a reset. Raises CutError if an end of stream arrives instead."""
        with contextlib.suppress(ConnectionResetError):
            self.receive_end()
            raise CutError("a reset arrived as an end of stream")

    def half_close(self) -> None:
        """Send the end of the stream."""
        self.sock.shutdown(socket.SHUT_WR)

    def exchange(self, ours: int, size: int, theirs: int, expected: int) -> None:
        """Send one stream and receive another at the same time, each to its end."""
        faults: list[Exception] = []

        def send_all() -> None:
            try:
                self.send(ours, size)
                self.half_close()
            except OSError as error:
                faults.append(error)

        sending = threading.Thread(target=send_all, daemon=True)
        sending.start()
        try:
            self.receive(theirs, expected)
            self.receive_end()
        except BaseException:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)  # the sender must not block for ever
            raise
        finally:
            sending.join()
        if faults:
            raise faults[0]


# --- visitor -------------------------------------------------------------------------------------------


def visit(
    stream: VerifiedStream,
    kind: VisitKind,
    seed: int,
    up: int,
    down: int,
    target_reports: TargetReports,
    timeout: float,
) -> None:
    """Run one visit of any kind but LONG_LIVED. Raises CorruptError, CutError, OSError."""
    head = _HEAD.pack(kind, seed, up, down)
    if kind is VisitKind.BULK:
        stream.sock.sendall(head)
        stream.exchange(seed, up, ~seed, down)
        return
    if kind is VisitKind.TARGET_HALF_CLOSES:
        stream.sock.sendall(head)
        stream.receive(~seed, down)
        stream.receive_end()
        stream.send(seed, up)
        stream.half_close()
        _check_report(target_reports.wait(seed, timeout), "complete")
        return
    stream.send(seed, up, head)
    if kind is VisitKind.VISITOR_HALF_CLOSES:
        stream.half_close()
    stream.receive(~seed, down)
    if kind in {VisitKind.TARGET_CLOSES, VisitKind.VISITOR_HALF_CLOSES}:
        stream.receive_end()
    elif kind is VisitKind.VISITOR_RESETS:
        close_with_reset(stream.sock)
        _check_report(target_reports.wait(seed, timeout), "reset")
    elif kind is VisitKind.TARGET_RESETS:
        stream.sock.sendall(b"!")
        stream.receive_reset()


def visit_long(
    stream: VerifiedStream, seed: int, sizes: Callable[[], tuple[int, int]], should_continue: Callable[[], bool]
) -> None:
    """Exchange requests and answers while ``should_continue`` returns true. Raises the same errors as ``visit``."""
    while should_continue():
        up, down = sizes()
        stream.send(seed, up, _HEAD.pack(VisitKind.LONG_LIVED, seed, up, down))
        stream.receive(~seed, down)
    stream.half_close()
    stream.receive_end()


def _check_report(seen: str, expected: str) -> None:
    if seen != expected:
        raise CutError(f"the target saw: {seen}")


# --- target --------------------------------------------------------------------------------------------


def serve_streams(target_reports: TargetReports) -> Callable[[socket.socket], None]:
    """Return a function that serves each connection of a target. Unexpected data is answered with a reset."""

    def serve(sock: socket.socket) -> None:
        stream = VerifiedStream(sock)
        try:
            while len(head := receive_exactly(sock, _HEAD.size)) == _HEAD.size:
                kind, seed, up, down = _HEAD.unpack(head)
                _serve(stream, VisitKind(kind), seed, up, down, target_reports)
                if kind != VisitKind.LONG_LIVED:
                    return
        except ValueError:
            target_reports.corruptions.append("a target received a header that was not sent")
            close_with_reset(sock)
        except CorruptError as error:
            target_reports.corruptions.append(f"at a target: {error}")
            close_with_reset(sock)
        except (CutError, OSError):
            close_with_reset(sock)

    return serve


def _serve(
    stream: VerifiedStream, kind: VisitKind, seed: int, up: int, down: int, target_reports: TargetReports
) -> None:
    if kind is VisitKind.BULK:
        stream.exchange(~seed, down, seed, up)
        return
    if kind is VisitKind.TARGET_HALF_CLOSES:
        stream.send(~seed, down)
        stream.half_close()
        try:
            stream.receive(seed, up)
            stream.receive_end()
        except (CutError, OSError) as error:
            target_reports.record(seed, str(error))
            raise
        target_reports.record(seed, "complete")
        return
    stream.receive(seed, up)
    if kind is VisitKind.VISITOR_HALF_CLOSES:
        stream.receive_end()
    stream.send(~seed, down)
    if kind is VisitKind.VISITOR_CLOSES:
        stream.receive_end()
    elif kind is VisitKind.VISITOR_RESETS:
        try:
            stream.receive_reset()
        except CutError as error:
            target_reports.record(seed, str(error))
            return
        target_reports.record(seed, "reset")
    elif kind is VisitKind.TARGET_RESETS:
        receive_exactly(stream.sock, 1)
        close_with_reset(stream.sock)
