"""What a datagram between the two ends of a link contains: a probe, its answer, or a datagram of a flow. No I/O.

See PROTOCOL.md. ``tunnel.protocol.datagram_records`` encrypts these contents.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from tunnel.protocol.errors import ProtocolError

MAX_SEALED_BYTES: Final = 1400
"""The longest datagram of a path: with its headers for IPv6 (48 bytes) it passes PPPoE and most tunnels."""

_PROBE: Final = struct.Struct("!BQB")
_ANSWER: Final = struct.Struct("!BQ")
_FLOW: Final = struct.Struct("!BQ")
_PROBE_KIND: Final = 1
_ANSWER_KIND: Final = 2
_FLOW_KIND: Final = 3

FLOW_HEADER_BYTES: Final = _FLOW.size
"""Bytes before the datagram of a flow."""


class Probe(NamedTuple):
    """A question of the client whether datagrams pass."""

    number: int
    is_usable: bool
    """whether the client uses the path"""
    size: int
    """bytes of the content, with padding"""


class Answer(NamedTuple):
    """The server's answer to a probe."""

    number: int


class FlowDatagram(NamedTuple):
    """A datagram of a visitor or a target."""

    flow: int
    """id of the data connection of its flow"""
    content: memoryview


DatagramContent = Probe | Answer | FlowDatagram


def encode_probe(number: int, *, is_usable: bool, size: int = 0) -> bytes:
    """Return the content of a probe, padded to ``size`` bytes."""
    return _PROBE.pack(_PROBE_KIND, number, is_usable).ljust(size, b"\0")


def encode_answer(probe: Probe) -> bytes:
    """Return the content of the answer to a probe, which has the probe's size."""
    return _ANSWER.pack(_ANSWER_KIND, probe.number).ljust(probe.size, b"\0")


def encode_flow_datagram(flow: int, datagram: bytes | memoryview) -> bytes:
    """Return the content with a datagram of a flow."""
    return _FLOW.pack(_FLOW_KIND, flow) + datagram


def decode_content(content: bytes) -> DatagramContent:
    """Parse the content of a datagram. Raises ProtocolError."""
    kind = content[0] if content else 0
    if kind == _FLOW_KIND and len(content) >= _FLOW.size:
        return FlowDatagram(_FLOW.unpack_from(content)[1], memoryview(content)[_FLOW.size :])
    if kind == _PROBE_KIND and len(content) >= _PROBE.size:
        _, number, is_usable = _PROBE.unpack_from(content)
        return Probe(number, is_usable == 1, len(content))
    if kind == _ANSWER_KIND and len(content) >= _ANSWER.size:
        return Answer(_ANSWER.unpack_from(content)[1])
    raise ProtocolError("a datagram of an unknown kind, or one that is too short for its kind")
