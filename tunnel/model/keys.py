"""The keys that both ends of a tunnel share: the format of ``keygen``, and a text that does not print."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import Final

from tunnel.model.errors import InvalidValueError
from tunnel.model.key_strength import MIN_KEY_BITS, estimate_bits

WEAK_KEY_WARNING: Final = "the key is weak: it can be found by trial; make one with nodepass-orch keygen"

_PREFIX: Final = "npk_"
_SECRET_BYTES: Final = 32
_CHECKSUM_BYTES: Final = 4
_CHECKSUM_LABEL: Final = b"nodepass-orch key\0"
_ENCODED: Final = re.compile(r"[A-Za-z0-9_-]{48}")  # base64url (RFC 4648 §5) of secret and checksum, without padding
_DAMAGED: Final = (
    "the key starts with npk_ but is damaged: a character is missing, added or changed; copy it again, "
    "or make one with nodepass-orch keygen"
)


class Key:
    """A shared key. Every way of printing it shows a mask, so that it cannot reach a log by accident."""

    __slots__ = ("_random_bytes", "_secret")

    def __init__(self, secret: str) -> None:
        """Raises InvalidValueError for a damaged key of ``keygen`` and for a text that is not Unicode."""
        if not secret:
            raise InvalidValueError("a key cannot be empty")
        try:
            secret.encode()
        except UnicodeEncodeError:  # from an argument or a variable that is not UTF-8
            raise InvalidValueError("the key is not UTF-8 text; write another one") from None
        self._secret = secret
        self._random_bytes = _decode_generated(secret)

    def reveal(self) -> str:
        """Return the secret, for the computation of the base key and for a URL that has to work."""
        return self._secret

    @property
    def random_bytes(self) -> bytes | None:
        """The 32 random bytes of a key that ``keygen`` has made; None for any other text."""
        return self._random_bytes

    @property
    def is_weak(self) -> bool:
        """Whether trying short and common texts finds the key; an impostor can do so offline."""
        return self._random_bytes is None and estimate_bits(self._secret) < MIN_KEY_BITS

    def __repr__(self) -> str:
        return "Key(***)"

    def __str__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and other._secret == self._secret

    def __hash__(self) -> int:
        return hash((Key, self._secret))

    def __reduce__(self) -> tuple[type[Key], tuple[str]]:  # a spec is pickled to a worker process with its key
        return Key, (self._secret,)


@dataclass(frozen=True, slots=True)
class NamedKey:
    """One of several keys of a server: each belongs to one client, and can be revoked alone."""

    name: str
    key: Key


def generate_key() -> str:
    """Return a new key: 256 random bits with a checksum, without characters that a URL has to escape."""
    return encode_key(secrets.token_bytes(_SECRET_BYTES))


def encode_key(random_bytes: bytes) -> str:
    """Return the text of a key of ``keygen`` with these 32 bytes."""
    return _PREFIX + base64.urlsafe_b64encode(random_bytes + _checksum(random_bytes)).decode("ascii")


def looks_generated(text: str) -> bool:
    """Return whether a text starts as the keys of ``keygen`` do, also if it is damaged."""
    return text.startswith(_PREFIX)


def _decode_generated(text: str) -> bytes | None:
    """Return the random bytes in a key of ``keygen``, None for another text. Raises InvalidValueError if damaged."""
    if not looks_generated(text):
        return None
    encoded = text.removeprefix(_PREFIX)
    if not _ENCODED.fullmatch(encoded):
        raise InvalidValueError(_DAMAGED)
    decoded = base64.urlsafe_b64decode(encoded)
    random_bytes, checksum = decoded[:_SECRET_BYTES], decoded[_SECRET_BYTES:]
    if checksum != _checksum(random_bytes):
        raise InvalidValueError(_DAMAGED)
    return random_bytes


def _checksum(random_bytes: bytes) -> bytes:
    return hashlib.sha256(_CHECKSUM_LABEL + random_bytes).digest()[:_CHECKSUM_BYTES]
