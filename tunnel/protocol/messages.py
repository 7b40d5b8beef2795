"""Payloads of the frames of an open link: one class for each kind, with its encoder and decoder.

``decode`` is called only with payloads whose length fits the row of the frame table; it raises ProtocolError.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol, Self

from tunnel.model.limits import ConfiguredLimits
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
        return _clip(self.reason)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """The message in a payload."""
        return cls(decode_text(payload))


@dataclass(frozen=True, slots=True)
class _Stamp:
    stamp: int
    """nanoseconds of the sender's monotonic clock; opaque to the peer"""

    def encode(self) -> bytes:
        """The payload as bytes."""
        return U64.pack(self.stamp)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """The message in a payload."""
        return cls(*U64.unpack(payload))


class Ping(_Stamp):
    """Asks for a Pong with the same stamp."""

    __slots__ = ()


class Pong(_Stamp):
    """Answers a Ping with the same stamp."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class _Idents:
    idents: tuple[int, ...]
    """ids of data connections"""

    def encode(self) -> bytes:
        """The payload as bytes, for at most ``MAX_NUMBERS`` ids."""
        return struct.pack(f"!{len(self.idents)}Q", *self.idents)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """The message in a payload. Raises ProtocolError."""
        return cls(_decode_numbers(payload))


class Launch(_Idents):
    """Visitors have arrived, and these data connections carry them: dial the target for each."""

    __slots__ = ()


class ConnectionsPooled(_Idents):
    """The server has authenticated these data connections and keeps them in its pool."""

    __slots__ = ()


class ConnectionsRetired(_Idents):
    """The ingress has closed these idle data connections."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class StreamsEnded:
    """Streams from the client that are complete: the id of each data connection and its number of bytes."""

    ends: tuple[tuple[int, int], ...]

    def encode(self) -> bytes:
        """The payload as bytes, for at most ``MAX_NUMBERS / 2`` pairs."""
        numbers = [number for pair in self.ends for number in pair]
        return struct.pack(f"!{len(numbers)}Q", *numbers)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """The message in a payload. Raises ProtocolError."""
        numbers = _decode_numbers(payload)
        if len(numbers) % 2:
            raise ProtocolError("a list of stream ends that is cut off")
        return cls(tuple(zip(numbers[::2], numbers[1::2], strict=True)))


@dataclass(frozen=True, slots=True)
class VisitorFailed:
    """The egress cannot serve the visitor of this data connection."""

    ident: int
    reason: str

    def encode(self) -> bytes:
        """The payload as bytes; a long reason is cut."""
        return U64.pack(self.ident) + _clip(self.reason)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """The message in a payload."""
        return cls(U64.unpack_from(payload)[0], decode_text(payload[U64.size :]))


@dataclass(frozen=True, slots=True)
class QueueLength:
    """How many visitors wait for a data connection at the server."""

    count: int

    def encode(self) -> bytes:
        """The payload as bytes."""
        return U32.pack(min(self.count, UNSET))

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """The message in a payload."""
        return cls(*U32.unpack(payload))


@dataclass(frozen=True, slots=True)
class LimitsAnnounced:
    """The values that are configured at the sender."""

    limits: ConfiguredLimits

    def encode(self) -> bytes:
        """The payload as bytes."""
        limits = self.limits
        values = (limits.pool_min, limits.pool_max, limits.visitors)
        return U32_TRIPLE.pack(*(UNSET if value is None else value for value in values))

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """The message in a payload. Raises ProtocolError."""
        values = U32_TRIPLE.unpack(payload)
        if 0 in values:  # it would stop the ingress from accepting, without any message
            raise ProtocolError("a bound of zero")
        return cls(ConfiguredLimits(*(None if value == UNSET else value for value in values)))


@dataclass(frozen=True, slots=True)
class TargetStatus:
    """Whether the target can be reached."""

    error: str | None
    """why it cannot be reached; None when it answers"""

    def encode(self) -> bytes:
        """The payload as bytes; a long reason is cut."""
        return b"\x01" if self.error is None else b"\x00" + _clip(self.error)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """The message in a payload."""
        return cls(None if payload[0] else decode_text(payload[1:]) or "no reason given")


class Goodbye(Sentence):
    """The sender asks the peer to close the link, because it shuts down or cannot use the link."""

    __slots__ = ()

    SHUTDOWN: ClassVar[str] = "it is shutting down"
    """the reason of an end that was told to stop; the peer has nothing to warn of"""

    @property
    def is_shutdown(self) -> bool:
        """Whether the sender was told to stop."""
        return self.reason == self.SHUTDOWN


@dataclass(frozen=True, slots=True)
class CapacityChanged:
    """How many idle data connections the client wants, and how many it dials now."""

    wanted: int
    dialing: int

    def encode(self) -> bytes:
        """The payload as bytes."""
        return U32_PAIR.pack(self.wanted, self.dialing)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """The message in a payload."""
        return cls(*U32_PAIR.unpack(payload))


# --- parts of payloads -----------------------------------------------------------------------------------------------


def decode_text(payload: bytes) -> str:
    """A sentence from the peer, made safe to print: one line without control characters."""
    return "".join(char if char.isprintable() else " " for char in payload.decode(errors="replace"))


def _clip(text: str) -> bytes:
    return text.encode()[:MAX_TEXT_BYTES].decode(errors="ignore").encode()


def _decode_numbers(payload: bytes) -> tuple[int, ...]:
    count, rest = divmod(len(payload), U64.size)
    if rest:
        raise ProtocolError("a list of ids that is cut off")
    return struct.unpack(f"!{count}Q", payload)
