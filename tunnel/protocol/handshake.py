"""The mutual proof of the shared key at the start of a link. No I/O: frames in, frames out.

The server speaks first: CHALLENGE. The client answers HELLO and PROOF, the server WELCOME and PROOF. Each proof is an
HMAC-SHA256 with the shared key over all that was said before and the SHA-256 of the server's certificate as each end
sees it: a man in the middle has to show a certificate of his own, and then the two ends compute different proofs.
(Channel binding as "tls-server-end-point", RFC 5929 §4: TLS 1.3 has no tls-unique and Python no exporter.)
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from tunnel.model.errors import TunnelError
from tunnel.model.limits import ConfiguredLimits
from tunnel.model.spec import Direction, Key, Mode
from tunnel.protocol import frames
from tunnel.protocol.frames import Kind, ProtocolError

_Choice = TypeVar("_Choice", Mode, Direction)
_NONCE: Final = 32
_LABEL: Final = b"nodepass-orch 1 "
REFUSAL: Final = "the handshake was refused"
"""All that an end without the key ever learns."""


class HandshakeRefusedError(TunnelError):
    """The other end is not let in; the message is the exact reason, for our own log alone."""


@dataclass(frozen=True, slots=True)
class Hello:
    """What the client says of itself."""

    instance: str
    """random id of the client's process and tunnel: the same again means it returns"""
    auth: str
    mode: Mode
    data_tls: bool
    bounds: ConfiguredLimits


@dataclass(frozen=True, slots=True)
class Welcome:
    """What the server decides for the link."""

    link: str
    direction: Direction
    data_port: int | None
    data_tls: bool
    bounds: ConfiguredLimits


class _Transcript:
    """Everything said so far, and the proofs made over it."""

    __slots__ = ("_hash", "_key")

    def __init__(self, key: Key | None, certificate: bytes) -> None:
        self._key = _LABEL + (key.reveal().encode() if key else b"")
        self._hash = hashlib.sha256(_LABEL + hashlib.sha256(certificate).digest())

    def add(self, frame: bytes) -> None:
        self._hash.update(len(frame).to_bytes(4) + frame)

    def proof(self, label: bytes) -> bytes:
        return hmac.digest(self._key, label + b"\0" + self._hash.digest(), "sha256")

    def check(self, label: bytes, proof: bytes) -> bool:
        return hmac.compare_digest(self.proof(label), proof)


class ServerHandshake:
    """The server's side: ``challenge``, then ``receive_hello``, ``receive_proof``, ``welcome``."""

    def __init__(self, key: Key | None, certificate: bytes) -> None:
        self._auth = "key" if key else "open"
        self._transcript = _Transcript(key, certificate)
        self._hello: Hello | None = None

    def challenge(self) -> bytes:
        """The frame that opens the conversation."""
        frame = frames.encode_greeting(Kind.CHALLENGE, {"v": frames.VERSION, "nonce": secrets.token_hex(_NONCE)})
        self._transcript.add(frame)
        return frame

    def receive_hello(self, payload: bytes) -> None:
        """Take the client's HELLO; nothing in it is believed before its proof. Raises ProtocolError."""
        fields = frames.decode_greeting(payload)
        _check_nonce(fields)
        self._hello = Hello(
            instance=_text(fields, "instance"),
            auth=_text(fields, "auth"),
            mode=_member(Mode, _text(fields, "mode")),
            data_tls=_flag(fields, "tls"),
            bounds=_bounds(fields),
        )
        self._transcript.add(frames.encode(Kind.HELLO, payload))

    def receive_proof(self, proof: bytes) -> Hello:
        """Check the client's proof and give out what it said. Raises RefusedError with the reason for our log."""
        hello = self._hello
        if hello is None:
            raise ProtocolError("a proof before the greeting")
        if not self._transcript.check(b"client", proof):
            if hello.auth != self._auth:
                mine = (
                    "asks for a key and the client has none"
                    if self._auth == "key"
                    else "is open and the client has a key"
                )
                raise HandshakeRefusedError(f"this server {mine}")
            if self._auth == "key":
                raise HandshakeRefusedError("the client's key is not ours, or somebody stands between us")
            raise HandshakeRefusedError("somebody stands between us and the client")
        self._transcript.add(frames.encode(Kind.PROOF, proof))
        return hello

    def welcome(self, welcome: Welcome) -> tuple[bytes, bytes]:
        """The frames that open the link, and the link's secret."""
        frame = frames.encode_greeting(
            Kind.WELCOME,
            {
                "link": welcome.link,
                "direction": welcome.direction.value,
                "data_port": welcome.data_port,
                "tls": welcome.data_tls,
                **_bounds_fields(welcome.bounds),
            },
        )
        self._transcript.add(frame)
        proof = self._transcript.proof(b"server")
        return frame + frames.encode(Kind.PROOF, proof), self._transcript.proof(b"link")


