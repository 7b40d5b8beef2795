"""The start of a data connection: which one of which link it is, and that it is genuine. No I/O; see PROTOCOL.md."""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import Final

from tunnel.protocol.errors import ProtocolError
from tunnel.protocol.handshake_messages import LINK_ID_BYTES

TLS_HANDSHAKE_BYTE: Final = 0x16
"""First byte of a TLS connection (RFC 8446 §5.1, ContentType handshake): no preface starts with it."""

_MAGIC: Final = b"NPD\x02"
_MAC_BYTES: Final = 20
_PREFACE: Final = struct.Struct(f"!4s{LINK_ID_BYTES}sQ{_MAC_BYTES}s")
_U64: Final = struct.Struct("!Q")

PREFACE_SIZE: Final = _PREFACE.size
"""Bytes at the start of every data connection: magic with the version, link, id, MAC."""


def encode_preface(link: bytes, secret: bytes, ident: int) -> bytes:
    """The first bytes of data connection ``ident`` of the link with this id and this secret."""
    return _PREFACE.pack(_MAGIC, link, ident, _mac(secret, ident))


def decode_preface(data: bytes) -> tuple[bytes, int, bytes]:
    """The link's id, the data connection's id and the MAC in a preface, which ``check_preface`` has to check next.

    Raises ProtocolError.
    """
    magic: bytes
    link: bytes
    ident: int
    mac: bytes
    magic, link, ident, mac = _PREFACE.unpack(data)
    if magic != _MAGIC:
        raise ProtocolError("it is neither a client nor a data connection of this program")
    return link, ident, mac


def check_preface(secret: bytes, ident: int, mac: bytes) -> None:
    """Raise ProtocolError for a forged preface, in time that does not depend on where the MAC differs."""
    if not hmac.compare_digest(mac, _mac(secret, ident)):
        raise ProtocolError("a preface with a wrong MAC")


def _mac(secret: bytes, ident: int) -> bytes:
    # Once per visitor at each end, where HMAC through OpenSSL takes five times as long.
    return hashlib.blake2s(b"data\0" + _U64.pack(ident), key=secret, digest_size=_MAC_BYTES).digest()
