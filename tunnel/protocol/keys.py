"""Keys of the handshake: the base key of a text, and the key of a service. Pure; see PROTOCOL.md, "Keys"."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tunnel.model.keys import Key

BASE_KEY_BYTES: Final = 32
OPEN_BASE_KEY: Final = bytes(BASE_KEY_BYTES)
"""The base key of a tunnel without a key."""

_SALT: Final = b"nodepass-orch 2"
_PASSWORD_LABEL: Final = b"nodepass-orch 2 key\0"
_SERVICE_LABEL: Final = b"nodepass-orch 2 service\0"
_SCRYPT_N: Final = 1 << 15  # RFC 7914: with r = 8 these need 32 MiB, and about 80 ms of one core
_SCRYPT_R: Final = 8
_SCRYPT_P: Final = 1
_SCRYPT_MAX_BYTES: Final = 1 << 26  # OpenSSL counts a little more than 128 * N * r


@dataclass(frozen=True, slots=True)
class BaseKey:
    """A key as the handshake uses it."""

    secret: bytes = field(repr=False)
    name: str | None = None
    """the name of one of several keys of a server"""
    is_open: bool = False
    """whether it stands for no key: any peer can compute it"""


def is_stretched(key: Key | None) -> bool:
    """Whether the base key of ``key`` needs scrypt, which must not run on the event loop."""
    return key is not None and key.random_bytes is None


def compute_base_key(key: Key | None) -> bytes:
    """Return the 32 bytes of a key. If ``is_stretched``, it blocks for the time of a scrypt.

    Raises MemoryError or ValueError where the system does not grant 32 MiB.
    """
    if key is None:
        return OPEN_BASE_KEY
    if key.random_bytes is not None:
        return key.random_bytes
    # The text is hashed first because PBKDF2, inside scrypt, pads a password with zero bytes: "key" and "key\0" would
    # be the same.
    password = hashlib.sha256(_PASSWORD_LABEL + key.reveal().encode()).digest()
    return hashlib.scrypt(
        password,
        salt=_SALT,
        n=_SCRYPT_N,
        r=_SCRYPT_R,
        p=_SCRYPT_P,
        maxmem=_SCRYPT_MAX_BYTES,
        dklen=BASE_KEY_BYTES,
    )


def service_key(base_key: bytes, service: str) -> bytes:
    """Return the key of a service: a client of one service cannot pass for a client of another one."""
    return hmac.digest(base_key, _SERVICE_LABEL + service.encode(), "sha256")
