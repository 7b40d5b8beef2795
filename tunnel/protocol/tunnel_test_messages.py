"""The payloads of a tunnel test on an open link: what the ingress asks for, and what the egress reports. No I/O."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, Self

from tunnel.model.tunnel_test import TargetTimes
from tunnel.protocol.payloads import UNSET, Ident, clip_text, decode_text

_TESTED: Final = struct.Struct("!QHBIII")
_MICROSECONDS: Final = 1_000_000

MIN_TESTED_BYTES: Final = _TESTED.size
"""The shortest TESTED."""
MAX_TARGET_BYTES: Final = 300
"""The longest name of a target in TESTED: a host name has up to 253 bytes."""


class TargetTest(Ident):
    """A user wants to know how this data connection would serve a visitor: close it, and dial the targets."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class TargetTested:
    """How the egress reached one target for the TEST of a data connection."""

    ident: int
    left: int
    """results of other targets that follow"""
    times: TargetTimes

    def encode(self) -> bytes:
        """The payload as bytes; a long reason is cut."""
        times = self.times
        target = times.target.encode()[:MAX_TARGET_BYTES]
        durations = map(_encode_duration, (times.lookup_s, times.dial_s, times.first_byte_s))
        return (
            _TESTED.pack(self.ident, self.left, times.is_name, *durations)
            + target
            + b"\n"
            + clip_text(times.error or "")
        )

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """The message in a payload."""
        ident, left, is_name, lookup, dial, first_byte = _TESTED.unpack_from(payload)
        target, _, error = payload[_TESTED.size :].partition(b"\n")
        lookup_s, dial_s, first_byte_s = map(_decode_duration, (lookup, dial, first_byte))
        times = lookup_s, dial_s, first_byte_s, decode_text(error) or None
        return cls(ident, left, TargetTimes(decode_text(target), bool(is_name), *times))


def _encode_duration(seconds: float | None) -> int:
    return UNSET if seconds is None else min(round(seconds * _MICROSECONDS), UNSET - 1)


def _decode_duration(microseconds: int) -> float | None:
    return None if microseconds == UNSET else microseconds / _MICROSECONDS
