"""Parts of which the payloads of frames are made: numbers, lists of ids, sentences.

``decode`` is called only with payloads whose length fits the row of the frame table; it raises ProtocolError.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, Protocol, Self

from tunnel.protocol.errors import ProtocolError

U64: Final = struct.Struct("!Q")
U32: Final = struct.Struct("!I")
U32_PAIR: Final = struct.Struct("!II")
U32_TRIPLE: Final = struct.Struct("!III")
MAX_TEXT_BYTES: Final = 512
MAX_NUMBERS: Final = 2048
"""u64 numbers in one frame at most; even, so that no pair is split between two frames."""
UNSET: Final = 0xFFFFFFFF  # in BOUNDS: this end has no configured value


class FrameMessage(Protocol):
    """The payload of one frame."""

    def encode(self) -> bytes:
        """The payload as bytes."""

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """The message in a payload. Raises ProtocolError."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """A payload that is a sentence for people."""

    reason: str

    def encode(self) -> bytes:
        """The payload as bytes; a long sentence is cut."""
        return clip_text(self.reason)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """The message in a payload."""
        return cls(decode_text(payload))


@dataclass(frozen=True, slots=True)
class Stamp:
    """A payload that is a time."""

    stamp: int
    """nanoseconds of the sender's monotonic clock; opaque to the peer"""

    def encode(self) -> bytes:
        """The payload as bytes."""
        return U64.pack(self.stamp)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """The message in a payload."""
        return cls(*U64.unpack(payload))


@dataclass(frozen=True, slots=True)
class Ident:
    """A payload that is the id of one data connection."""

    ident: int
    """id of the data connection"""

    def encode(self) -> bytes:
        """The payload as bytes."""
        return U64.pack(self.ident)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """The message in a payload."""
        return cls(*U64.unpack(payload))


@dataclass(frozen=True, slots=True)
class IdentList:
    """A payload that is a list of data connections."""

    idents: tuple[int, ...]
    """ids of data connections"""

    def encode(self) -> bytes:
        """The payload as bytes, for at most ``MAX_NUMBERS`` ids."""
        return struct.pack(f"!{len(self.idents)}Q", *self.idents)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """The message in a payload. Raises ProtocolError."""
        return cls(decode_numbers(payload))


def decode_text(payload: bytes) -> str:
    """A sentence from the peer, made safe to print: one line without control characters."""
    return "".join(char if char.isprintable() else " " for char in payload.decode(errors="replace"))


def clip_text(text: str) -> bytes:
    """A sentence as bytes, cut to the longest that a frame may have."""
    return text.encode()[:MAX_TEXT_BYTES].decode(errors="ignore").encode()


def decode_numbers(payload: bytes) -> tuple[int, ...]:
    """A list of u64 numbers. Raises ProtocolError."""
    count, rest = divmod(len(payload), U64.size)
    if rest:
        raise ProtocolError("a list of ids that is cut off")
    return struct.unpack(f"!{count}Q", payload)
