"""The datagrams of visitors and targets in the soak: both ends can compute every byte, so all are verified."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, Self

from tests.soak.losses import DatagramLoss
from tests.soak.streams import CorruptError, TargetReports, stream_bytes
from tests.support.waiting import wait_until
from tunnel.runtime.datagram_batches import DatagramSender
from tunnel.runtime.datagram_sockets import FLOW_BUFFER_BYTES, enlarge_receive_buffer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.support.peers import Address

LOST_AFTER_S: Final = 6.0
"""Seconds without an answer after which a datagram is lost: the tunnel keeps none for longer than a second."""
MIN_BYTES: Final = 19
"""The least bytes of a datagram: its head."""

_HEAD: Final = struct.Struct("!4sIIHB4x")  # mark, visitor, number, size, whether it is an answer
_MARK: Final = b"soak"
_MAX_BYTES: Final = 65_535
_READ_AT_ONCE: Final = 64
_POLL_S: Final = 0.1
_FIRST_SOURCE: Final = 0x7F400000  # 127.64.0.0: with an address for each visitor, no flow is that of another visitor


def encode_datagram(visitor: int, number: int, size: int, *, is_answer: bool) -> bytes:
    """Return a datagram of a visitor, or the answer to it; ``size`` is at least ``MIN_BYTES``."""
    head = _HEAD.pack(_MARK, visitor, number, size, is_answer)
    seed = ~visitor if is_answer else visitor
    return head + stream_bytes(seed, number * 977, size - len(head))


def decode_datagram(datagram: bytes, *, is_answer: bool) -> tuple[int, int]:
    """Return the visitor and the number of a datagram. Raises CorruptError."""
    if len(datagram) < _HEAD.size:
        raise CorruptError(f"a datagram of {len(datagram)} bytes was not sent")
    _mark, visitor, number, size, _is_answer = _HEAD.unpack_from(datagram)
    if size < _HEAD.size or datagram != encode_datagram(visitor, number, size, is_answer=is_answer):
        raise CorruptError(f"datagram {number} of visitor {visitor} has wrong bytes, or a wrong length")
    return visitor, number


def _receive(sock: socket.socket) -> list[tuple[bytes, Any]]:
    """Receive what has arrived, some datagrams at once, each with its source."""
    received: list[tuple[bytes, Any]] = []
    with contextlib.suppress(BlockingIOError):
        while len(received) < _READ_AT_ONCE:
            received.append(sock.recvfrom(_MAX_BYTES, socket.MSG_DONTWAIT))
    return received


class DatagramTarget:
    """A target that verifies and answers each datagram. It can stop and start again."""

    def __init__(self, port: int, target_reports: TargetReports) -> None:
        self._port = port
        self._reports = target_reports
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Answer on the port of the target from now on."""
        sock = wait_until(self._open, within=10, what=f"UDP port {self._port} can be opened")
        self._over.clear()
        self._thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
        self._thread.start()

    def _open(self) -> socket.socket | None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        enlarge_receive_buffer(sock, FLOW_BUFFER_BYTES)
        try:
            sock.bind(("127.0.0.1", self._port))
        except OSError:
            sock.close()
            return None
        return sock

    def close(self) -> None:
        """Close the socket: the kernel refuses datagrams."""
        if self._thread is not None:
            self._over.set()
            self._thread.join()
            self._thread = None

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            sender = DatagramSender(sock)
            while not self._over.is_set():
                if select.select([sock], [], [], _POLL_S)[0]:
                    self._answer(sock, sender)

    def _answer(self, sock: socket.socket, sender: DatagramSender) -> None:
        answers = defaultdict(list)
        with contextlib.suppress(OSError):  # an ICMP error of an earlier answer
            for datagram, peer in _receive(sock):
                try:
                    visitor, number = decode_datagram(datagram, is_answer=False)
                except CorruptError as error:
                    self._reports.corruptions.append(f"at a UDP target: {error}")
                    continue
                answers[peer].append(encode_datagram(visitor, number, len(datagram), is_answer=True))
        for peer, batch in answers.items():
            start = 0
            while start < len(batch):
                try:
                    start += sender.send(batch, start, (), peer)
                except OSError:  # of an earlier answer, or of this one: its visitor misses it
                    start += 1


class DatagramVisitor:
    """A visitor with an address of its own, which sends numbered datagrams and verifies the answers. A context manager.

    Belongs to one thread.
    """

    def __init__(self, ident: int, tunnel: str, address: Address) -> None:
        """``ident`` is different for each visitor of a run. ``address`` is where the tunnel accepts visitors."""
        self.ident = ident
        self._tunnel = tunnel
        self.sent = self.answered = self.late = self.bytes_verified = 0
        """datagrams that were sent, answered, and answered after they were lost; the bytes of the answered ones"""
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        enlarge_receive_buffer(self.sock, FLOW_BUFFER_BYTES)
        self.sock.bind((socket.inet_ntoa((_FIRST_SOURCE + ident).to_bytes(4)), 0))
        self.sock.connect(address)
        self._sender = DatagramSender(self.sock)
        self._expected: dict[int, tuple[int, float]] = {}  # size and time of each datagram without an answer
        self._lost: dict[int, DatagramLoss] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.sock.close()

    @property
    def unanswered(self) -> int:
        """Datagrams that may still be answered in time."""
        return len(self._expected)

    def send(self, sizes: Iterable[int]) -> None:
        """Send datagrams of these sizes together."""
        now, batch = time.monotonic(), []
        for size in sizes:
            batch.append(encode_datagram(self.ident, self.sent, size, is_answer=False))
            self._expected[self.sent] = size, now
            self.sent += 1
        start = 0
        while start < len(batch):
            try:
                start += self._sender.send(batch, start)
            except OSError:  # of an earlier datagram, while a daemon does not run; this one gets no answer
                start += 1

    def receive(self) -> None:
        """Verify the answers that have arrived. Raises CorruptError."""
        try:
            received = _receive(self.sock)
        except OSError:  # of an earlier datagram
            return
        for datagram, _ in received:
            self._verify(datagram)

    def _verify(self, datagram: bytes) -> None:
        visitor, number = decode_datagram(datagram, is_answer=True)
        if visitor != self.ident:
            raise CorruptError(f"visitor {self.ident} received an answer for visitor {visitor}")
        if (loss := self._lost.pop(number, None)) is not None:
            loss.count -= 1
            self.late += 1
            return
        size, _ = self._expected.pop(number, (None, 0.0))
        if size is None:
            raise CorruptError(f"visitor {visitor} received the answer to datagram {number} of {self.sent} twice")
        if size != len(datagram):
            raise CorruptError(f"visitor {visitor} received {len(datagram)} bytes for the {size} of datagram {number}")
        self.answered += 1
        self.bytes_verified += 2 * size

    def expire(self, now: float, lost_after_s: float = LOST_AFTER_S) -> DatagramLoss | None:
        """Return the datagrams without an answer that are lost from now on; each late answer takes one away again."""
        overdue = [number for number, (_, sent_at) in self._expected.items() if now - sent_at > lost_after_s]
        if not overdue:
            return None
        loss = DatagramLoss(self._tunnel, len(overdue), min(self._expected.pop(each)[1] for each in overdue), now)
        self._lost.update(dict.fromkeys(overdue, loss))
        return loss
