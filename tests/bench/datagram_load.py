"""Loads of UDP: a visitor and a target in one thread, so that a load has no other processes to wait for."""

from __future__ import annotations

import socket
import statistics
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Final, Self

from .processes import BenchError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

BURST: Final = 32
"""Datagrams that a sender of bulk data sends at once, as senders of QUIC do."""
WINDOW: Final = 3 * BURST
"""Datagrams on the way, at most: the default buffers of a socket have room for so many of 1,200 bytes."""

_SOL_UDP: Final = 17  # udp(7), linux/udp.h
_UDP_SEGMENT: Final = 103
_UDP_GRO: Final = 104
_SEGMENT_SIZE: Final = struct.Struct("=H")
_BUFFER_BYTES: Final = 1 << 20
_LOST_AFTER_S: Final = 0.1
_ANSWER_LIMIT_S: Final = 0.5
_WARM_UP_EXCHANGES: Final = 200
_START_LIMIT_S: Final = 20.0
_POLL_S: Final = 0.01
_LARGEST_BYTES: Final = 65_535
_P99: Final = 98  # the index among the 99 cuts of statistics.quantiles


@dataclass(frozen=True, slots=True)
class DatagramFigures:
    """Datagrams that were sent in bulk, those that arrived, and how long that took."""

    sent: int
    arrived: int
    seconds: float

    @property
    def lost_percent(self) -> float:
        """The share of the datagrams that were lost."""
        return 100 * (1 - self.arrived / self.sent) if self.sent else 0.0


@dataclass(frozen=True, slots=True)
class Delays:
    """What exchanges of one datagram and its answer took, in microseconds: each of both on its way, and together."""

    count: int
    """the number of exchanges"""
    one_way_p50_us: float
    round_trip_p50_us: float
    round_trip_p99_us: float


class DatagramPair:
    """A visitor and its target. The visitor sends to a tunnel, and the target answers what arrives there."""

    def __init__(self, visitor_port: int, target_port: int) -> None:
        """``visitor_port`` is where the tunnel accepts visitors, ``target_port`` where the target listens."""
        self._visitor = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._target = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for sock in (self._visitor, self._target):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        self._divides_pieces = False
        with suppress(OSError):  # an older kernel has datagrams one by one
            self._visitor.setsockopt(_SOL_UDP, _UDP_SEGMENT, 0)
            self._divides_pieces = True
            self._target.setsockopt(_SOL_UDP, _UDP_GRO, 1)
        self._target.bind(("127.0.0.1", target_port))
        self._visitor.connect(("127.0.0.1", visitor_port))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._visitor.close()
        self._target.close()

    def warm_up(self, size: int, limit_s: float = _START_LIMIT_S) -> None:
        """Exchange datagrams until the flow is established. Raises BenchError."""
        deadline = time.monotonic() + limit_s
        exchanged = 0
        while exchanged < _WARM_UP_EXCHANGES:
            if time.monotonic() > deadline:
                raise BenchError(f"{exchanged} of {_WARM_UP_EXCHANGES} datagrams were answered within the time limit")
            if self._exchange(bytes(size)) is None:
                time.sleep(_POLL_S)
            else:
                exchanged += 1

    def measure_delays(self, size: int, seconds: float) -> Delays:
        """Exchange one datagram after the other. Raises BenchError."""
        found = list(self._exchanges(bytes(size), seconds))
        if len(found) < 100:
            raise BenchError(f"{len(found)} datagrams were answered in {seconds:.0f} s")
        round_trips = [there + back for there, back in found]
        return Delays(
            len(found),
            statistics.median(chain.from_iterable(found)) * 1e6,
            statistics.median(round_trips) * 1e6,
            statistics.quantiles(round_trips, n=100)[_P99] * 1e6,
        )

    def _exchanges(self, datagram: bytes, seconds: float) -> Iterator[tuple[float, float]]:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            took = self._exchange(datagram)
            if took is not None:
                yield took

    def _exchange(self, datagram: bytes) -> tuple[float, float] | None:
        """Return the seconds on the way there and back."""
        self._visitor.settimeout(_ANSWER_LIMIT_S)
        self._target.settimeout(_ANSWER_LIMIT_S)
        began = time.perf_counter()
        try:
            self._visitor.send(datagram)
            received, peer = self._target.recvfrom(_LARGEST_BYTES)
            arrived = time.perf_counter()
            self._target.sendto(received, peer)
            self._visitor.recv(_LARGEST_BYTES)
        except OSError:  # lost, or refused while the tunnel starts
            return None
        return arrived - began, time.perf_counter() - arrived

    def send_bulk(self, size: int, seconds: float, *, in_pieces: bool = True) -> DatagramFigures:
        """Send bursts of equal datagrams, ``WINDOW`` on the way at most, from the visitor to the target.

        ``in_pieces``: the kernel divides each burst, if it can.
        """
        datagrams = [bytes(size)] * BURST
        sent = arrived = lost = 0
        buffer = bytearray(_LARGEST_BYTES)
        self._target.settimeout(_LOST_AFTER_S)
        began = time.monotonic()
        while time.monotonic() < began + seconds:
            while sent - arrived - lost <= WINDOW - BURST:
                self._send_burst(datagrams, size, in_pieces=in_pieces)
                sent += BURST
            try:
                arrived += -(-self._target.recv_into(buffer) // size)
            except TimeoutError:
                lost = sent - arrived
        took = time.monotonic() - began
        with suppress(TimeoutError):
            while sent > arrived:
                arrived += -(-self._target.recv_into(buffer) // size)
        return DatagramFigures(sent, arrived, took)

    def _send_burst(self, datagrams: list[bytes], size: int, *, in_pieces: bool) -> None:
        if in_pieces and self._divides_pieces:
            self._visitor.sendmsg(datagrams, [(_SOL_UDP, _UDP_SEGMENT, _SEGMENT_SIZE.pack(size))])
            return
        for datagram in datagrams:
            self._visitor.send(datagram)
