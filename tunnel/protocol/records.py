"""Encryption of a data connection: records in the format of TLS 1.3, with keys of their own. No I/O; see PROTOCOL.md.

Both ends derive keys from the secret of the link. A stream is one direction of one use of a data connection. Streams
with neighbouring ids share a key, because making a cipher costs as much as several small records; what differs is the
nonce, which holds the place of the stream and of the record. Bulk is sealed and opened in place, in the buffer in which
it is received or from which it is sent; small records are copied. A cipher takes three kilobytes, so a process keeps
only the latest ones. The library takes seven megabytes: this module is imported only where data connections are
encrypted.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from collections import deque
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tunnel.protocol.errors import ProtocolError

HEADER_BYTES: Final = 5
TAG_BYTES: Final = 16
OVERHEAD_BYTES: Final = HEADER_BYTES + 1 + TAG_BYTES
"""What a record has beside its content: header, content type, tag (RFC 8446 §5.2)."""
MAX_CONTENT_BYTES: Final = 1 << 14
"""The most content of one record (RFC 8446 §5.1)."""
MAX_RECORD_BYTES: Final = MAX_CONTENT_BYTES + OVERHEAD_BYTES

CONNECTIONS_PER_KEY: Final = 1 << 10
USES_PER_KEY: Final = 1 << 4
RECORDS_PER_KEY: Final = 1 << 10
"""Records of one stream under one key; then it takes the next generation of its keys.

Together 2^24 records at most share a key. RFC 8446 §5.5 allows 2^24.5 full ones for AES-GCM.
"""

_HEADER: Final = struct.Struct("!3sH")
_VERSION: Final = b"\x17\x03\x03"  # application data, TLS 1.2 (RFC 8446 §5.2): every record looks like this
_FULL_HEADER: Final = _HEADER.pack(_VERSION, MAX_RECORD_BYTES - HEADER_BYTES)
_pack_header: Final = _HEADER.pack
_DATA: Final = 23  # ContentType application_data
_DATA_TYPE: Final = bytes([_DATA])
_END: Final = b"\x01\x00\x15"  # AlertLevel warning, AlertDescription close_notify, ContentType alert (RFC 8446 §6.1)
_MIN_LENGTH: Final = 1 + 1 + TAG_BYTES
_MAX_LENGTH: Final = MAX_CONTENT_BYTES + 1 + TAG_BYTES
_CHANGED: Final = "a record that was changed on the way, or does not belong here"
_KEY_BYTES: Final = 16
_IV_BYTES: Final = 12
_KEY_CONTEXT: Final = struct.Struct("!QIBI")
_PLACE_BITS: Final = 32  # of each of the three numbers in a nonce

MAX_CIPHERS: Final = 256
"""Ciphers that a process keeps."""
_MAX_LINK_KEYS: Final = 64

_with_cipher: Final = deque["RecordKey"]()  # keys with a cipher, the oldest first


class RecordError(ProtocolError):
    """A record that was changed, moved, repeated or forged, or one before it was dropped."""


class RecordDirection(enum.IntEnum):
    """Which way records go: each has keys of its own, so that no record can be sent back."""

    TO_SERVER = 0
    TO_CLIENT = 1


def derive_record_key(
    secret: bytes, connections: int, uses: int, direction: RecordDirection, generation: int
) -> tuple[bytes, bytes]:
    """The key and the iv of one generation of records of a direction, from the secret of the link.

    ``connections`` and ``uses`` are the numbers of the blocks of data connections and of their uses that share it.
    """
    context = _KEY_CONTEXT.pack(connections, uses, direction, generation)
    block = hashlib.blake2s(b"record\0" + context, key=secret).digest()
    return block[:_KEY_BYTES], block[_KEY_BYTES : _KEY_BYTES + _IV_BYTES]


class RecordKey:
    """A key with its iv, and its cipher if the process has kept that."""

    __slots__ = ("_key", "cipher", "iv")

    def __init__(self, key: bytes, iv: bytes) -> None:
        self._key = key
        self.iv = int.from_bytes(iv)
        self.cipher: AESGCM | None = None

    def make_cipher(self) -> AESGCM:
        """Make the cipher, and free the memory of the oldest one if there are many."""
        cipher = self.cipher = AESGCM(self._key)
        if len(_with_cipher) == MAX_CIPHERS:
            _with_cipher.popleft().drop_cipher()
        _with_cipher.append(self)
        return cipher

    def drop_cipher(self) -> None:
        """Free the memory of the cipher until the next record."""
        self.cipher = None


class LinkKeys:
    """The keys of the streams of one link. Keeps the latest ones, so that streams share their ciphers."""

    __slots__ = ("_latest", "_secret")

    def __init__(self, secret: bytes) -> None:
        """``secret`` is the link's."""
        self._secret = secret
        self._latest: dict[tuple[int, int, RecordDirection, int], RecordKey] = {}  # by what it is derived from

    def __len__(self) -> int:
        """Number of keys that are kept."""
        return len(self._latest)

    def find(self, connections: int, uses: int, direction: RecordDirection, generation: int) -> RecordKey:
        """Return the key for a generation of records of a block of streams, as in ``derive_record_key``."""
        place = connections, uses, direction, generation
        key = self._latest.get(place)
        if key is None:
            key = self._latest[place] = RecordKey(*derive_record_key(self._secret, *place))
            if len(self._latest) > _MAX_LINK_KEYS:
                del self._latest[next(iter(self._latest))]
        return key


