"""Base keys for the engines of a process: scrypt runs once for each key text, in a thread."""

from __future__ import annotations

import hashlib
import secrets
from functools import partial
from typing import TYPE_CHECKING, Final

from tunnel.protocol.keys import compute_base_key, is_stretched
from tunnel.runtime.blocking_calls import BlockingCalls, ThreadShortageError
from tunnel.runtime.sockets import NetError

if TYPE_CHECKING:
    from tunnel.model.keys import Key

MAX_REMEMBERED_KEYS: Final = 1024
"""Base keys that the process remembers; the oldest is forgotten first."""

_SCRYPT_CALLS: Final = BlockingCalls("stretching keys", 1)  # one: each needs 32 MiB and a core
_remembered: Final[dict[bytes, bytes]] = {}  # base keys by a keyed hash of the text; the text is not kept
_HASH_KEY: Final = secrets.token_bytes(32)


async def derive_base_key(key: Key | None) -> bytes:
    """Return the base key of a key, or of an open tunnel. Safe to cancel; equal keys are computed once.

    Raises NetError while no thread or memory can be had.
    """
    if not is_stretched(key):
        return compute_base_key(key)
    known = _remembered.get(_fingerprint(key))
    if known is not None:
        return known
    try:
        return await _SCRYPT_CALLS.run(partial(_stretch, key))
    except ThreadShortageError as error:
        raise NetError(str(error), error.errno) from None
    except (MemoryError, ValueError):  # OpenSSL reports both ways that it gets no memory
        raise NetError("there is no memory to compute the key: it needs 32 MiB for a moment") from None


def _stretch(key: Key | None) -> bytes:
    """Compute a base key unless a call before this one, on the same thread, has done so."""
    index = _fingerprint(key)
    found = _remembered.get(index)
    if found is None:
        found = compute_base_key(key)
        while len(_remembered) >= MAX_REMEMBERED_KEYS:
            del _remembered[next(iter(_remembered))]
        _remembered[index] = found
    return found


def _fingerprint(key: Key | None) -> bytes:
    text = b"" if key is None else key.reveal().encode()
    return hashlib.blake2b(text, key=_HASH_KEY, digest_size=32).digest()
