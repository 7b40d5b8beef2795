"""How visitors and targets of the soak talk: every byte is known beforehand to both, so every stream is verified."""

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
    """A byte arrived that nobody sent in that place. No fault of the surroundings explains that."""


class CutError(Exception):
    """A stream ended otherwise than agreed."""


class Manner(enum.IntEnum):
    """What visitor and target do, in this order."""

    LEAVE = 0
    """request, answer; the visitor ends"""
    ANSWER = 1
    """request, answer; the target ends"""
    HALF = 2
    """request and half-close of the visitor, answer"""
    EARLY = 3
    """answer and half-close of the target, request"""
    BULK = 4
    """both at once"""
    RESET = 5
    """request, answer, reset by the visitor"""
    SLAM = 6
    """request, answer, reset by the target"""
    STAY = 7
    """request, answer, and so on"""


class Ledger:
    """What targets saw of streams that their visitors cannot see themselves, by the seed of the stream."""

    def __init__(self) -> None:
        self.corrupt: list[str] = []
        self._seen: dict[int, str] = {}
        self._news = threading.Condition()

    def enter(self, seed: int, what: str) -> None:
        """A target is done."""
        with self._news:
            self._seen[seed] = what
            self._news.notify_all()

    def wait(self, seed: int, within: float) -> str:
        """What the target saw. Raises CutError where it never came to an end."""
        with self._news:
            if not self._news.wait_for(lambda: seed in self._seen, within):
                raise CutError("the target never saw the end")
            return self._seen.pop(seed)


def _piece(seed: int, offset: int, size: int) -> memoryview:
    start = (seed * 4_099 + offset) % len(_BLOCK)
    return _RING[start : start + size]


class Talk:
    """One end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.established: float | None = None
        """when the first byte came from the other side"""

    def send(self, seed: int, size: int, head: bytes = b"") -> None:
        """The stream of this seed, behind ``head``."""
        if head:
            self.sock.sendall(head + _piece(seed, 0, min(size, _STEP)))
        for offset in range(_STEP if head else 0, size, _STEP):
            self.sock.sendall(_piece(seed, offset, min(_STEP, size - offset)))

    def hear(self, seed: int, size: int) -> None:
        """Exactly that stream. Raises CorruptError, CutError."""
        buffer = memoryview(bytearray(min(size, _STEP) or 1))
        heard = 0
        while heard < size:
            count = self.sock.recv_into(buffer[: min(len(buffer), size - heard)])
            if not count:
                raise CutError(f"the stream ended after {heard} of {size} bytes")
            if buffer[:count] != _piece(seed, heard, count):
                raise CorruptError(f"other bytes than were sent, between {heard} and {heard + count} of {size}")
            self.established = self.established or time.monotonic()
            heard += count

    def hear_end(self) -> None:
        """Nothing more. Raises CorruptError."""
        if self.sock.recv(1):
            raise CorruptError("bytes after the last one")

    def hear_reset(self) -> None:
        """A reset, and no plain end. Raises CutError."""
        with contextlib.suppress(ConnectionResetError):
            self.hear_end()
            raise CutError("what was a reset arrived as an end")

    def half_close(self) -> None:
        """Say no more."""
        self.sock.shutdown(socket.SHUT_WR)

    def both(self, ours: int, size: int, theirs: int, expected: int) -> None:
        """Send one stream and hear another at once, each to its end."""
        faults: list[Exception] = []

        def speak() -> None:
            try:
                self.send(ours, size)
                self.half_close()
            except OSError as error:
                faults.append(error)

        speaking = threading.Thread(target=speak, daemon=True)
        speaking.start()
        try:
            self.hear(theirs, expected)
            self.hear_end()
        except BaseException:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)  # whoever speaks shall not wait for ever
            raise
        finally:
            speaking.join()
        if faults:
            raise faults[0]


# --- the visitor's side -------------------------------------------------------------------------------------------


def visit(talk: Talk, manner: Manner, seed: int, up: int, down: int, ledger: Ledger, patience: float) -> None:
    """One visit from its first byte to its end; not STAY. Raises CorruptError, CutError, OSError."""
    head = _HEAD.pack(manner, seed, up, down)
    if manner is Manner.BULK:
        talk.sock.sendall(head)
        talk.both(seed, up, ~seed, down)
        return
    if manner is Manner.EARLY:
        talk.sock.sendall(head)
        talk.hear(~seed, down)
        talk.hear_end()
        talk.send(seed, up)
        talk.half_close()
        _agree(ledger.wait(seed, patience), "whole")
        return
    talk.send(seed, up, head)
    if manner is Manner.HALF:
        talk.half_close()
    talk.hear(~seed, down)
    if manner in {Manner.ANSWER, Manner.HALF}:
        talk.hear_end()
    elif manner is Manner.RESET:
        close_with_reset(talk.sock)
        _agree(ledger.wait(seed, patience), "reset")
    elif manner is Manner.SLAM:
        talk.sock.sendall(b"!")
        talk.hear_reset()


def stay(talk: Talk, seed: int, sizes: Callable[[], tuple[int, int]], go_on: Callable[[], bool]) -> None:
    """Requests and answers on one connection as long as ``go_on`` wait_for_log so. Raises as ``visit`` does."""
    while go_on():
        up, down = sizes()
        talk.send(seed, up, _HEAD.pack(Manner.STAY, seed, up, down))
        talk.hear(~seed, down)
    talk.half_close()
    talk.hear_end()


def _agree(seen: str, expected: str) -> None:
    if seen != expected:
        raise CutError(f"the target saw: {seen}")


# --- the target's side --------------------------------------------------------------------------------------------


def serving(ledger: Ledger) -> Callable[[socket.socket], None]:
    """What a target does with each connection. Whatever is not as agreed is answered with a reset."""

    def serve(sock: socket.socket) -> None:
        talk = Talk(sock)
        try:
            while len(head := receive_exactly(sock, _HEAD.size)) == _HEAD.size:
                manner, seed, up, down = _HEAD.unpack(head)
                _serve(talk, Manner(manner), seed, up, down, ledger)
                if manner != Manner.STAY:
                    return
        except ValueError:
            ledger.corrupt.append("a target got a head that nobody sent")
            close_with_reset(sock)
        except CorruptError as error:
            ledger.corrupt.append(f"at a target: {error}")
            close_with_reset(sock)
        except (CutError, OSError):
            close_with_reset(sock)

    return serve


def _serve(talk: Talk, manner: Manner, seed: int, up: int, down: int, ledger: Ledger) -> None:
    if manner is Manner.BULK:
        talk.both(~seed, down, seed, up)
        return
    if manner is Manner.EARLY:
        talk.send(~seed, down)
        talk.half_close()
        try:
            talk.hear(seed, up)
            talk.hear_end()
        except (CutError, OSError) as error:
            ledger.enter(seed, str(error))
            raise
        ledger.enter(seed, "whole")
        return
    talk.hear(seed, up)
    if manner is Manner.HALF:
        talk.hear_end()
    talk.send(~seed, down)
    if manner is Manner.LEAVE:
        talk.hear_end()
    elif manner is Manner.RESET:
        try:
            talk.hear_reset()
        except CutError as error:
            ledger.enter(seed, str(error))
            return
        ledger.enter(seed, "reset")
    elif manner is Manner.SLAM:
        receive_exactly(talk.sock, 1)
        close_with_reset(talk.sock)
