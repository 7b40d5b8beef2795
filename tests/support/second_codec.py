"""The bytes of the tunnel protocol, written from ``tunnel/protocol/PROTOCOL.md`` alone.

The module shares no code with ``tunnel``, so that a mistake in one of them does not appear in both.
``second_client`` sends and receives the bytes.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

CHALLENGE, HELLO, WELCOME, REFUSED, PROOF = 0x01, 0x02, 0x03, 0x04, 0x05
PING, PONG = 0x10, 0x11
LAUNCH, FAILED, POOLED, BYE, ENDED = 0x20, 0x21, 0x22, 0x27, 0x29
SHARED = 0x2F
DATA, END = 23, 21
CLOSE_NOTIFY = b"\1\0"
TO_SERVER, TO_CLIENT = 0, 1
MAX_CONTENT_BYTES = 16384

HostPort = tuple[str, int]


class DamagedStreamError(Exception):
    """A record is damaged, misplaced or missing; the stream must be reset."""


class CutOffStreamError(DamagedStreamError):
    """The socket has ended between two records."""


class ServerFaultError(Exception):
    """The server sent something that the page does not allow."""


# Keys


def base_key(text: str) -> bytes:
    """Return the 32 bytes of a key as users write it; an empty text is an open tunnel."""
    if not text:
        return bytes(32)
    if text.startswith("npk_"):
        raw = base64.urlsafe_b64decode(text.removeprefix("npk_"))
        if len(raw) != 36 or raw[32:] != hashlib.sha256(b"nodepass-orch key\0" + raw[:32]).digest()[:4]:
            raise ValueError("the key was damaged")
        return raw[:32]
    password = hashlib.sha256(b"nodepass-orch 2 key\0" + text.encode()).digest()
    return hashlib.scrypt(password, salt=b"nodepass-orch 2", n=1 << 15, r=8, p=1, maxmem=1 << 26, dklen=32)


def service_key(base: bytes, service: str) -> bytes:
    """Return the key of a service."""
    return hmac.digest(base, b"nodepass-orch 2 service\0" + service.encode(), "sha256")


class HandshakeHash:
    """The hash of the certificate and of all frames of a handshake."""

    def __init__(self, certificate: bytes) -> None:
        self._hash = hashlib.sha256(b"nodepass-orch 2 " + hashlib.sha256(certificate).digest())

    def add(self, frame: bytes) -> None:
        """Add a frame as it is on the wire."""
        self._hash.update(len(frame).to_bytes(4, "big") + frame)

    def compute_proof(self, key: bytes, label: bytes) -> bytes:
        """Return the proof, or the link secret, of the frames so far."""
        return hmac.digest(key, label + b"\0" + self._hash.digest(), "sha256")


# Bytes on the wire


def encode_frame(kind: int, payload: bytes) -> bytes:
    """Return a frame of the control channel."""
    return struct.pack(">BH", kind, len(payload)) + payload


def encode_address(address: HostPort | None) -> bytes:
    """Return an address as LAUNCH has it; None is an address that is not known."""
    if address is None:
        return b"\0"
    host = ipaddress.ip_address(address[0].partition("%")[0])
    host = getattr(host, "ipv4_mapped", None) or host
    body = address[1].to_bytes(2, "big") + host.packed
    return bytes([len(body)]) + body


def encode_launch(number: int, visitor: HostPort | None) -> bytes:
    """Return one entry of a LAUNCH."""
    return number.to_bytes(8, "big") + encode_address(visitor)


def decode_launches(payload: bytes) -> list[tuple[int, HostPort | None]]:
    """Return the connections and visitors of a LAUNCH."""
    launches: list[tuple[int, HostPort | None]] = []
    while payload:
        number, length = struct.unpack(">QB", payload[:9])
        body, payload = payload[9 : 9 + length], payload[9 + length :]
        launches.append((number, decode_address(body)))
    return launches


def decode_address(body: bytes) -> HostPort | None:
    """Return an address without its length, or None if that is not known or of a later version."""
    if len(body) not in (6, 18):
        return None
    return str(ipaddress.ip_address(body[2:])), int.from_bytes(body[:2], "big")


def encode_preface(link: bytes, number: int, secret: bytes) -> bytes:
    """Return the first 40 bytes of a data connection."""
    mac = hashlib.blake2s(b"data\0" + number.to_bytes(8, "big"), key=secret, digest_size=20)
    return b"NPD\2" + link + number.to_bytes(8, "big") + mac.digest()


def record_key(secret: bytes, number: int, use: int, direction: int, record: int) -> tuple[bytes, bytes]:
    """Return the key and the nonce of a record, which is numbered from 0 in its stream."""
    text = b"record\0" + struct.pack(">QIBI", number // 1024, use // 16, direction, record // 1024)
    derived = hashlib.blake2s(text, key=secret, digest_size=32).digest()
    place = struct.pack(">III", number % 1024, use % 16, record % 1024)
    return derived[:16], bytes(a ^ b for a, b in zip(derived[16:28], place, strict=True))


class RecordCipher:
    """Seals or opens the records of one direction, in their order."""

    def __init__(self, secret: bytes, number: int, direction: int, use: int = 0) -> None:
        self._stream = secret, number, use, direction
        self._count = 0

    def _next(self) -> tuple[AESGCM, bytes]:
        key, nonce = record_key(*self._stream, self._count)
        self._count += 1
        return AESGCM(key), nonce

    def seal(self, content: bytes, kind: int = DATA) -> bytes:
        """Return the next record."""
        aead, nonce = self._next()
        header = struct.pack(">BHH", 0x17, 0x0303, len(content) + 17)
        return header + aead.encrypt(nonce, content + bytes([kind]), header)

    def seal_end(self) -> bytes:
        """Return the record that announces the end of the stream."""
        return self.seal(CLOSE_NOTIFY, END)

    def open(self, header: bytes, body: bytes) -> tuple[int, bytes]:
        """Return type and content of the next record. Raises DamagedStreamError."""
        aead, nonce = self._next()
        try:
            plain = aead.decrypt(nonce, body, header)
        except InvalidTag as error:
            raise DamagedStreamError("a record fails its check") from error
        return plain[-1], plain[:-1]
