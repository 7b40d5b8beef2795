"""Datagrams in a stream: each behind its length. No I/O; see PROTOCOL.md."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from tunnel.protocol.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_DATAGRAM_BYTES: Final = 65_507
"""The longest datagram: what IPv4 leaves of 65,535 bytes (RFC 791 §3.1, RFC 768)."""

_LENGTH: Final = struct.Struct("!H")
_READY_LENGTH: Final = 0xFFFF


READY: Final = b"\xff\xff"
"""A length without a datagram: the egress is ready for datagrams beside the data connection (see PROTOCOL.md)."""


class DatagramFrameError(ProtocolError):
    """A length that no datagram can have."""


def encode_datagrams(datagrams: Iterable[bytes]) -> bytes:
    """Return datagrams as a piece of a stream; each has ``MAX_DATAGRAM_BYTES`` at most."""
    pack = _LENGTH.pack
    return b"".join([part for datagram in datagrams for part in (pack(len(datagram)), datagram)])


class DatagramReader:
    """Finds the datagrams in one stream, whose pieces may end anywhere."""

    __slots__ = ("_awaits_ready", "_rest", "is_ready")

    def __init__(self, *, awaits_ready: bool = False) -> None:
        """``awaits_ready``: the stream may have one ``READY``."""
        self._awaits_ready = awaits_ready
        self.is_ready = False
        """whether it has come"""
        self._rest = b""  # the start of a frame that is not complete

    def split(self, received: bytes | memoryview) -> list[memoryview]:
        """Return the datagrams that are complete with this piece. Raises DatagramFrameError.

        They are parts of ``received`` where nothing waited before it.
        """
        data = memoryview(self._rest + received if self._rest else received)
        datagrams: list[memoryview] = []
        start, size = 0, len(data)
        while size - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(data, start)
            if length > MAX_DATAGRAM_BYTES:
                if length == _READY_LENGTH and self._awaits_ready:
                    self._awaits_ready, self.is_ready = False, True
                    start += _LENGTH.size
                    continue
                raise DatagramFrameError("a datagram that is too long")
            end = start + _LENGTH.size + length
            if end > size:
                break
            datagrams.append(data[start + _LENGTH.size : end])
            start = end
        self._rest = data[start:].tobytes()
        return datagrams
