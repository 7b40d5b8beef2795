"""Mutual authentication: it succeeds only between ends that share key and certificate."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.model.limits import ConfiguredLimits
from tunnel.model.keys import Key
from tunnel.model.spec import Carrier, Direction, Mode
from tunnel.protocol.errors import HandshakeRefusedError, ProtocolError
from tunnel.protocol.frame_codec import Frame, FrameDecoder
from tunnel.protocol.frames import Kind
from tunnel.protocol.handshake import ClientHandshake, ServerHandshake
from tunnel.protocol.handshake_messages import Hello, Proof, Welcome

KEY, OTHER = Key("the shared key"), Key("another key")
CERTIFICATE = b"the server's certificate as DER"

WELCOME = Welcome("6f1c", Direction.REVERSE, 40_000, carrier=Carrier.TLS, bounds=ConfiguredLimits(1, 2, 3))

bounds = st.builds(ConfiguredLimits, *[st.none() | st.integers(1, (1 << 32) - 1)] * 3)


class Exchange:
    """Both sides of one handshake; ``alter`` (frame, byte, mask) changes one frame on its way."""

    def __init__(
        self,
        server_key: Key | None = KEY,
        client_key: Key | None = KEY,
        seen: bytes = CERTIFICATE,
        alter: tuple[int, int, int] | None = None,
    ) -> None:
        self.server = ServerHandshake(server_key, CERTIFICATE)
        self.client = ClientHandshake(client_key, seen)
        self.frames: list[Frame] = []
        self._alter = alter

    def transfer(self, data: bytes) -> list[bytes]:
        """The payloads as they arrive."""
        payloads = []
        for kind, payload in FrameDecoder().feed(data):
            self.frames.append((kind, payload))
            arrived = bytearray(payload)
            if self._alter is not None and self._alter[0] == len(self.frames) - 1:
                arrived[self._alter[1] % len(arrived)] ^= self._alter[2]
            payloads.append(bytes(arrived))
        return payloads

    def hello(self, mode: Mode = Mode.AUTO, configured: ConfiguredLimits | None = None) -> Hello:
        [challenge] = self.transfer(self.server.challenge())
        self.client.receive_challenge(challenge)
        answer = self.client.hello(
            instance="me", mode=mode, carrier=Carrier.TCP, bounds=configured or ConfiguredLimits()
        )
        hello, proof = self.transfer(answer)
        self.server.receive_hello(hello)
        return self.server.receive_proof(proof)

    def complete(self) -> None:
        """Run the handshake from the first frame to the last."""
        self.hello()
        self.finish()

    def finish(self, decided: Welcome = WELCOME) -> tuple[Welcome, bytes, bytes]:
        """The WELCOME at the client, and the secrets of client and server."""
        answer, secret = self.server.welcome(decided)
        welcome, proof = self.transfer(answer)
        self.client.receive_welcome(welcome)
        received, ours = self.client.receive_proof(proof)
        return received, ours, secret


@given(
    key=st.none() | st.just(KEY),
    mode=st.sampled_from(Mode),
    configured=bounds,
    decided=bounds,
    port=st.none() | st.integers(1, 65_535),
    carrier=st.sampled_from(Carrier),
)
def test_both_ends_agree_on_terms_and_secret(
    key: Key | None,
    mode: Mode,
    configured: ConfiguredLimits,
    decided: ConfiguredLimits,
    port: int | None,
    *,
    carrier: Carrier,
) -> None:
    exchange = Exchange(key, key)
    hello = exchange.hello(mode, configured)
    assert hello == Hello(hello.nonce, "me", "key" if key else "open", mode, carrier=Carrier.TCP, bounds=configured)
    welcome = Welcome("6f1c", Direction.FORWARD, port, carrier=carrier, bounds=decided)
    received, client_secret, server_secret = exchange.finish(welcome)
    assert received == welcome
    assert client_secret == server_secret
    assert len(server_secret) == 32
    sent = b"".join(payload for _, payload in exchange.frames)
    assert server_secret not in sent
    assert KEY.reveal().encode() not in sent


def test_every_link_has_a_secret_of_its_own() -> None:
    secrets = set()
    for _ in range(5):
        exchange = Exchange()
        exchange.hello()
        secrets.add(exchange.finish()[1])
    assert len(secrets) == 5


@pytest.mark.parametrize(
    ("server_key", "client_key", "why"),
    [
        (KEY, OTHER, "the client has another key"),
        (KEY, None, "requires a key and the client has none"),
        (None, KEY, "is open and the client has a key"),
    ],
)
def test_a_client_without_the_key_is_refused(server_key: Key | None, client_key: Key | None, why: str) -> None:
    with pytest.raises(HandshakeRefusedError, match=why):
        Exchange(server_key, client_key).hello()


@pytest.mark.parametrize("key", [KEY, None])
def test_a_man_in_the_middle_with_another_certificate_is_refused(key: Key | None) -> None:
    with pytest.raises(HandshakeRefusedError, match="there is a man in the middle"):
        Exchange(key, key, seen=b"another certificate").hello()


def test_a_client_refuses_a_server_without_the_key() -> None:
    """It ignores that the client's proof is wrong."""
    exchange = Exchange(server_key=OTHER)
    with pytest.raises(HandshakeRefusedError):
        exchange.hello()
    with pytest.raises(HandshakeRefusedError, match="does not have the key"):
        exchange.finish()


