"""What a datagram between the two ends of a link contains: a probe, its answer, or a datagram of a flow. No I/O.

See PROTOCOL.md. ``tunnel.protocol.datagram_records`` encrypts these contents.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

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


class ProbeAnswer(NamedTuple):
    """The server's answer to a probe."""

    number: int


PathMessage = Probe | ProbeAnswer


def encode_probe(number: int, *, is_usable: bool, size: int = 0) -> bytes:
    """Return the content of a probe, padded to ``size`` bytes."""
    return _PROBE.pack(_PROBE_KIND, number, is_usable).ljust(size, b"\0")


def encode_answer(probe: Probe) -> bytes:
    """Return the content of the answer to a probe, which has the probe's size."""
    return _ANSWER.pack(_ANSWER_KIND, probe.number).ljust(probe.size, b"\0")


def encode_flow_header(flow: int) -> bytes:
    """Return what comes before each datagram of a flow; together they are the content."""
    return _FLOW.pack(_FLOW_KIND, flow)


def sort_contents(contents: Sequence[bytes]) -> tuple[dict[int, list[bytes]], list[PathMessage]]:
    """Return the datagrams of each flow in their order, and the other messages. What is neither is left out."""
    flows: dict[bytes, list[bytes]] = {}
    messages: list[PathMessage] = []
    for content in contents:
        if len(content) >= FLOW_HEADER_BYTES and content[0] == _FLOW_KIND:
            flows.setdefault(content[:FLOW_HEADER_BYTES], []).append(content[FLOW_HEADER_BYTES:])
        elif (message := _decode_message(content)) is not None:
            messages.append(message)
    return {_FLOW.unpack(header)[1]: found for header, found in flows.items()}, messages


def _decode_message(content: bytes) -> PathMessage | None:
    kind = content[0] if content else 0
    if kind == _PROBE_KIND and len(content) >= _PROBE.size:
        _, number, is_usable = _PROBE.unpack_from(content)
        return Probe(number, is_usable == 1, len(content))
    if kind == _ANSWER_KIND and len(content) >= _ANSWER.size:
        return ProbeAnswer(_ANSWER.unpack_from(content)[1])
    return None
