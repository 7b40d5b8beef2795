"""The start of a data connection: the preface, and the proof inside TLS. No I/O; see PROTOCOL.md."""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import Final

from tunnel.protocol.errors import ProtocolError

TLS_HANDSHAKE_BYTE: Final = 0x16
"""First byte of a TLS connection (RFC 8446 §5.1, ContentType handshake): no preface starts with it."""

_MAGIC: Final = b"NPD\x01"
_MAC_BYTES: Final = 20
_PREFACE: Final = struct.Struct(f"!4sQ{_MAC_BYTES}s")
_U64: Final = struct.Struct("!Q")

PREFACE_SIZE: Final = _PREFACE.size
"""Bytes at the start of every data connection: magic with the version, id, MAC."""
DATA_TLS_PROOF_SIZE: Final = _MAC_BYTES
"""Bytes at the start of the plaintext of an encrypted data connection."""


def encode_preface(secret: bytes, ident: int) -> bytes:
    """The first bytes of data connection ``ident`` of the link with this secret."""
    return _PREFACE.pack(_MAGIC, ident, _mac(secret, b"data", ident))


def decode_preface(secret: bytes, data: bytes) -> int:
    """The id in a genuine preface, in time that does not depend on where a MAC differs. Raises ProtocolError."""
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
    """The first plaintext of an encrypted data connection: proves that the TLS client knows the link's secret."""
    return _mac(secret, b"data tls", ident)


def _mac(secret: bytes, label: bytes, ident: int) -> bytes:
    # Once per visitor at each end, where HMAC through OpenSSL takes five times as long.
    return hashlib.blake2s(label + b"\0" + _U64.pack(ident), key=secret, digest_size=_MAC_BYTES).digest()