def test_recorded_frames_cannot_be_replayed() -> None:
    first = Exchange()
    first.hello()
    first.finish()
    recorded = dict(first.frames)
    client_proof = next(payload for kind, payload in first.frames if kind is Kind.PROOF)

    again = ServerHandshake(KEY, CERTIFICATE)
    again.challenge()
    again.receive_hello(recorded[Kind.HELLO])
    with pytest.raises(HandshakeRefusedError):
        again.receive_proof(client_proof)

    victim = ClientHandshake(KEY, CERTIFICATE)
    victim.receive_challenge(recorded[Kind.CHALLENGE])
    victim.hello(instance="me", mode=Mode.AUTO, carrier=Carrier.TCP, bounds=ConfiguredLimits())
    victim.receive_welcome(recorded[Kind.WELCOME])
    with pytest.raises(HandshakeRefusedError):
        victim.receive_proof(recorded[Kind.PROOF])


@given(st.integers(0, 4), st.integers(0, 2000), st.integers(1, 255))
def test_one_changed_byte_in_any_frame_ends_the_handshake(frame: int, at: int, flip: int) -> None:
    exchange = Exchange(alter=(frame, at, flip))
    with pytest.raises((HandshakeRefusedError, ProtocolError)):
        exchange.complete()
    assert len(exchange.frames) > frame


def test_a_proof_before_the_greeting_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="before the greeting"):
        ServerHandshake(KEY, CERTIFICATE).receive_proof(b"")
    with pytest.raises(ProtocolError, match="before the welcome"):
        ClientHandshake(KEY, CERTIFICATE).receive_proof(b"")


@pytest.mark.parametrize("port", [True, 0, 65_536, "1", 1.0])
def test_an_invalid_data_port_is_rejected(port: object) -> None:
    payload = json.dumps({**GOOD, "data_port": port}).encode()
    with pytest.raises(ProtocolError, match="data port"):
        ClientHandshake(KEY, CERTIFICATE).receive_welcome(payload)


def test_a_server_of_another_protocol_version_is_rejected_with_its_version() -> None:
    payload = json.dumps({"v": 2, "nonce": "0" * 64}).encode()
    with pytest.raises(ProtocolError, match="uses protocol 2, this client 1"):
        ClientHandshake(KEY, CERTIFICATE).receive_challenge(payload)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=90) | st.floats(allow_nan=True),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
greetings = st.dictionaries(
    st.sampled_from(
        ["v", "nonce", "instance", "auth", "mode", "carrier", "link", "direction", "data_port", "pool_min", "visitors"]
    ),
    json_values,
)
GOOD = {
    "v": 1,
    "nonce": "0" * 64,
    "instance": "me",
    "auth": "key",
    "mode": "auto",
    "carrier": "tcp",
    "link": "1",
    "direction": "reverse",
    "data_port": 1,
}


@given(greetings)
def test_any_greeting_is_accepted_or_raises_a_protocol_error(fields: dict[str, object]) -> None:
    """And no other exception: the sender has not authenticated."""
    for greeting in (fields, {**GOOD, **fields}):
        payload = json.dumps(greeting).encode()
        for receive in (
            ServerHandshake(KEY, CERTIFICATE).receive_hello,
            ClientHandshake(KEY, CERTIFICATE).receive_challenge,
            ClientHandshake(KEY, CERTIFICATE).receive_welcome,
        ):
            with contextlib.suppress(ProtocolError):
                receive(payload)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"v": True}, "without a valid v"),
        ({"nonce": "0"}, "nonce of the wrong length"),
        ({"nonce": "\x1b" * 64}, "without a valid nonce"),
    ],
)
def test_a_malformed_challenge_is_rejected_with_the_reason(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        ClientHandshake(KEY, CERTIFICATE).receive_challenge(json.dumps({**GOOD, **change}).encode())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mode": "sideways"}, "unknown mode"),
        ({"carrier": 1}, "without a valid carrier"),
        ({"carrier": "pigeon"}, "unknown carrier"),
        ({"pool_min": True}, "invalid bounds"),
        ({"visitors": 1 << 32}, "invalid bounds"),
        ({"pool_max": 0}, "invalid bounds"),
    ],
)
def test_a_malformed_hello_is_rejected_with_the_reason(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        ServerHandshake(KEY, CERTIFICATE).receive_hello(json.dumps({**GOOD, **change}).encode())


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b"[" * 1000, b'{"v":"\xff"}'])
def test_a_greeting_that_is_no_json_object_is_a_protocol_error(payload: bytes) -> None:
    with pytest.raises(ProtocolError, match="a greeting that is not"):
        ServerHandshake(KEY, CERTIFICATE).receive_hello(payload)


def test_the_proof_is_sent_as_it_is() -> None:
    assert Proof.decode(bytes(range(32))).digest == Proof(bytes(range(32))).encode() == bytes(range(32))
