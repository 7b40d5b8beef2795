"""Frames of the control channel: most payloads of an open link, and the table of all kinds; see PROTOCOL.md.

Lengths, permissions, payload types and the table in PROTOCOL.md derive from ``FRAMES``. A new frame needs its class,
its ``Kind`` and its row here, and a line in ``register_handlers`` of the part that handles it. No I/O.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Final, Self

from tunnel.model.balancer import MAX_WEIGHT
from tunnel.model.limits import ConfiguredLimits
from tunnel.model.spec import Proto
from tunnel.protocol.errors import ProtocolError
from tunnel.protocol.handshake_messages import Challenge, Hello, Proof, Refusal, Welcome
from tunnel.protocol.payloads import (
    MAX_NUMBERS,
    MAX_TEXT_BYTES,
    U32,
    U32_PAIR,
    U32_TRIPLE,
    U64,
    UNSET,
    FrameMessage,
    Ident,
    IdentList,
    Sentence,
    Stamp,
    clip_text,
    decode_numbers,
    decode_text,
)
from tunnel.protocol.tunnel_test_messages import MAX_TARGET_BYTES, MIN_TESTED_BYTES, TargetTest, TargetTested

_MAX_GREETING_BYTES: Final = 2048
_MAX_LIST_BYTES: Final = MAX_NUMBERS * U64.size
_MAC_BYTES: Final = 32
_LAUNCH: Final = struct.Struct("!QB")
_SHARE: Final = struct.Struct("!HB")


# --- payloads of an open link ----------------------------------------------------------------------------------------


class Ping(Stamp):
    """Asks for a Pong with the same stamp."""

    __slots__ = ()


class Pong(Stamp):
    """Answers a Ping with the same stamp."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Launch:
    """Visitors of TCP have arrived, and these data connections carry them: dial the target for each."""

    proto: ClassVar = Proto.TCP
    """what the visitors speak"""

    launches: tuple[tuple[int, bytes], ...]
    """the id of each data connection, and the address of its visitor as in ``visitor_address``"""

    def encode(self) -> bytes:
        """The payload as bytes, for as many launches as ``max_bytes`` allows."""
        return b"".join(encode_launch(ident, address) for ident, address in self.launches)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """The message in a payload. Raises ProtocolError."""
        launches, start, size = [], 0, len(payload)
        while start < size:
            address = start + _LAUNCH.size
            if address > size:
                raise ProtocolError("a list of launches that is cut off")
            ident, length = _LAUNCH.unpack_from(payload, start)
            start = address + length
            launches.append((ident, payload[address:start]))
        if start != size:
            raise ProtocolError("a list of launches that is cut off")
        return cls(tuple(launches))


class UdpLaunch(Launch):
    """Visitors of UDP have arrived, as ``Launch`` says it of those of TCP."""

    __slots__ = ()

    proto: ClassVar = Proto.UDP


def encode_launch(ident: int, address: bytes) -> bytes:
    """One launch as LAUNCH and LAUNCH_UDP have it; ``address`` is packed and has at most 255 bytes."""
    return _LAUNCH.pack(ident, len(address)) + address


class ConnectionShared(Ident):
    """The ingress opens lanes in this idle data connection from now on."""

    __slots__ = ()


class ConnectionsPooled(IdentList):
    """The server has authenticated these data connections and keeps them in its pool."""

    __slots__ = ()


class ConnectionsFreed(IdentList):
    """The egress has put these data connections into its pool again: their visitors have left in order."""

    __slots__ = ()


