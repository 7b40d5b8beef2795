"""Frames of the control channel and the preface of data connections, to bytes and back. No I/O; see PROTOCOL.md."""

from __future__ import annotations

import enum
import hashlib
import hmac
import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from tunnel.model.errors import TunnelError

VERSION: Final = 1
TLS_HANDSHAKE_BYTE: Final = 0x16
"""First byte of a TLS connection (RFC 8446 §5.1, ContentType handshake): tells it from a data connection."""

_HEADER: Final = struct.Struct("!BH")
_U64: Final = struct.Struct("!Q")
_U32: Final = struct.Struct("!I")
_PAIR: Final = struct.Struct("!II")
_BOUNDS: Final = struct.Struct("!III")
_UNSET: Final = 0xFFFFFFFF
_TEXT_LIMIT: Final = 512  # bytes of a sentence sent to the other end
IDS_PER_FRAME: Final = 2048


class ProtocolError(TunnelError):
    """The other end sent what the protocol does not allow; the message says what, for our own log."""


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


_GREETINGS: Final = frozenset({Kind.CHALLENGE, Kind.HELLO, Kind.WELCOME})
_IDS: Final = frozenset({Kind.LAUNCH, Kind.POOLED, Kind.RETIRED})

LIMITS: Final[dict[int, int]] = {
    **dict.fromkeys(_GREETINGS, 1024),
    **dict.fromkeys(_IDS, IDS_PER_FRAME * _U64.size),
    Kind.REFUSED: _TEXT_LIMIT,
    Kind.PROOF: 32,
    Kind.PING: _U64.size,
    Kind.PONG: _U64.size,
    Kind.FAILED: _U64.size + _TEXT_LIMIT,
    Kind.QUEUED: _U32.size,
    Kind.ENDED: IDS_PER_FRAME * _U64.size,
    Kind.CAPACITY: _PAIR.size,
    Kind.BOUNDS: _BOUNDS.size,
    Kind.TARGET: 1 + _TEXT_LIMIT,
    Kind.BYE: _TEXT_LIMIT,
}
"""Longest payload of each frame in bytes."""

Frame = tuple[Kind, bytes]


def encode(kind: Kind, payload: bytes = b"") -> bytes:
    """One frame as bytes."""
    if len(payload) > LIMITS[kind]:
        raise ValueError(f"a {kind.name} frame holds at most {LIMITS[kind]} bytes")
    return _HEADER.pack(kind, len(payload)) + payload


class FrameDecoder:
    """Bytes in, whole frames out. Holds at most one unfinished frame."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete after ``data``. Raises ProtocolError; the decoder is of no use afterwards."""
        data = self._rest + data
        frames: list[Frame] = []
        start, end = 0, len(data)
        while end - start >= _HEADER.size:
            number, length = _HEADER.unpack_from(data, start)
            limit = LIMITS.get(number)
            if limit is None:
                raise ProtocolError(f"unknown frame 0x{number:02x}")
            if length > limit:
                raise ProtocolError(f"a {Kind(number).name} frame of {length} bytes, allowed are {limit}")
            stop = start + _HEADER.size + length
            if stop > end:
                break
            frames.append((Kind(number), data[start + _HEADER.size : stop]))
            start = stop
        self._rest = data[start:]
        return frames


def encode_greeting(kind: Kind, fields: dict[str, Any]) -> bytes:
    """A frame of the handshake whose payload is a small JSON object."""
    return encode(kind, json.dumps(fields, separators=(",", ":"), sort_keys=True).encode())


def decode_greeting(payload: bytes) -> dict[str, Any]:
    """The object of such a frame. Raises ProtocolError."""
    try:
        fields = json.loads(payload)
    except (ValueError, RecursionError):
        raise ProtocolError("a greeting that is not JSON") from None
    if not isinstance(fields, dict):
        raise ProtocolError("a greeting that is not an object")
    return fields


def encode_ids(kind: Kind, ids: Iterable[int]) -> bytes:
    """As many frames of ``kind`` as the ids need: LAUNCH, POOLED or RETIRED."""
    ids = list(ids)
    frames = []
    for start in range(0, len(ids), IDS_PER_FRAME):
        part = ids[start : start + IDS_PER_FRAME]
        frames.append(encode(kind, struct.pack(f"!{len(part)}Q", *part)))
    return b"".join(frames)


def decode_ids(payload: bytes) -> tuple[int, ...]:
    """The ids of such a frame. Raises ProtocolError."""
    count, rest = divmod(len(payload), _U64.size)
    if rest:
        raise ProtocolError("a list of ids that is cut off")
    return struct.unpack(f"!{count}Q", payload)


def encode_ended(ends: Iterable[tuple[int, int]]) -> bytes:
    """As many ENDED frames as the pairs of id and bytes in all need."""
    flat = [number for pair in ends for number in pair]
    frames = []
    for start in range(0, len(flat), IDS_PER_FRAME):
        part = flat[start : start + IDS_PER_FRAME]
        frames.append(encode(Kind.ENDED, struct.pack(f"!{len(part)}Q", *part)))
    return b"".join(frames)


def decode_ended(payload: bytes) -> list[tuple[int, int]]:
    """The pairs of an ENDED frame. Raises ProtocolError."""
    flat = decode_ids(payload)
    if len(flat) % 2:
        raise ProtocolError("a list of ends that is cut off")
    return list(zip(flat[::2], flat[1::2], strict=True))


def encode_stamp(kind: Kind, stamp: int) -> bytes:
    """PING or PONG; the answer carries the stamp of the question."""
    return encode(kind, _U64.pack(stamp))