class _RecordStream:
    """Numbers the records of one stream, and finds the keys for them."""

    __slots__ = ("_direction", "_generation", "_ident", "_key", "_keys", "_nonce", "_number", "_use")

    def __init__(self, keys: LinkKeys, ident: int, use: int, direction: RecordDirection) -> None:
        """``ident`` is the id of the data connection, ``use`` which visitor of it this is, from 0."""
        self._keys = keys
        self._ident = ident
        self._use = use
        self._direction = direction
        self._start_generation(0)

    def _start_generation(self, generation: int) -> RecordKey:
        """Use the next key: the number of records under one key is reached."""
        self._generation = generation
        self._number = 0  # of the next record, within its generation
        connections, connection = divmod(self._ident, CONNECTIONS_PER_KEY)
        uses, use = divmod(self._use, USES_PER_KEY)
        key = self._key = self._keys.find(connections, uses, self._direction, generation)
        self._nonce = key.iv ^ (connection << 2 * _PLACE_BITS | use << _PLACE_BITS)
        return key


class RecordPlace:
    """The place of a full record in a buffer, whose parts are cut once: slices cost a fifth of the encryption."""

    __slots__ = ("content", "header", "inner", "sealed")

    def __init__(self, buffer: memoryview, start: int) -> None:
        inner, end = start + HEADER_BYTES, start + MAX_RECORD_BYTES
        self.header = buffer[start:inner]
        self.content = buffer[inner : inner + MAX_CONTENT_BYTES]
        """where the content is received"""
        self.inner = buffer[inner : end - TAG_BYTES]
        """the content and its type"""
        self.sealed = buffer[inner:end]


class RecordWriter(_RecordStream):
    """Seals the records of one stream."""

    __slots__ = ()

    def seal_full(self, place: RecordPlace) -> None:
        """Make a full data record, in place, of the content that lies at its place."""
        place.header[:] = _FULL_HEADER
        place.inner[MAX_CONTENT_BYTES] = _DATA
        key = self._key if self._number < RECORDS_PER_KEY else self._start_generation(self._generation + 1)
        cipher = key.cipher if key.cipher is not None else key.make_cipher()
        nonce = (self._nonce ^ self._number).to_bytes(_IV_BYTES)
        self._number += 1
        cipher.encrypt_into(nonce, place.inner, _FULL_HEADER, place.sealed)

    def seal(self, buffer: memoryview, start: int, content_bytes: int) -> int:
        """Make a data record, in place, of the content that lies in a buffer; return where the record ends.

        ``start`` is the place of the record. The content lies ``HEADER_BYTES`` behind it, and there is room for the
        whole record.
        """
        inner = start + HEADER_BYTES
        buffer[inner + content_bytes] = _DATA
        end = inner + content_bytes + 1 + TAG_BYTES
        _HEADER.pack_into(buffer, start, _VERSION, content_bytes + 1 + TAG_BYTES)
        key = self._key if self._number < RECORDS_PER_KEY else self._start_generation(self._generation + 1)
        cipher = key.cipher if key.cipher is not None else key.make_cipher()
        nonce = (self._nonce ^ self._number).to_bytes(_IV_BYTES)
        self._number += 1
        cipher.encrypt_into(nonce, buffer[inner : end - TAG_BYTES], buffer[start:inner], buffer[inner:end])
        return end

    def seal_content(self, content: bytes) -> bytes:
        """Make a data record of some content, MAX_CONTENT_BYTES at most.

        Costs less than ``seal`` for a few hundred bytes, which are copied in less time than a place is cut for them.
        """
        return self._seal_inner(content + _DATA_TYPE)

    def seal_end(self) -> bytes:
        """Make the record that announces the end of the stream."""
        return self._seal_inner(_END)

    def _seal_inner(self, inner: bytes) -> bytes:
        key = self._key if self._number < RECORDS_PER_KEY else self._start_generation(self._generation + 1)
        cipher = key.cipher if key.cipher is not None else key.make_cipher()
        nonce = (self._nonce ^ self._number).to_bytes(_IV_BYTES)
        self._number += 1
        header = _pack_header(_VERSION, len(inner) + TAG_BYTES)
        return header + cipher.encrypt(nonce, inner, header)


