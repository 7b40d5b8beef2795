"""Encryption of a data connection: records in the format of TLS 1.3, with keys of their own. No I/O; see PROTOCOL.md.

Every data connection, use and direction has its own keys, which both ends derive from the secret of the link. Records
are sealed and opened in place, in the buffer in which they are received or from which they are sent. A cipher takes
three kilobytes, so a process keeps only the latest ones: a stream that rests loses its own, and derives it again for
its next record. The library takes seven megabytes: this module is imported only where data connections are encrypted.
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

RECORDS_PER_GENERATION: Final = 1 << 23
"""Records under one key. RFC 8446 §5.5 allows 2^24.5 full ones for AES-GCM."""

_HEADER: Final = struct.Struct("!3sH")
_VERSION: Final = b"\x17\x03\x03"  # application data, TLS 1.2 (RFC 8446 §5.2): every record looks like this
_DATA: Final = 23  # ContentType application_data
_END: Final = b"\x01\x00\x15"  # AlertLevel warning, AlertDescription close_notify, ContentType alert (RFC 8446 §6.1)
_MIN_LENGTH: Final = 1 + 1 + TAG_BYTES
_MAX_LENGTH: Final = MAX_CONTENT_BYTES + 1 + TAG_BYTES
_KEY_BYTES: Final = 16
_IV_BYTES: Final = 12
_KEY_CONTEXT: Final = struct.Struct("!QIBI")


MAX_CIPHERS: Final = 256
"""Ciphers that a process keeps."""

_with_cipher: Final = deque["_RecordKeys"]()  # streams with a cipher, the oldest first; also some that have ended


class RecordError(ProtocolError):
    """A record that was changed, moved, repeated or forged, or one before it was dropped."""


class RecordDirection(enum.IntEnum):
    """Which way records go: each has keys of its own, so that no record can be sent back."""

    TO_SERVER = 0
    TO_CLIENT = 1


def derive_record_key(
    secret: bytes, ident: int, use: int, direction: RecordDirection, generation: int
) -> tuple[bytes, bytes]:
    """The key and the iv of one generation of records, from the secret of the link."""
    context = _KEY_CONTEXT.pack(ident, use, direction, generation)
    block = hashlib.blake2s(b"record\0" + context, key=secret).digest()
    return block[:_KEY_BYTES], block[_KEY_BYTES : _KEY_BYTES + _IV_BYTES]


class _RecordKeys:
    """Numbers the records of one direction, and derives the keys for them."""

    __slots__ = ("_cipher", "_direction", "_ident", "_iv", "_limit", "_number", "_secret", "_use", "generation")

    def __init__(
        self, secret: bytes, ident: int, use: int, direction: RecordDirection, limit: int = RECORDS_PER_GENERATION
    ) -> None:
        """``limit``: records per generation."""
        self.generation = 0
        self._secret = secret
        self._ident = ident
        self._use = use
        self._direction = direction
        self._limit = limit
        self._number = 0  # of the next record, within its generation
        self._cipher: AESGCM | None = None
        self._iv = 0

    def drop_cipher(self) -> None:
        """Free the memory of the cipher until the next record."""
        self._cipher = None

    def _make_cipher(self) -> AESGCM:
        """Make the cipher of the next record: there is none, or its generation is used up."""
        if self._number == self._limit:
            self.generation += 1
            self._number = 0
        key, iv = derive_record_key(self._secret, self._ident, self._use, self._direction, self.generation)
        self._iv = int.from_bytes(iv)
        cipher = self._cipher = AESGCM(key)
        if len(_with_cipher) == MAX_CIPHERS:
            _with_cipher.popleft().drop_cipher()
        _with_cipher.append(self)
        return cipher


class RecordWriter(_RecordKeys):
    """Seals the records of one direction of one use of a data connection."""

    __slots__ = ()

    def seal(self, buffer: memoryview, start: int, content_bytes: int) -> int:
        """Make a data record, in place, of the content that lies in a buffer; return where the record ends.

        ``start`` is the place of the record. The content lies ``HEADER_BYTES`` behind it, and there is room for the
        whole record.
        """
        buffer[start + HEADER_BYTES + content_bytes] = _DATA
        return self._seal(buffer, start, content_bytes + 1)

    def seal_end(self) -> bytes:
        """Make the record that announces the end of the stream."""
        record = bytearray(HEADER_BYTES) + _END + bytes(TAG_BYTES)
        self._seal(memoryview(record), 0, len(_END))
        return bytes(record)

    def _seal(self, buffer: memoryview, start: int, inner_bytes: int) -> int:
        inner = start + HEADER_BYTES
        end = inner + inner_bytes + TAG_BYTES
        _HEADER.pack_into(buffer, start, _VERSION, inner_bytes + TAG_BYTES)
        cipher = self._cipher
        if cipher is None or self._number == self._limit:
            cipher = self._make_cipher()
        nonce = (self._iv ^ self._number).to_bytes(_IV_BYTES)
        self._number += 1
        cipher.encrypt_into(nonce, buffer[inner : inner + inner_bytes], buffer[start:inner], buffer[inner:end])
        return end


class RecordReader(_RecordKeys):
    """Opens the records of one direction of one use of a data connection."""

    __slots__ = ("has_ended", "rest")

    def __init__(
        self, secret: bytes, ident: int, use: int, direction: RecordDirection, limit: int = RECORDS_PER_GENERATION
    ) -> None:
        super().__init__(secret, ident, use, direction, limit)
        self.has_ended = False
        """whether the end of the stream was announced"""
        self.rest = b""
        """the start of a record that is not complete: the caller puts it before what it receives next"""

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
            cipher = self._cipher
            if cipher is None or self._number == self._limit:
                cipher = self._make_cipher()
            nonce = (self._iv ^ self._number).to_bytes(_IV_BYTES)
            self._number += 1
            opened = received[inner : end - TAG_BYTES]
            try:
                cipher.decrypt_into(nonce, received[inner:end], received[start:inner], opened)
            except InvalidTag:
                raise RecordError("a record that was changed on the way, or does not belong here") from None
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