class ClientHandshake:
    """The client's side: ``receive_challenge``, ``hello``, ``receive_welcome``, ``receive_proof``."""

    def __init__(self, key: Key | None, certificate: bytes) -> None:
        self._auth = "key" if key else "open"
        self._transcript = _Transcript(key, certificate)
        self._welcome: Welcome | None = None

    def receive_challenge(self, payload: bytes) -> None:
        """Take the server's CHALLENGE. Raises ProtocolError, also for a version that is not ours."""
        fields = frames.decode_greeting(payload)
        _check_nonce(fields)
        if fields.get("v") != frames.VERSION:
            raise ProtocolError(f"the server speaks protocol {str(fields.get('v'))[:20]}, this end {frames.VERSION}")
        self._transcript.add(frames.encode(Kind.CHALLENGE, payload))

    def hello(self, *, instance: str, mode: Mode, data_tls: bool, bounds: ConfiguredLimits) -> bytes:
        """The frames that answer the challenge."""
        frame = frames.encode_greeting(
            Kind.HELLO,
            {
                "nonce": secrets.token_hex(_NONCE),
                "instance": instance,
                "auth": self._auth,
                "mode": mode.value,
                "tls": data_tls,
                **_bounds_fields(bounds),
            },
        )
        self._transcript.add(frame)
        proof = frames.encode(Kind.PROOF, self._transcript.proof(b"client"))
        self._transcript.add(proof)
        return frame + proof

    def receive_welcome(self, payload: bytes) -> None:
        """Take the server's WELCOME; nothing in it is believed before its proof. Raises ProtocolError."""
        fields = frames.decode_greeting(payload)
        port = fields.get("data_port")
        if port is not None and not (isinstance(port, int) and not isinstance(port, bool) and 0 < port < 65536):
            raise ProtocolError("a data port that is none")
        self._welcome = Welcome(
            link=_text(fields, "link"),
            direction=_member(Direction, _text(fields, "direction")),
            data_port=port,
            data_tls=_flag(fields, "tls"),
            bounds=_bounds(fields),
        )
        self._transcript.add(frames.encode(Kind.WELCOME, payload))

    def receive_proof(self, proof: bytes) -> tuple[Welcome, bytes]:
        """Check the server's proof and give out its decisions and the link's secret. Raises RefusedError."""
        if self._welcome is None:
            raise ProtocolError("a proof before the welcome")
        if not self._transcript.check(b"server", proof):
            raise HandshakeRefusedError("the server does not know the key, or somebody stands between us")
        return self._welcome, self._transcript.proof(b"link")


def _check_nonce(fields: dict[str, Any]) -> None:
    if len(_text(fields, "nonce")) != 2 * _NONCE:
        raise ProtocolError("a nonce of the wrong length")


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or len(value) > 80 or not value.isprintable():
        raise ProtocolError(f"a greeting without a proper {name}")
    return value


def _flag(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name)
    if not isinstance(value, bool):
        raise ProtocolError(f"a greeting without a proper {name}")
    return value


def _member(kind: type[_Choice], text: str) -> _Choice:
    try:
        return kind(text)
    except ValueError:
        raise ProtocolError(f"a greeting with an unknown {kind.__name__.lower()}") from None


def _bounds_fields(bounds: ConfiguredLimits) -> dict[str, int | None]:
    return {"pool_min": bounds.pool_min, "pool_max": bounds.pool_max, "visitors": bounds.visitors}


def _bounds(fields: dict[str, Any]) -> ConfiguredLimits:
    values = [fields.get(name) for name in ("pool_min", "pool_max", "visitors")]
    for value in values:
        if value is not None and not (isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 32):
            raise ProtocolError("a greeting with improper bounds")
    return ConfiguredLimits(*values)
