"""Write the test vectors of keys and handshake: ``python -m tests.tunnel.protocol_vectors``.

Frames, nonces and the certificate of a vector are fixed; everything else is computed from PROTOCOL.md with the
standard library alone, so that a mistake of ``tunnel.protocol`` cannot agree with itself.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any, Final

import tunnel.protocol

FILE: Final = Path(tunnel.protocol.__file__).with_name("vectors.json")
SECTIONS: Final = ("keys", "damaged_keys", "services", "handshakes")
"""The sections that this module writes; others stay as they are."""

_RANDOM: Final = bytes(range(32))
_CERTIFICATE: Final = b"any bytes: the server's certificate as DER"
_CHALLENGE: Final = {"features": ["reuse", "later"], "nonce": "c1" * 32, "unknown": [], "versions": [2, 3]}
_HELLO: Final = {
    "auth": "key", "features": ["reuse"], "instance": "0123456789abcdef", "mode": "auto", "nonce": "5e" * 32,
    "pool_max": None, "pool_min": 4, "service": "", "tls": 1, "version": 2, "visitors": None,
}  # fmt: skip
_WELCOME: Final = {
    "carrier": "encrypted", "data_port": 40000, "direction": "reverse", "features": ["reuse"],
    "link": "00112233aabbccdd", "pool_max": 64, "pool_min": None, "visitors": None,
}  # fmt: skip
_TYPES: Final = {"CHALLENGE": 1, "HELLO": 2, "WELCOME": 3, "PROOF": 5}


def generated_key(random_bytes: bytes) -> str:
    """Return the text of a key of ``keygen``."""
    checksum = hashlib.sha256(b"nodepass-orch key\0" + random_bytes).digest()[:4]
    return "npk_" + base64.urlsafe_b64encode(random_bytes + checksum).decode()


def base_key(text: str | None) -> bytes:
    """Return the base key of a text, or of an open tunnel."""
    if text is None:
        return bytes(32)
    if text.startswith("npk_"):
        return base64.urlsafe_b64decode(text[4:])[:32]
    password = hashlib.sha256(b"nodepass-orch 2 key\0" + text.encode()).digest()
    return hashlib.scrypt(password, salt=b"nodepass-orch 2", n=1 << 15, r=8, p=1, maxmem=1 << 26, dklen=32)


def service_key(base: bytes, service: str) -> bytes:
    """Return the key of a service."""
    return hmac.new(base, b"nodepass-orch 2 service\0" + service.encode(), "sha256").digest()


def _frame(name: str, payload: bytes) -> bytes:
    return bytes([_TYPES[name]]) + len(payload).to_bytes(2) + payload


def _greeting(name: str, fields: dict[str, Any]) -> bytes:
    return _frame(name, json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode())


def handshake(text: str | None, service: str) -> dict[str, object]:
    """Return a whole handshake: what is on the wire, and what both ends compute."""
    key = service_key(base_key(text), service)
    running = hashlib.sha256(b"nodepass-orch 2 " + hashlib.sha256(_CERTIFICATE).digest())
    start = running.copy()
    frames: dict[str, bytes] = {}

    def send(name: str, frame: bytes) -> None:
        frames[name] = frame
        running.update(len(frame).to_bytes(4) + frame)

    def digest(label: bytes) -> bytes:
        return hmac.new(key, label + b"\0" + running.digest(), "sha256").digest()

    send("challenge", _greeting("CHALLENGE", _CHALLENGE))
    send("hello", _greeting("HELLO", {**_HELLO, "service": service, "auth": "open" if text is None else "key"}))
    send("client_proof", _frame("PROOF", digest(b"client")))
    send("welcome", _greeting("WELCOME", _WELCOME))
    frames["server_proof"] = _frame("PROOF", digest(b"server"))
    return {
        "key": text,
        "service": service,
        "certificate": _CERTIFICATE.hex(),
        "start_of_hash": start.hexdigest(),
        "frames": {name: frame.hex() for name, frame in frames.items()},
        "link_secret": digest(b"link").hex(),
    }


def compute_sections() -> dict[str, object]:
    """Return the sections of the file that this module writes."""
    generated = generated_key(_RANDOM)
    texts = (None, generated, "key", "key\0", "Schlüssel", "NPK_is another text")
    return {
        "keys": [{"key": text, "base_key": base_key(text).hex()} for text in texts],
        "damaged_keys": ["npk_", generated[:-1], generated + "A", generated[:-1] + "*", generated.swapcase().lower()],
        "services": [
            {"base_key": _RANDOM.hex(), "service": name, "service_key": service_key(_RANDOM, name).hex()}
            for name in ("", "web", "WEB", "büro")
        ],
        "handshakes": [handshake(None, ""), handshake(generated, "web"), handshake("key", "büro")],
    }


def write() -> None:
    """Replace the sections in the file."""
    present = json.loads(FILE.read_text()) if FILE.exists() else {}
    FILE.write_text(json.dumps({**present, **compute_sections()}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    write()