def decode_stamp(payload: bytes) -> int:
    """The stamp of a PING or PONG. Raises ProtocolError."""
    return _unpack(_U64, payload)[0]


def encode_queued(count: int) -> bytes:
    """QUEUED: so many visitors wait for a data connection at the server."""
    return encode(Kind.QUEUED, _U32.pack(min(count, _UNSET)))


def decode_queued(payload: bytes) -> int:
    """The number of a QUEUED frame. Raises ProtocolError."""
    return _unpack(_U32, payload)[0]


def encode_capacity(wanted: int, dialing: int) -> bytes:
    """CAPACITY: so many idle connections the client wants, so many it is dialling."""
    return encode(Kind.CAPACITY, _PAIR.pack(wanted, dialing))


def decode_capacity(payload: bytes) -> tuple[int, int]:
    """The two of a CAPACITY frame. Raises ProtocolError."""
    wanted, dialing = _unpack(_PAIR, payload)
    return wanted, dialing


def encode_bounds(values: Iterable[int | None]) -> bytes:
    """BOUNDS: least and most idle connections, most visitors; None where nobody set one."""
    return encode(Kind.BOUNDS, _BOUNDS.pack(*(_UNSET if value is None else value for value in values)))


def decode_bounds(payload: bytes) -> tuple[int | None, int | None, int | None]:
    """The three of a BOUNDS frame. Raises ProtocolError."""
    values = _unpack(_BOUNDS, payload)
    if 0 in values:
        raise ProtocolError("a bound of zero")
    first, second, third = (None if value == _UNSET else value for value in values)
    return first, second, third


def encode_failed(ident: int, text: str) -> bytes:
    """FAILED: the visitor of this data connection could not be served, and why."""
    return encode(Kind.FAILED, _U64.pack(ident) + _clip(text))


def decode_failed(payload: bytes) -> tuple[int, str]:
    """Id and reason of a FAILED frame. Raises ProtocolError."""
    if len(payload) < _U64.size:
        raise ProtocolError("a FAILED frame that is cut off")
    return _U64.unpack_from(payload)[0], decode_text(payload[_U64.size :])


def encode_target(trouble: str | None) -> bytes:
    """TARGET: the exit's target answers (None), or what is wrong with it."""
    return encode(Kind.TARGET, b"\x01" if trouble is None else b"\x00" + _clip(trouble))


def decode_target(payload: bytes) -> str | None:
    """What a TARGET frame says. Raises ProtocolError."""
    if not payload:
        raise ProtocolError("a TARGET frame that is cut off")
    return None if payload[0] else decode_text(payload[1:]) or "no reason given"


def encode_text(kind: Kind, text: str) -> bytes:
    """REFUSED or BYE with a sentence."""
    return encode(kind, _clip(text))


def decode_text(payload: bytes) -> str:
    """A sentence from the other end, made safe to print: one line, no control characters."""
    return "".join(char if char.isprintable() else " " for char in payload.decode(errors="replace"))


def _clip(text: str) -> bytes:
    return text.encode()[:_TEXT_LIMIT].decode(errors="ignore").encode()


def _unpack(shape: struct.Struct, payload: bytes) -> tuple[int, ...]:
    if len(payload) != shape.size:
        raise ProtocolError(f"a payload of {len(payload)} bytes where {shape.size} belong")
    return shape.unpack(payload)


# --- data connections ---------------------------------------------------------------------------------------------

_MAGIC: Final = b"NPD\x01"
_PREFACE: Final = struct.Struct("!4sQ20s")
PREFACE_SIZE: Final = _PREFACE.size
"""Bytes at the start of every data connection: magic with the version, id, MAC."""


def encode_preface(secret: bytes, ident: int) -> bytes:
    """The first bytes of data connection ``ident`` of the link with this secret."""
    return _PREFACE.pack(_MAGIC, ident, _mac(secret, b"data", ident))


def decode_preface(secret: bytes, data: bytes) -> int:
    """The id of a genuine preface. Raises ProtocolError; its time does not depend on where the MAC differs."""
    magic: bytes
    ident: int
    mac: bytes
    magic, ident, mac = _PREFACE.unpack(data)
    if magic != _MAGIC:
        raise ProtocolError("not a data connection")
    if not hmac.compare_digest(mac, _mac(secret, b"data", ident)):
        raise ProtocolError("a preface with a wrong MAC")
    return ident


def data_tls_proof(secret: bytes, ident: int) -> bytes:
    """What the client says first inside an encrypted data connection: whoever ends that TLS knows the link's secret."""
    return _mac(secret, b"data tls", ident)


DATA_TLS_PROOF_SIZE: Final = 20


def _mac(secret: bytes, label: bytes, ident: int) -> bytes:
    # once per visitor at each end, where HMAC by way of OpenSSL takes five times as long
    return hashlib.blake2s(label + b"\0" + _U64.pack(ident), key=secret, digest_size=20).digest()


@dataclass(slots=True)
class ReplayWindow:
    """Lets every id pass once, within a window below the highest seen; older ones never (RFC 4303 §3.4.3)."""

    window: int = 8192
    _highest: int = -1
    _seen: int = 0  # bit n: the id n below the highest has passed
    _mask: int = field(init=False)

    def __post_init__(self) -> None:
        self._mask = (1 << self.window) - 1

    def accept(self, ident: int) -> bool:
        """Whether this id passes now."""
        ahead = ident - self._highest
        if ahead > 0:
            kept = 0 if ahead >= self.window else self._seen << ahead
            self._seen = (kept | 1) & self._mask
            self._highest = ident
            return True
        if -ahead >= self.window:
            return False
        bit = 1 << -ahead
        if self._seen & bit:
            return False
        self._seen |= bit
        return True
