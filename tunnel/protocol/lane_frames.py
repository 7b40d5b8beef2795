"""Frames inside a shared connection, which carries many visitors at once, each in a lane; see PROTOCOL.md. No I/O.

A frame is the number of the lane, a kind, a length and a payload. ``LANE_FRAMES`` is the table of all kinds; lengths
and permissions derive from it.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from tunnel.protocol.errors import ProtocolError
from tunnel.protocol.frames import Sender
from tunnel.protocol.payloads import MAX_TEXT_BYTES, U64

WINDOW_BYTES: Final = 1 << 16
"""Bytes of a lane that may be under way in one direction, from its start on."""
MAX_DATA_BYTES: Final = 1 << 14
"""The most that one frame carries."""
MAX_LANES: Final = 1 << 14
"""Lanes of a shared connection that may be open at once."""
LAST_LANE: Final = (1 << 32) - 1
"""The highest number of a lane."""
CREDIT: Final = struct.Struct("!I")

_HEADER: Final = struct.Struct("!IBH")
_pack_header: Final = _HEADER.pack
_MAX_ADDRESS_BYTES: Final = 255


class LaneKind(enum.IntEnum):
    """The frames of a shared connection."""

    OPEN = 1
    DATA = 2
    END = 3
    RESET = 4
    CREDIT = 5
    LAST = 6
    MOVED = 7
    WANTED = 8
    FAILED = 9


@dataclass(frozen=True, slots=True)
class LaneFrameSpec:
    """One row of the table."""

    kind: LaneKind
    min_bytes: int
    max_bytes: int
    sender: Sender
    """which end may send it"""
    payload: str
    """the payload in words, for PROTOCOL.md"""


def _rows() -> tuple[LaneFrameSpec, ...]:
    row, ingress, egress, both = LaneFrameSpec, Sender.INGRESS, Sender.EGRESS, Sender.BOTH
    return (
        row(LaneKind.OPEN, 0, _MAX_ADDRESS_BYTES, ingress, "the address of the visitor, without its length"),
        row(LaneKind.DATA, 1, MAX_DATA_BYTES, both, "bytes of the visitor or the target"),
        row(LaneKind.END, 0, 0, both, "this direction is complete"),
        row(LaneKind.RESET, 0, 0, both, "the visitor or the target was reset: the lane is closed"),
        row(
            LaneKind.CREDIT, CREDIT.size, CREDIT.size, both,
            "u32: so many bytes have left the receiver; of lane 0, from the egress: so many more lanes may be opened",
        ),
        row(LaneKind.LAST, 0, 0, ingress, "of lane 0: no lane will be opened any more"),
        row(LaneKind.MOVED, U64.size, U64.size, both, "u64 id: this direction goes on in that data connection"),
        row(LaneKind.WANTED, 0, 0, egress, "the egress has more to send than the window allows"),
        row(LaneKind.FAILED, 0, MAX_TEXT_BYTES, egress, "a sentence: this visitor cannot be served, and why"),
    )  # fmt: skip


LANE_FRAMES: Final[Mapping[int, LaneFrameSpec]] = MappingProxyType({row.kind: row for row in _rows()})
"""All frames by their number."""
_BOUNDS: Final = {
    is_ingress: {
        row.kind.value: (row.min_bytes, row.max_bytes) for row in LANE_FRAMES.values() if row.sender is not receiver
    }
    for is_ingress, receiver in ((True, Sender.INGRESS), (False, Sender.EGRESS))
}
"""The lengths of the frames that an end may receive, by whether that is the ingress."""

LaneFrame = tuple[int, int, bytes]
"""The number of a lane, a kind and a payload, whose length fits the table."""


def encode_lane_frame(number: int, kind: LaneKind, payload: bytes = b"") -> bytes:
    """A frame as bytes; the caller keeps to the table."""
    return _pack_header(number, kind, len(payload)) + payload


class LaneDecoder:
    """Turns the bytes of a shared connection into frames. Holds at most one incomplete frame."""

    __slots__ = ("_bounds", "_rest")

    def __init__(self, *, is_ingress: bool) -> None:
        """``is_ingress``: whether the ingress receives them."""
        self._bounds = _BOUNDS[is_ingress]
        self._rest = b""

    def feed(self, data: bytes) -> list[LaneFrame]:
        """The frames that are complete after ``data``. Raises ProtocolError; the decoder is unusable afterwards."""
        if self._rest:
            data = self._rest + data
        frames: list[LaneFrame] = []
        unpack, header, bounds = _HEADER.unpack_from, _HEADER.size, self._bounds
        start, end = 0, len(data)
        while end - start >= header:
            number, kind, length = unpack(data, start)
            allowed = bounds.get(kind)
            if allowed is None:
                raise ProtocolError(f"a frame {kind} in a shared connection, which the other end may not send")
            if not allowed[0] <= length <= allowed[1]:
                raise ProtocolError(f"a {LaneKind(kind).name} frame of {length} bytes in a shared connection")
            content = start + header
            stop = content + length
            if stop > end:
                break
            frames.append((number, kind, data[content:stop]))
            start = stop
        self._rest = data[start:]
        return frames


def lane_frame_table() -> str:
    """The table of all frames as PROTOCOL.md has it."""
    lines = ["| kind | name | from | payload | bytes |", "|---|---|---|---|---|"]
    for row in LANE_FRAMES.values():
        length = f"{row.max_bytes}" if row.min_bytes == row.max_bytes else f"{row.min_bytes} to {row.max_bytes}"
        lines.append(f"| {row.kind.value} | {row.kind.name} | {row.sender} | {row.payload} | {length} |")
    return "\n".join(lines) + "\n"