class RecordReader(_RecordStream):
    """Opens the records of one stream."""

    __slots__ = ("has_ended", "rest")

    def __init__(self, keys: LinkKeys, ident: int, use: int, direction: RecordDirection) -> None:
        super().__init__(keys, ident, use, direction)
        self.has_ended = False
        """whether the end of the stream was announced"""
        self.rest = b""
        """the start of a record that is not complete: the caller puts it before what it receives next"""

    def open_received(self, received: bytes) -> bytes:
        """Open all complete records of what was received; return their contents.

        Costs less than ``open_all`` where one small record was received, as is usual. Raises RecordError; the stream
        cannot be trusted from then on.
        """
        header, length = received[:HEADER_BYTES], len(received) - HEADER_BYTES
        is_single = _MIN_LENGTH <= length <= _MAX_LENGTH and header == _pack_header(_VERSION, length)
        if self.rest or self.has_ended or not is_single:
            return b"".join(self.open_all(memoryview(bytearray(self.rest + received))))
        key = self._key if self._number < RECORDS_PER_KEY else self._start_generation(self._generation + 1)
        cipher = key.cipher if key.cipher is not None else key.make_cipher()
        nonce = (self._nonce ^ self._number).to_bytes(_IV_BYTES)
        self._number += 1
        try:
            opened = cipher.decrypt(nonce, received[HEADER_BYTES:], header)
        except InvalidTag:
            raise RecordError(_CHANGED) from None
        if opened[-1] == _DATA:
            return opened[:-1]
        self._note_end(opened)
        return b""

    def open_all(self, received: memoryview) -> list[memoryview]:
        """Open all complete records in place; return their contents, which are parts of ``received``.

        Raises RecordError; the stream cannot be trusted from then on.
        """
        contents: list[memoryview] = []
        start, size = 0, len(received)
        while size - start >= HEADER_BYTES:
            version, length = _HEADER.unpack_from(received, start)
            if version != _VERSION or not _MIN_LENGTH <= length <= _MAX_LENGTH:
                raise RecordError("bytes that are no record")
            inner = start + HEADER_BYTES
            end = inner + length
            if end > size:
                break
            key = self._key if self._number < RECORDS_PER_KEY else self._start_generation(self._generation + 1)
            cipher = key.cipher if key.cipher is not None else key.make_cipher()
            nonce = (self._nonce ^ self._number).to_bytes(_IV_BYTES)
            self._number += 1
            opened = received[inner : end - TAG_BYTES]
            try:
                cipher.decrypt_into(nonce, received[inner:end], received[start:inner], opened)
            except InvalidTag:
                raise RecordError(_CHANGED) from None
            if opened[-1] == _DATA and not self.has_ended:
                contents.append(opened[:-1])
            else:
                self._note_end(opened.tobytes())
            start = end
        self.rest = received[start:].tobytes() if start < size else b""
        if self.rest and self.has_ended:
            raise RecordError("bytes after the end of the stream")
        return contents

    def _note_end(self, opened: bytes) -> None:
        if self.has_ended:
            raise RecordError("a record after the end of the stream")
        if opened != _END:
            raise RecordError("a record of an unknown kind")
        self.has_ended = True
