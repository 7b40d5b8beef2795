"""Mutual authentication with the shared key at the start of a link. No I/O: payloads in, frames out.

The server starts with CHALLENGE. The client answers HELLO and PROOF, the server WELCOME and PROOF. Each proof is an
HMAC-SHA256, with the key of the service, over all frames before it and the SHA-256 of the server's certificate as each
end sees it. A man in the middle has to show a certificate of his own, and then the two ends compute different proofs.
(Channel binding as "tls-server-end-point", RFC 5929 §4: TLS 1.3 has no tls-unique and Python no exporter.)
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tunnel.model.spec import PUBLISH, Mode, proto_of
from tunnel.protocol.errors import HandshakeRefusedError, ProtocolError, WrongServiceError
from tunnel.protocol.frame_codec import encode_frame, encode_message
from tunnel.protocol.frames import Kind
from tunnel.protocol.handshake_messages import NONCE_BYTES, Challenge, Hello, Proof, Welcome
from tunnel.protocol.keys import BASE_KEY_BYTES, service_key

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tunnel.model.address import Address
    from tunnel.model.limits import ConfiguredLimits
    from tunnel.model.spec import DataTls
    from tunnel.protocol.keys import BaseKey

VERSION: Final = 2
"""The one version of the protocol that this program speaks."""
REFUSAL: Final = "refused: most likely the keys or the service names differ, see the server's log"
"""All that an end without the key, or one that wants another service, learns."""

_LABEL: Final = b"nodepass-orch 2 "


class _Transcript:
    """The hash of all frames so far, and the proofs over it."""

    __slots__ = ("_hash",)

    def __init__(self, certificate: bytes) -> None:
        self._hash = hashlib.sha256(_LABEL + hashlib.sha256(certificate).digest())

    def add(self, frame: bytes) -> None:
        self._hash.update(len(frame).to_bytes(4) + frame)

    def proof(self, key: bytes, label: bytes) -> bytes:
        return hmac.digest(key, label + b"\0" + self._hash.digest(), "sha256")

    def is_valid(self, key: bytes, label: bytes, proof: bytes) -> bool:
        return hmac.compare_digest(self.proof(key, label), proof)


@dataclass(frozen=True, slots=True)
class AuthenticatedClient:
    """A client whose proof was right."""

    hello: Hello
    key: BaseKey
    """the one of the server's keys that the client has"""


class ServerHandshake:
    """The server's side: ``challenge``, then ``receive_hello``, ``receive_proof``, ``welcome``.

    Where several services share a port, ``select_service`` comes before ``receive_proof``.
    """

    def __init__(self, service: str, certificate: bytes, *, features: tuple[str, ...] = ()) -> None:
        """``certificate``: the server's own, as DER. ``features``: optional parts of the protocol that it offers."""
        self._service = service
        self._features = features
        self._transcript = _Transcript(certificate)
        self._hello: Hello | None = None
        self._key = b""
        self._filler = secrets.token_bytes(BASE_KEY_BYTES)  # a key that no client can have

    def challenge(self) -> bytes:
        """The first frame of the handshake."""
        frame = encode_message(Challenge((VERSION,), self._features, secrets.token_hex(NONCE_BYTES)))
        self._transcript.add(frame)
        return frame

    def receive_hello(self, payload: bytes) -> None:
        """Keep the client's HELLO; nothing in it counts before the proof. Raises ProtocolError."""
        self._hello = Hello.decode(payload)
        if self._hello.version != VERSION:
            raise ProtocolError(f"the client chose protocol version {self._hello.version}, which was not offered")
        self._transcript.add(encode_frame(Kind.HELLO, payload))

    @property
    def requested_service(self) -> str:
        """The service that the client wants, which it has not proved yet; empty before ``receive_hello``."""
        return self._hello.service if self._hello is not None else ""

    @property
    def wants_publishing(self) -> bool:
        """Whether the client asks the server to open the service, which it has not proved yet."""
        return self._hello is not None and self._hello.publish is not None

    def select_service(self, service: str, features: tuple[str, ...]) -> None:
        """Judge the client as one of this service; ``features``: those of the offered ones that the service uses."""
        self._service = service
        self._features = tuple(name for name in self._features if name in features)

    def receive_proof(self, proof: bytes, keys: Iterable[BaseKey], *, least_keys: int = 0) -> AuthenticatedClient:
        """Check the client's proof with each of the server's keys.

        The time depends on neither the service nor the key of the client. Where the services of a port have different
        numbers of keys, ``least_keys`` is the greatest of them. Keys that no client can have fill the rest. Raises
        HandshakeRefusedError with the reason for the local log.
        """
        hello = self._hello
        if hello is None:
            raise ProtocolError("a proof before the greeting")
        keys = tuple(keys)
        # With the key of the service that the client names: a wrong service needs the same computations as a wrong key.
        fillers = [self._filler] * (least_keys - len(keys))
        derived = [service_key(secret, hello.service) for secret in (*(key.secret for key in keys), *fillers)]
        valid = [self._transcript.is_valid(key, b"client", proof) for key in derived]
        if True not in valid or hello.service != self._service:
            refused = WrongServiceError if True in valid else HandshakeRefusedError
            raise refused(self._reason(hello, keys, is_key_right=True in valid))
        which = valid.index(True)
        self._key = derived[which]
        self._transcript.add(encode_frame(Kind.PROOF, proof))
        return AuthenticatedClient(hello, keys[which])

    def _reason(self, hello: Hello, keys: tuple[BaseKey, ...], *, is_key_right: bool) -> str:
        if is_key_right:
            return f"the client wants {describe_service(hello.service)}, this is {describe_service(self._service)}"
        is_open = all(key.is_open for key in keys)
        if is_open and hello.auth == "key":
            return "this server is open and the client has a key"
        if not is_open and hello.auth == "open":
            return "this server requires a key and the client has none"
        if is_open:
            return "there is a man in the middle"
        also = "" if hello.service == self._service else " and wants another service"
        return f"the client has another key{also}, or there is a man in the middle"

    def negotiate_features(self) -> tuple[str, ...]:
        """The optional parts of the protocol that both ends have."""
        wanted = self._hello.features if self._hello is not None else ()
        return tuple(name for name in self._features if name in wanted)

    def welcome(self, welcome: Welcome) -> tuple[bytes, bytes]:
        """The frames that complete the handshake, and the link's secret. Only after ``receive_proof``."""
        frame = encode_message(welcome)
        self._transcript.add(frame)
        proof = self._transcript.proof(self._key, b"server")
        return frame + encode_message(Proof(proof)), self._transcript.proof(self._key, b"link")