class ConnectionsRetired(IdentList):
    """The ingress has closed these idle data connections."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class StreamsEnded:
    """Streams that are complete: the id of each data connection and its number of bytes."""

    ends: tuple[tuple[int, int], ...]

    def encode(self) -> bytes:
        """The payload as bytes, for at most ``MAX_NUMBERS / 2`` pairs."""
        numbers = [number for pair in self.ends for number in pair]
        return struct.pack(f"!{len(numbers)}Q", *numbers)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """The message in a payload. Raises ProtocolError."""
        numbers = decode_numbers(payload)
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
        return U64.pack(self.ident) + clip_text(self.reason)

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
        return b"\x01" if self.error is None else b"\x00" + clip_text(self.error)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """The message in a payload."""
        return cls(None if payload[0] else decode_text(payload[1:]) or "no reason given")


class Goodbye(Sentence):
    """The sender asks the peer to close the link, because it shuts down or cannot use the link."""

    __slots__ = ()

    SHUTDOWN: ClassVar[str] = "it is shutting down"
    """the reason of an end that shuts down in order; the peer logs no warning"""

    @property
    def is_shutdown(self) -> bool:
        """Whether the sender shuts down in order."""
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


@dataclass(frozen=True, slots=True)
class ShareChanged:
    """The client's share of the visitors of a server with several clients."""

    weight: int
    is_backup: bool

    def encode(self) -> bytes:
        """The payload as bytes."""
        return _SHARE.pack(self.weight, self.is_backup)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """The message in a payload. Raises ProtocolError."""
        weight, backup = _SHARE.unpack(payload)
        if weight > MAX_WEIGHT or backup > 1:
            raise ProtocolError("an invalid share of the visitors")
        return cls(weight, bool(backup))


# --- the table ------------------------------------------------------------------------------------------------------


class Kind(enum.IntEnum):
    """The frames of protocol version 2."""

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
    FREED = 0x2A
    SHARE = 0x2B
    TEST = 0x2C
    TESTED = 0x2D
    LAUNCH_UDP = 0x2E
    SHARED = 0x2F


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
    challenge = "JSON `{versions, features, nonce}`"
    hello = (
        f"JSON `{{version, features, nonce, service, instance, auth, mode, tls, weight, backup, publish, {limits}}}`"
    )
    welcome = f"JSON `{{features, link, direction, data_port, carrier, {limits}}}`"
    return (
        row(Kind.CHALLENGE, Challenge, 0, greeting, server, start, challenge),
        row(Kind.HELLO, Hello, 0, greeting, client, start, hello),
        row(Kind.WELCOME, Welcome, 0, greeting, server, start, welcome),
        row(Kind.REFUSED, Refusal, 0, text, server, start, "a sentence"),
        row(Kind.PROOF, Proof, _MAC_BYTES, _MAC_BYTES, both, start, "HMAC-SHA256"),
        row(Kind.PING, Ping, u64, u64, both, open_, "u64 stamp"),
        row(Kind.PONG, Pong, u64, u64, both, open_, "the stamp of the PING"),
        row(
            Kind.LAUNCH, Launch, 0, numbers, ingress, open_,
            "(u64 id, address of the visitor), …: visitors of TCP use these data connections",
        ),
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
        row(Kind.ENDED, StreamsEnded, 0, numbers, both, open_, "u64 id, u64 bytes, …: this stream has so many bytes"),
        row(Kind.FREED, ConnectionsFreed, 0, numbers, egress, open_, "u64 ids: another visitor may use them"),
        row(Kind.SHARE, ShareChanged, _SHARE.size, _SHARE.size, client, open_, "u16 weight, u8: 1 for a backup"),
        row(Kind.TEST, TargetTest, u64, u64, ingress, open_, "u64 id: close it, and report how targets are reached"),
        row(
            Kind.TESTED, TargetTested, MIN_TESTED_BYTES, MIN_TESTED_BYTES + MAX_TARGET_BYTES + 1 + text, egress, open_,
            "u64 id, u16 results that follow, u8 target is a name, u32 µs of lookup, dial and first byte "
            "(`0xffffffff`: failed or none), target, `0a`, why it failed",
        ),
        row(Kind.LAUNCH_UDP, UdpLaunch, 0, numbers, ingress, open_, "as LAUNCH, of visitors of UDP"),
        row(Kind.SHARED, ConnectionShared, u64, u64, ingress, open_, "u64 id: lanes are opened in it from now on"),
    )  # fmt: skip


FRAMES: Final[Mapping[int, FrameSpec]] = MappingProxyType({row.kind: row for row in _rows()})
"""All frames by their number."""


def frame_table() -> str:
    """The table of all frames as PROTOCOL.md has it."""
    lines = ["| type | name | from | when | payload | bytes |", "|---|---|---|---|---|---|"]
    for row in FRAMES.values():
        length = f"{row.max_bytes}" if row.min_bytes == row.max_bytes else f"{row.min_bytes} to {row.max_bytes}"
        lines.append(f"| 0x{row.kind:02x} | {row.kind.name} | {row.sender} | {row.phase} | {row.payload} | {length} |")
    return "\n".join(lines) + "\n"
