"""Frames of the control channel: the table of all kinds, encoder and decoder. No I/O; see PROTOCOL.md.

Lengths, permissions, payload types and the table in PROTOCOL.md derive from ``FRAMES``. A new frame needs a row here,
its payload class in ``messages.py``, and a line in ``register_handlers`` of the owner that handles it.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from tunnel.protocol.errors import ProtocolError
from tunnel.protocol.handshake_messages import Challenge, Hello, Proof, Refusal, Welcome
from tunnel.protocol.messages import (
    MAX_NUMBERS,
    MAX_TEXT_BYTES,
    U32,
    U32_PAIR,
    U32_TRIPLE,
    U64,
    CapacityChanged,
    ConnectionsPooled,
    ConnectionsRetired,
    FrameMessage,
    Goodbye,
    Launch,
    LimitsAnnounced,
    Ping,
    Pong,
    QueueLength,
    StreamsEnded,
    TargetStatus,
    VisitorFailed,
)

VERSION: Final = 1

_HEADER: Final = struct.Struct("!BH")
MIN_FRAME_BYTES: Final = _HEADER.size
"""Bytes of a frame without a payload."""
_MAX_GREETING_BYTES: Final = 1024
_MAX_LIST_BYTES: Final = MAX_NUMBERS * U64.size
_MAC_BYTES: Final = 32


class Kind(enum.IntEnum):
    """The frames of protocol version 1."""

    CHALLENGE = 0x01
    HELLO = 0x02
    WELCOME = 0x03
    REFUSED = 0x04
    PROOF = 0x05
    PING = 0x10
    PONG = 0x11
    LAUNCH = 0x20
    FAILED = 0x21
    POOLED = 0x22
    RETIRED = 0x23
    QUEUED = 0x24
    BOUNDS = 0x25
    TARGET = 0x26
    BYE = 0x27
    CAPACITY = 0x28
    ENDED = 0x29


class Sender(enum.StrEnum):
    """Which end may send a frame."""

    BOTH = "both"
    SERVER = "server"
    CLIENT = "client"
    INGRESS = "ingress"
    EGRESS = "egress"


class Phase(enum.StrEnum):
    """When a frame may be sent."""

    HANDSHAKE = "handshake"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class FrameSpec:
    """One row of the frame table."""

    kind: Kind
    message: type[FrameMessage]
    min_bytes: int
    """shortest payload; equal to ``max_bytes`` where the length is exact"""
    max_bytes: int
    sender: Sender
    phase: Phase
    payload: str
    """the payload in words, for PROTOCOL.md"""


def _rows() -> tuple[FrameSpec, ...]:
    both, server, client, ingress, egress = Sender
    start, open_ = Phase
    row = FrameSpec
    greeting, numbers, text, u64 = _MAX_GREETING_BYTES, _MAX_LIST_BYTES, MAX_TEXT_BYTES, U64.size
    limits = "pool_min, pool_max, visitors"
    return (
        row(Kind.CHALLENGE, Challenge, 0, greeting, server, start, "JSON `{v, nonce}`"),
        row(Kind.HELLO, Hello, 0, greeting, client, start, f"JSON `{{nonce, instance, auth, mode, tls, {limits}}}`"),
        row(Kind.WELCOME, Welcome, 0, greeting, server, start, f"JSON `{{link, direction, data_port, tls, {limits}}}`"),
        row(Kind.REFUSED, Refusal, 0, text, server, start, "a sentence"),
        row(Kind.PROOF, Proof, _MAC_BYTES, _MAC_BYTES, both, start, "HMAC-SHA256"),
        row(Kind.PING, Ping, u64, u64, both, open_, "u64 stamp"),
        row(Kind.PONG, Pong, u64, u64, both, open_, "the stamp of the PING"),
        row(Kind.LAUNCH, Launch, 0, numbers, ingress, open_, "u64 ids: visitors use these data connections"),
        row(
            Kind.FAILED, VisitorFailed, u64, u64 + text, egress, open_,
            "u64 id, a sentence: this visitor cannot be served, and why",
        ),
        row(Kind.POOLED, ConnectionsPooled, 0, numbers, server, open_, "u64 ids: authenticated, in the server's pool"),
        row(Kind.RETIRED, ConnectionsRetired, 0, numbers, ingress, open_, "u64 ids: closed while idle"),
        row(Kind.QUEUED, QueueLength, U32.size, U32.size, server, open_, "u32: visitors that wait for a connection"),
        row(
            Kind.BOUNDS, LimitsAnnounced, U32_TRIPLE.size, U32_TRIPLE.size, both, open_,
            "u32 fewest idle, u32 most idle, u32 most visitors; `0xffffffff`: not configured",
        ),
        row(
            Kind.TARGET, TargetStatus, 1, 1 + text, egress, open_,
            "`01`: the target answers; `00` and a sentence: it does not",
        ),
        row(Kind.BYE, Goodbye, 0, text, both, open_, "a sentence: please close the link; launches still count"),
        row(
            Kind.CAPACITY, CapacityChanged, U32_PAIR.size, U32_PAIR.size, client, open_,
            "u32 idle connections wanted, u32 dials in progress",
        ),
        row(Kind.ENDED, StreamsEnded, 0, numbers, client, open_, "u64 id, u64 bytes, …: this stream has so many bytes"),
    )  # fmt: skip


FRAMES: Final[Mapping[int, FrameSpec]] = MappingProxyType({row.kind: row for row in _rows()})
"""All frames by their number."""

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


def frame_table() -> str:
    """The table of all frames as PROTOCOL.md has it."""
    lines = ["| type | name | from | when | payload | bytes |", "|---|---|---|---|---|---|"]
    for row in FRAMES.values():
        length = f"{row.max_bytes}" if row.min_bytes == row.max_bytes else f"{row.min_bytes} to {row.max_bytes}"
        lines.append(f"| 0x{row.kind:02x} | {row.kind.name} | {row.sender} | {row.phase} | {row.payload} | {length} |")
    return "\n".join(lines) + "\n"
