"""Frames to bytes and back, with the lengths of the frame table. No I/O."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from tunnel.protocol.errors import ProtocolError
from tunnel.protocol.frames import FRAMES, FrameSpec, Kind
from tunnel.protocol.payloads import MAX_NUMBERS, FrameMessage

_HEADER: Final = struct.Struct("!BH")
MIN_FRAME_BYTES: Final = _HEADER.size
"""Bytes of a frame without a payload."""
_KINDS: Final = {row.message: row.kind for row in FRAMES.values()}
Frame = tuple[Kind, bytes]
"""A kind and its payload, whose length fits the table."""


def encode_frame(kind: Kind, payload: bytes = b"") -> bytes:
    """A frame as bytes. Raises ValueError for a payload of an impossible length."""
    row = FRAMES[kind]
    if not row.min_bytes <= len(payload) <= row.max_bytes:
        raise ValueError(f"a {kind.name} frame of {len(payload)} bytes; {_allowed(row)}")
    return _HEADER.pack(kind, len(payload)) + payload


def encode_message(message: FrameMessage) -> bytes:
    """A message as a frame in bytes."""
    return encode_frame(_KINDS[type(message)], message.encode())


def encode_numbers(kind: Kind, numbers: Sequence[int]) -> bytes:
    """As many frames of a kind with u64 numbers (ids, or pairs in a flat list) as the numbers need."""
    frames = []
    for start in range(0, len(numbers), MAX_NUMBERS):
        part = numbers[start : start + MAX_NUMBERS]
        frames.append(encode_frame(kind, struct.pack(f"!{len(part)}Q", *part)))
    return b"".join(frames)


def encode_parts(kind: Kind, parts: Sequence[bytes]) -> list[bytes]:
    """As many frames of a kind as it takes to hold these parts of payloads, none of which is split."""
    payload, row = b"".join(parts), FRAMES[kind]
    if len(payload) <= row.max_bytes:
        return [encode_frame(kind, payload)]
    frames, start, size = list[bytes](), 0, 0
    for end, part in enumerate(parts):
        if size + len(part) > row.max_bytes:
            frames.append(encode_frame(kind, b"".join(parts[start:end])))
            start, size = end, 0
        size += len(part)
    frames.append(encode_frame(kind, b"".join(parts[start:])))
    return frames


class FrameDecoder:
    """Turns bytes into frames. Holds at most one incomplete frame."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete after ``data``. Raises ProtocolError; the decoder is unusable afterwards."""
        data = self._rest + data
        frames: list[Frame] = []
        start, end = 0, len(data)
        while end - start >= _HEADER.size:
            number, length = _HEADER.unpack_from(data, start)
            row = FRAMES.get(number)
            if row is None:
                raise ProtocolError(f"unknown frame 0x{number:02x}")
            if not row.min_bytes <= length <= row.max_bytes:
                raise ProtocolError(f"a {row.kind.name} frame of {length} bytes; {_allowed(row)}")
            stop = start + _HEADER.size + length
            if stop > end:
                break
            frames.append((row.kind, data[start + _HEADER.size : stop]))
            start = stop
        self._rest = data[start:]
        return frames


def _allowed(row: FrameSpec) -> str:
    if row.min_bytes == row.max_bytes:
        return f"it has exactly {row.max_bytes}"
    return f"allowed are {row.min_bytes} to {row.max_bytes}"
