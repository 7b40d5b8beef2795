"""Write the test vectors of the protocol: ``python -m tests.tunnel.protocol_vectors``.

Frames, nonces and the certificate of a vector are fixed; everything else is computed from PROTOCOL.md without code of
``tunnel.protocol``, so that a mistake there does not appear here.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any, Final

import tunnel.protocol
from tests.support import second_codec as codec
from tests.support import second_lanes as lanes

FILE: Final = Path(tunnel.protocol.__file__).with_name("vectors.json")
SECTIONS: Final = ("keys", "damaged_keys", "services", "handshakes", "preface", "records", "launch", "lanes")
"""The sections that this module writes; others stay as they are."""

_RANDOM: Final = bytes(range(32))
_CERTIFICATE: Final = b"any bytes: the server's certificate as DER"
_CHALLENGE: Final = {"features": ["reuse", "later"], "nonce": "c1" * 32, "unknown": [], "versions": [2, 3]}
_HELLO: Final = {
    "auth": "key", "features": ["reuse"], "instance": "0123456789abcdef", "mode": "auto", "nonce": "5e" * 32,
    "pool_max": None, "pool_min": 4, "service": "", "tls": 1, "version": 2, "visitors": None,
}  # fmt: skip
_LINK: Final = bytes.fromhex("00112233aabbccdd")
_WELCOME: Final = {
    "carrier": "encrypted", "data_port": 40000, "direction": "reverse", "features": ["reuse"],
    "link": _LINK.hex(), "pool_max": 64, "pool_min": None, "visitors": None,
}  # fmt: skip
_NUMBERS: Final = (1, 258, (1 << 40) + 5)
_DIRECTIONS: Final = (codec.TO_SERVER, codec.TO_CLIENT)
_CONTENTS: Final = (b"hello", b"\0")
_VISITORS: Final = (("192.0.2.1", 40000), ("2001:db8::1", 443), None, ("::ffff:192.0.2.1", 1), ("fe80::1%eth0", 65535))
_LANE_KINDS: Final = ("OPEN", "DATA", "END", "RESET", "CREDIT", "LAST", "MOVED", "WANTED", "FAILED")
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


def _prefaces() -> list[dict[str, object]]:
    return [
        {"link": _LINK.hex(), "link_secret": _RANDOM.hex(), "id": number, "preface": preface.hex()}
        for number in _NUMBERS
        for preface in [codec.encode_preface(_LINK, number, _RANDOM)]
    ]


def _record_key(number: int, use: int, direction: int, record: int) -> dict[str, object]:
    key, nonce = codec.record_key(_RANDOM, number, use, direction, record)
    return {
        "link_secret": _RANDOM.hex(), "id": number, "use": use, "direction": direction, "number": record,
        "key": key.hex(), "nonce": nonce.hex(),
    }  # fmt: skip


def _stream(number: int, use: int, direction: int) -> dict[str, object]:
    """Return two data records and the end record, which are numbered 0, 1 and 2."""
    cipher = codec.RecordCipher(_RANDOM, number, direction, use)
    return {
        "link_secret": _RANDOM.hex(), "id": number, "use": use, "direction": direction,
        "contents": [content.hex() for content in _CONTENTS],
        "records": [cipher.seal(content).hex() for content in _CONTENTS],
        "end": cipher.seal_end().hex(),
    }  # fmt: skip


def _launches() -> list[dict[str, object]]:
    return [
        {"id": number, "visitor": visitor, "entry": codec.encode_launch(number, visitor).hex()}
        for number, visitor in zip(_NUMBERS * 2, _VISITORS, strict=False)
    ]


def _lane_frames() -> list[dict[str, object]]:
    frames = (
        (0, "CREDIT", (256).to_bytes(4)), (1, "OPEN", codec.encode_address(("192.0.2.1", 40000))[1:]),
        (2, "OPEN", b""), (1, "DATA", b"hello"), (1, "CREDIT", (16384).to_bytes(4)), (1, "END", b""),
        (2, "RESET", b""), (0, "LAST", b""), (2**32 - 1, "DATA", b"\0" * 300), (3, "MOVED", (2**40 + 5).to_bytes(8)),
        (3, "WANTED", b""), (4, "FAILED", "keine Verbindung möglich".encode()),
    )  # fmt: skip
    return [
        {
            "lane": lane, "kind": kind, "payload": payload.hex(),
            "frame": lanes.encode_lane_frame(lane, _LANE_KINDS.index(kind) + 1, payload).hex(),
        }
        for lane, kind, payload in frames
    ]  # fmt: skip


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
        "preface": _prefaces(),
        "records": {
            "keys": [
                _record_key(_NUMBERS[2], use, way, record)
                for way in _DIRECTIONS
                for use, record in ((0, 0), (0, 1023), (0, 1024), (15, 1), (16, 1), (70_000, 5_000_000))
            ],
            "streams": [_stream(_NUMBERS[2], use, way) for way in _DIRECTIONS for use in (0, 17)],
        },
        "launch": _launches(),
        "lanes": _lane_frames(),
    }


def write() -> None:
    """Replace the sections in the file."""
    present = json.loads(FILE.read_text()) if FILE.exists() else {}
    FILE.write_text(json.dumps({**present, **compute_sections()}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    write()