class ClientHandshake:
    """The client's side: ``receive_challenge``, ``hello``, ``receive_welcome``, ``receive_proof``."""

    def __init__(self, key: BaseKey, service: str, certificate: bytes, *, features: tuple[str, ...] = ()) -> None:
        """``certificate``: the server's, as DER, as this client has received it. ``features``: what it wants to use."""
        self._auth = "open" if key.is_open else "key"
        self._service = service
        self._key = service_key(key.secret, service)
        self._features = features
        self._offered: tuple[str, ...] = ()
        self._transcript = _Transcript(certificate)
        self._hello: Hello | None = None
        self._welcome: Welcome | None = None

    def receive_challenge(self, payload: bytes) -> None:
        """Keep the server's CHALLENGE. Raises ProtocolError, also for other versions of the protocol."""
        challenge = Challenge.decode(payload)
        if VERSION not in challenge.versions:
            spoken = ", ".join(str(version)[:20] for version in challenge.versions)
            raise ProtocolError(
                f"the server speaks protocol version {spoken}, this client {VERSION}; use the same release at both ends"
            )
        self._offered = challenge.features
        self._transcript.add(encode_frame(Kind.CHALLENGE, payload))

    def hello(
        self,
        *,
        instance: str,
        mode: Mode,
        tls: DataTls,
        bounds: ConfiguredLimits,
        weight: int = 1,
        backup: bool = False,
        publish: Address | None = None,
    ) -> bytes:
        """The frames that answer the challenge."""
        self._hello = Hello(
            version=VERSION,
            features=self._features,
            nonce=secrets.token_hex(NONCE_BYTES),
            service=self._service,
            instance=instance,
            auth=self._auth,
            mode=mode,
            tls=tls,
            bounds=bounds,
            weight=weight,
            backup=backup,
            publish=publish,
        )
        frame = encode_message(self._hello)
        self._transcript.add(frame)
        proof = encode_message(Proof(self._transcript.proof(self._key, b"client")))
        self._transcript.add(proof)
        return frame + proof

    def receive_welcome(self, payload: bytes) -> None:
        """Keep the server's WELCOME; nothing in it counts before the proof. Raises ProtocolError."""
        self._welcome = Welcome.decode(payload)
        self._transcript.add(encode_frame(Kind.WELCOME, payload))

    def receive_proof(self, proof: bytes) -> tuple[Welcome, bytes]:
        """Check the server's proof and its decisions; its WELCOME and the link's secret.

        Raises HandshakeRefusedError for a wrong proof, and ProtocolError for a decision that this client does not
        accept.
        """
        welcome, hello = self._welcome, self._hello
        if welcome is None or hello is None:
            raise ProtocolError("a proof before the welcome")
        if not self._transcript.is_valid(self._key, b"server", proof):
            raise HandshakeRefusedError("the server does not have the key, or there is a man in the middle")
        self._check_decisions(hello, welcome)
        return welcome, self._transcript.proof(self._key, b"link")

    def _check_decisions(self, hello: Hello, welcome: Welcome) -> None:
        if hello.mode is not Mode.AUTO and hello.mode.value != welcome.direction.value:
            raise ProtocolError(f"this client has mode={hello.mode} and the server decided {welcome.direction}")
        if welcome.carrier.is_weaker_than(hello.tls.carrier):
            raise ProtocolError(
                f"this client has tls={hello.tls.value} and the server does not encrypt data connections"
            )
        if not {*welcome.features} <= {*self._features} & {*self._offered}:
            raise ProtocolError("the server uses a feature that was not agreed on")
        if (proto := proto_of(self._features)) is not proto_of(welcome.features):
            raise ProtocolError(f"this client has proto={proto} and the server has not; write the same at both ends")
        if PUBLISH in self._features and PUBLISH not in welcome.features:
            raise ProtocolError("this client has publish= and the server lets no client publish on this port")


def describe_service(name: str) -> str:
    """Return a service as the local log names it; the name may be a peer's."""
    return f"the service {name!r}" if name else "the service without a name"
