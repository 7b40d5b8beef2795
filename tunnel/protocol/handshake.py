"""Mutual authentication with the shared key at the start of a link. No I/O: payloads in, frames out.

The server starts with CHALLENGE. The client answers HELLO and PROOF, the server WELCOME and PROOF. Each proof is an
HMAC-SHA256, with the shared key, over all frames before it and the SHA-256 of the server's certificate as each end sees
it. A man in the middle has to show a certificate of his own, and then the two ends compute different proofs.
(Channel binding as "tls-server-end-point", RFC 5929 §4: TLS 1.3 has no tls-unique and Python no exporter.)
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING, Final

from tunnel.protocol.errors import HandshakeRefusedError, ProtocolError
from tunnel.protocol.frame_codec import encode_frame, encode_message
from tunnel.protocol.frames import VERSION, Kind
from tunnel.protocol.handshake_messages import NONCE_BYTES, Challenge, Hello, Proof, Welcome

if TYPE_CHECKING:
    from tunnel.model.limits import ConfiguredLimits
    from tunnel.model.keys import Key
    from tunnel.model.spec import Carrier, Mode

_LABEL: Final = b"nodepass-orch 1 "
REFUSAL: Final = "refused: most likely the keys differ, see the server's log"
"""All that an end without the key learns."""


class _Transcript:
    """The hash of all frames so far, and the proofs over it."""

    __slots__ = ("_hash", "_key")

    def __init__(self, key: Key | None, certificate: bytes) -> None:
        self._key = _LABEL + (key.reveal().encode() if key else b"")
        self._hash = hashlib.sha256(_LABEL + hashlib.sha256(certificate).digest())

    def add(self, frame: bytes) -> None:
        self._hash.update(len(frame).to_bytes(4) + frame)

    def proof(self, label: bytes) -> bytes:
        return hmac.digest(self._key, label + b"\0" + self._hash.digest(), "sha256")

    def is_valid(self, label: bytes, proof: bytes) -> bool:
        return hmac.compare_digest(self.proof(label), proof)


class ServerHandshake:
    """The server's side: ``challenge``, then ``receive_hello``, ``receive_proof``, ``welcome``."""

    def __init__(self, key: Key | None, certificate: bytes) -> None:
        """``certificate``: the server's own, as DER."""
        self._auth = "key" if key else "open"
        self._transcript = _Transcript(key, certificate)
        self._hello: Hello | None = None

    def challenge(self) -> bytes:
        """The first frame of the handshake."""
        frame = encode_message(Challenge(VERSION, secrets.token_hex(NONCE_BYTES)))
        self._transcript.add(frame)
        return frame

    def receive_hello(self, payload: bytes) -> None:
        """Keep the client's HELLO; nothing in it counts before the proof. Raises ProtocolError."""
        self._hello = Hello.decode(payload)
        self._transcript.add(encode_frame(Kind.HELLO, payload))

    def receive_proof(self, proof: bytes) -> Hello:
        """Check the client's proof; its HELLO. Raises HandshakeRefusedError with the reason for the local log."""
        hello = self._hello
        if hello is None:
            raise ProtocolError("a proof before the greeting")
        if not self._transcript.is_valid(b"client", proof):
            raise HandshakeRefusedError(self._reason(hello))
        self._transcript.add(encode_frame(Kind.PROOF, proof))
        return hello

    def _reason(self, hello: Hello) -> str:
        if hello.auth != self._auth and self._auth == "key":
            return "this server requires a key and the client has none"
        if hello.auth != self._auth:
            return "this server is open and the client has a key"
        if self._auth == "key":
            return "the client has another key, or there is a man in the middle"
        return "there is a man in the middle"

    def welcome(self, welcome: Welcome) -> tuple[bytes, bytes]:
        """The frames that complete the handshake, and the link's secret."""
        frame = encode_message(welcome)
        self._transcript.add(frame)
        proof = self._transcript.proof(b"server")
        return frame + encode_message(Proof(proof)), self._transcript.proof(b"link")


class ClientHandshake:
    """The client's side: ``receive_challenge``, ``hello``, ``receive_welcome``, ``receive_proof``."""

    def __init__(self, key: Key | None, certificate: bytes) -> None:
        """``certificate``: the server's, as DER, as this client has received it."""
        self._auth = "key" if key else "open"
        self._transcript = _Transcript(key, certificate)
        self._welcome: Welcome | None = None

    def receive_challenge(self, payload: bytes) -> None:
        """Keep the server's CHALLENGE. Raises ProtocolError, also for another version of the protocol."""
        challenge = Challenge.decode(payload)
        if challenge.version != VERSION:
            raise ProtocolError(f"the server uses protocol {str(challenge.version)[:20]}, this client {VERSION}")
        self._transcript.add(encode_frame(Kind.CHALLENGE, payload))

    def hello(self, *, instance: str, mode: Mode, carrier: Carrier, bounds: ConfiguredLimits) -> bytes:
        """The frames that answer the challenge."""
        nonce = secrets.token_hex(NONCE_BYTES)
        frame = encode_message(Hello(nonce, instance, self._auth, mode, carrier, bounds))
        self._transcript.add(frame)
        proof = encode_message(Proof(self._transcript.proof(b"client")))
        self._transcript.add(proof)
        return frame + proof

    def receive_welcome(self, payload: bytes) -> None:
        """Keep the server's WELCOME; nothing in it counts before the proof. Raises ProtocolError."""
        self._welcome = Welcome.decode(payload)
        self._transcript.add(encode_frame(Kind.WELCOME, payload))

    def receive_proof(self, proof: bytes) -> tuple[Welcome, bytes]:
        """Check the server's proof; its WELCOME and the link's secret. Raises HandshakeRefusedError."""
        if self._welcome is None:
            raise ProtocolError("a proof before the welcome")
        if not self._transcript.is_valid(b"server", proof):
            raise HandshakeRefusedError("the server does not have the key, or there is a man in the middle")
        return self._welcome, self._transcript.proof(b"link")
