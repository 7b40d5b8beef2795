"""The packets of a broker (MQTT 3.1.1 and 5), split between the MQTT library and us. Sans-I/O.

The library reads each packet with several calls, makes an object for its properties and asks each filter of topics.
That is more than half of the CPU of a reader of thousands of tunnels, so messages with QoS 0, which need no answer, are
decoded here. All other packets are for the library, but for DISCONNECT, which it handles badly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from orchestrator.mqtt.payloads import MAX_PAYLOAD_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_PACKET_BYTES: Final = MAX_PAYLOAD_BYTES + 128 * 1024
"""The longest packet that is read: the longest payload, with its topic (at most 64 KiB) and its properties."""

_MALFORMED_LENGTH: Final = 1 << 62
_DISCONNECT: Final = 14
_PUBLISH_QOS_0: Final = frozenset({0x30, 0x31})
"""First byte of PUBLISH with QoS 0 (section 3.3.1), without and with RETAIN; a duplicate with QoS 0 is malformed."""
_RETAIN: Final = 1


class ReceivedMessage(NamedTuple):
    """A message of the broker."""

    topic: str
    payload: bytes
    retain: bool
    """whether it was published before the subscription, or with ``retain_as_published``, whether its sender said so"""


class PacketSplitter:
    """Finds messages with QoS 0 and the broker's DISCONNECT (MQTT 5, section 3.14) in a stream of packets."""

    def __init__(self, deliver: Callable[[ReceivedMessage], object], *, is_v5: bool) -> None:
        """``deliver`` is called for each message with QoS 0. ``is_v5`` is the version that we have asked for."""
        self._deliver = deliver
        self._is_v5 = is_v5
        self._remaining = 0  # bytes of the present packet, one for the library, that have not come yet
        self._partial = bytearray()  # the start of a packet that is needed whole, or at least its header
        self._wanted = 0  # bytes of it with which it is parsed again
        self.code: int | None = None
        """reason code of the DISCONNECT, once there was one"""
        self.excess: int | None = None
        """length of a packet that is longer than MAX_PACKET_BYTES, once there was one; the rest is withheld"""

    def feed(self, data: bytes) -> bytes:
        """The bytes for the library: whole packet heads, up to a DISCONNECT."""
        if self.code is not None or self.excess is not None:
            return b""
        if self._partial:
            self._partial += data
            if len(self._partial) < self._wanted:
                return b""
            data = bytes(self._partial)
            self._partial.clear()
        passed: list[bytes] = []
        passed_to, position = 0, self._remaining
        while position < len(data) and (end := self._find_end(data, position)) is not None:
            if data[position] in _PUBLISH_QOS_0 and end <= len(data) and self._deliver_publish(data, position, end):
                passed.append(data[passed_to:position])
                passed_to = end
            position = end
        self._remaining = max(0, position - len(data))
        passed.append(data[passed_to:position])
        return b"".join(passed)

    def _find_end(self, data: bytes, position: int) -> int | None:
        """Where the packet ends that begins here; None if the rest of the data is kept or withheld."""
        header = _parse_fixed_header(data, position)
        if header is None:
            self._keep(data, position, 1)
            return None
        start, length = header
        if data[position] >> 4 == _DISCONNECT:
            if length and start == len(data):
                self._keep(data, position, 1)
            else:
                self.code = data[start] if length else 0
            return None
        if MAX_PACKET_BYTES < length < _MALFORMED_LENGTH:
            self.excess = length
            return None
        end = start + length
        if data[position] in _PUBLISH_QOS_0 and len(data) < end < _MALFORMED_LENGTH:
            self._keep(data, position, end - len(data))
            return None
        return end

    def _keep(self, data: bytes, position: int, missing: int) -> None:
        self._partial += data[position:]
        self._wanted = len(self._partial) + missing

    def _deliver_publish(self, data: bytes, position: int, end: int) -> bool:
        """Deliver the message of a whole packet (section 3.3); False if it is malformed, for the library to reject."""
        start = position + 2
        while data[start - 1] & 0x80:
            start += 1
        topic_end = start + 2 + int.from_bytes(data[start : start + 2])
        payload_at = topic_end + self._properties_size(data, topic_end)
        if payload_at > end:
            return False
        try:
            topic = data[start + 2 : topic_end].decode()
        except UnicodeDecodeError:
            return False
        if not topic or "+" in topic or "#" in topic:
            return False
        self._deliver(ReceivedMessage(topic, data[payload_at:end], bool(data[position] & _RETAIN)))
        return True

    def _properties_size(self, data: bytes, position: int) -> int:
        """Bytes of the properties, which nothing here needs, with those of their length."""
        if not self._is_v5:
            return 0
        size = index = 0
        for index, byte in enumerate(data[position : position + 4], 1):
            size |= (byte & 0x7F) << 7 * (index - 1)
            if byte < 0x80:
                return index + size
        return MAX_PACKET_BYTES  # malformed


def _parse_fixed_header(data: bytes, position: int) -> tuple[int, int] | None:
    """Where the packet's body begins and its length (section 2.1.4); None where the header is not complete.

    A length of more than four bytes is malformed: the rest is passed on, for the library to reject.
    """
    length = 0
    for index, byte in enumerate(data[position + 1 : position + 5]):
        length |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return position + index + 2, length
    return None if len(data) < position + 5 else (position, _MALFORMED_LENGTH)
