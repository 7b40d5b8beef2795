"""Datagrams between the two ends of a link, encrypted and authenticated one by one. No I/O; see PROTOCOL.md.

Each datagram names its link and its number, so that it can be lost, repeated or overtaken without harm to others. The
key is derived from the secret of the link, for each direction and each 2^24 datagrams. The nonce holds the number.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tunnel.protocol.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunnel.protocol.records import RecordDirection

LINK_BYTES: Final = 8
HEADER_BYTES: Final = LINK_BYTES + 8
TAG_BYTES: Final = 16
OVERHEAD_BYTES: Final = HEADER_BYTES + TAG_BYTES
"""What a sealed datagram has beside its content: link, number, tag."""
WINDOW: Final = 1024
"""A datagram that is more than so many numbers behind the highest is dropped (RFC 4303 §3.4.3)."""

_SEEN_MASK: Final = (1 << WINDOW) - 1
_NUMBER: Final = struct.Struct("!Q")
_GENERATION_BITS: Final = 24
"""2^24 datagrams share a key: RFC 8446 §5.5 allows 2^24.5 records of 16 KiB, and most datagrams are shorter."""
_GENERATION_MASK: Final = (1 << _GENERATION_BITS) - 1
_KEY_CONTEXT: Final = struct.Struct("!BQ")
_KEY_BYTES: Final = 16
_IV_BYTES: Final = 12


class DatagramRecordError(ProtocolError):
    """A datagram that was forged, changed, repeated or is too old: it is dropped, and nothing is answered."""


class _DatagramKeys:
    """The cipher of one direction for the numbers of one generation; the one before stays for late datagrams."""

    __slots__ = ("_direction", "_latest", "_secret")

    def __init__(self, secret: bytes, direction: RecordDirection) -> None:
        self._secret = secret
        self._direction = direction
        self._latest: dict[int, tuple[AESGCM, int]] = {}

    def find(self, number: int) -> tuple[AESGCM, int]:
        """Return cipher and iv for a number."""
        generation = number >> _GENERATION_BITS
        found = self._latest.get(generation)
        if found is None:
            context = _KEY_CONTEXT.pack(self._direction, generation)
            block = hashlib.blake2s(b"datagram\0" + context, key=self._secret).digest()
            iv = int.from_bytes(block[_KEY_BYTES : _KEY_BYTES + _IV_BYTES])
            found = AESGCM(block[:_KEY_BYTES]), iv
            if len(self._latest) == 2:
                del self._latest[min(self._latest)]
            self._latest[generation] = found
        return found


class DatagramSealer:
    """Seals the datagrams of one direction of a link."""

    __slots__ = ("_keys", "_link", "_number")

    def __init__(self, link: bytes, secret: bytes, direction: RecordDirection, number: int = 0) -> None:
        """``link`` is the id in binary; ``number`` that of the first datagram."""
        self._link = link
        self._keys = _DatagramKeys(secret, direction)
        self._number = number

    @property
    def next_number(self) -> int:
        """The number of the next datagram."""
        return self._number

    def seal(self, content: bytes) -> bytes:
        """Return a datagram with this content."""
        return self.seal_all(b"", (content,))[0]

    def seal_all(self, prefix: bytes, contents: Sequence[bytes | memoryview]) -> list[bytes]:
        """Return a datagram for each of the contents, which follows ``prefix`` in it."""
        link, number, pack, sealed = self._link, self._number, _NUMBER.pack, []
        cipher, iv = self._keys.find(number)
        for content in contents:
            if not number & _GENERATION_MASK:
                cipher, iv = self._keys.find(number)
            header = link + pack(number)
            sealed.append(header + cipher.encrypt((iv ^ number).to_bytes(_IV_BYTES), prefix + content, header))
            number += 1
        self._number = number
        return sealed


class DatagramOpener:
    """Opens the datagrams of one direction of a link, each number once."""

    __slots__ = ("_cipher", "_generation", "_highest", "_iv", "_keys", "_seen")

    def __init__(self, secret: bytes, direction: RecordDirection) -> None:
        self._keys = _DatagramKeys(secret, direction)
        self._generation = 0
        self._cipher, self._iv = self._keys.find(0)  # of that generation
        self._highest = -1
        self._seen = 0  # bit n: the number ``_highest - n`` was received

    @property
    def highest(self) -> int:
        """The highest number that was received; -1 before the first."""
        return self._highest

    def open(self, datagram: bytes) -> bytes:
        """Return the content. Raises DatagramRecordError; then nothing has changed."""
        if len(datagram) < OVERHEAD_BYTES:
            raise DatagramRecordError("a datagram that is too short")
        (number,) = _NUMBER.unpack_from(datagram, LINK_BYTES)
        age = self._highest - number
        if age >= 0:
            if age >= WINDOW:
                raise DatagramRecordError("a datagram that is too old")
            if self._seen >> age & 1:
                raise DatagramRecordError("a datagram that came before")
        if number >> _GENERATION_BITS != self._generation:
            self._use_keys(number)
        try:
            content = self._cipher.decrypt(
                (self._iv ^ number).to_bytes(_IV_BYTES), datagram[HEADER_BYTES:], datagram[:HEADER_BYTES]
            )
        except InvalidTag:
            raise DatagramRecordError("a datagram that was changed on the way, or does not belong here") from None
        if age >= 0:
            self._seen |= 1 << age
        else:
            self._seen = (self._seen << -age | 1) & _SEEN_MASK if -age < WINDOW else 1
            self._highest = number
        return content

    def _use_keys(self, number: int) -> None:
        """Use the keys for a number; a forged number must not cost the keys of a far generation."""
        generation = number >> _GENERATION_BITS
        if generation > (max(self._highest, 0) >> _GENERATION_BITS) + 1:
            raise DatagramRecordError("a datagram from too far ahead")
        self._cipher, self._iv = self._keys.find(number)
        self._generation = generation
