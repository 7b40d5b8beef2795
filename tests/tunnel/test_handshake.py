"""The mutual proof: agreement between those who share key and certificate, and nobody else."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.model.limits import ConfiguredLimits
from tunnel.model.spec import Direction, Key, Mode
from tunnel.protocol import frames
from tunnel.protocol.frames import Frame, FrameDecoder, Kind, ProtocolError
from tunnel.protocol.handshake import ClientHandshake, HandshakeRefusedError, Hello, ServerHandshake, Welcome

KEY, OTHER = Key("what both ends know"), Key("what nobody knows")
CERTIFICATE = b"the server's certificate as DER"

WELCOME = Welcome("6f1c", Direction.REVERSE, 40_000, data_tls=True, bounds=ConfiguredLimits(1, 2, 3))

bounds = st.builds(ConfiguredLimits, *[st.none() | st.integers(1, (1 << 32) - 1)] * 3)


class Talk:
    """Both sides of one handshake; ``alter`` may change any frame on its way."""

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

    def carry(self, data: bytes) -> list[bytes]:
        """Payloads as they arrive."""
        payloads = []
        for kind, payload in FrameDecoder().feed(data):
            self.frames.append((kind, payload))
            arrived = bytearray(payload)
            if self._alter is not None and self._alter[0] == len(self.frames) - 1:
                arrived[self._alter[1] % len(arrived)] ^= self._alter[2]
            payloads.append(bytes(arrived))
        return payloads

    def hello(self, mode: Mode = Mode.AUTO, told: ConfiguredLimits | None = None) -> Hello:
        [challenge] = self.carry(self.server.challenge())
        self.client.receive_challenge(challenge)
        said = self.client.hello(instance="me", mode=mode, data_tls=False, bounds=told or ConfiguredLimits())
        hello, proof = self.carry(said)
        self.server.receive_hello(hello)
        return self.server.receive_proof(proof)

    def whole(self) -> None:
        """From the first frame to the last."""
        self.hello()
        self.finish()

    def finish(self, decided: Welcome = WELCOME) -> tuple[Welcome, bytes, bytes]:
        """What the client takes over, and the secrets of client and server."""
        said, secret = self.server.welcome(decided)
        welcome, proof = self.carry(said)
        self.client.receive_welcome(welcome)
        heard, ours = self.client.receive_proof(proof)
        return heard, ours, secret


@given(
    key=st.none() | st.just(KEY),
    mode=st.sampled_from(Mode),
    told=bounds,
    decided=bounds,
    port=st.none() | st.integers(1, 65_535),
    data_tls=st.booleans(),
)
def test_both_ends_agree(
    key: Key | None, mode: Mode, told: ConfiguredLimits, decided: ConfiguredLimits, port: int | None, *, data_tls: bool
) -> None:
    talk = Talk(key, key)
    hello = talk.hello(mode, told)
    assert hello == Hello("me", "key" if key else "open", mode, data_tls=False, bounds=told)
    welcome = Welcome("6f1c", Direction.FORWARD, port, data_tls=data_tls, bounds=decided)
    heard, client_secret, server_secret = talk.finish(welcome)
    assert heard == welcome
    assert client_secret == server_secret
    assert len(server_secret) == 32
    said = b"".join(payload for _, payload in talk.frames)
    assert server_secret not in said
    assert KEY.reveal().encode() not in said


def test_every_link_has_a_secret_of_its_own() -> None:
    secrets = set()
    for _ in range(5):
        talk = Talk()
        talk.hello()
        secrets.add(talk.finish()[1])
    assert len(secrets) == 5


@pytest.mark.parametrize(
    ("server_key", "client_key", "why"),
    [
        (KEY, OTHER, "the client's key is not ours"),
        (KEY, None, "asks for a key and the client has none"),
        (None, KEY, "is open and the client has a key"),
    ],
)
def test_a_client_without_the_key_is_refused(server_key: Key | None, client_key: Key | None, why: str) -> None:
    with pytest.raises(HandshakeRefusedError, match=why):
        Talk(server_key, client_key).hello()


@pytest.mark.parametrize("key", [KEY, None])
def test_a_man_in_the_middle_shows_his_own_certificate_and_is_found_out(key: Key | None) -> None:
    with pytest.raises(HandshakeRefusedError, match="somebody stands between us"):
        Talk(key, key, seen=b"another certificate").hello()


def test_a_server_without_the_key_cannot_welcome() -> None:
    """It pretends to believe the client."""
    talk = Talk(server_key=OTHER)
    with pytest.raises(HandshakeRefusedError):
        talk.hello()
    with pytest.raises(HandshakeRefusedError, match="does not know the key"):
        talk.finish()


def test_what_was_overheard_is_worth_nothing_later() -> None:
    first = Talk()
    first.hello()
    first.finish()
    said = dict(first.frames)
    client_proof = next(payload for kind, payload in first.frames if kind is Kind.PROOF)

    again = ServerHandshake(KEY, CERTIFICATE)
    again.challenge()
    again.receive_hello(said[Kind.HELLO])
    with pytest.raises(HandshakeRefusedError):
        again.receive_proof(client_proof)

    victim = ClientHandshake(KEY, CERTIFICATE)
    victim.receive_challenge(said[Kind.CHALLENGE])
    victim.hello(instance="me", mode=Mode.AUTO, data_tls=False, bounds=ConfiguredLimits())
    victim.receive_welcome(said[Kind.WELCOME])
    with pytest.raises(HandshakeRefusedError):
        victim.receive_proof(said[Kind.PROOF])


@given(st.integers(0, 4), st.integers(0, 2000), st.integers(1, 255))
def test_a_byte_changed_anywhere_ends_the_handshake(frame: int, at: int, flip: int) -> None:
    talk = Talk(alter=(frame, at, flip))
    with pytest.raises((HandshakeRefusedError, ProtocolError)):
        talk.whole()
    assert len(talk.frames) > frame


def test_the_order_is_fixed() -> None:
    with pytest.raises(ProtocolError, match="before the greeting"):
        ServerHandshake(KEY, CERTIFICATE).receive_proof(b"")
    with pytest.raises(ProtocolError, match="before the welcome"):
        ClientHandshake(KEY, CERTIFICATE).receive_proof(b"")


@pytest.mark.parametrize("port", [True, 0, 65_536, "1", 1.0])
def test_a_data_port_is_a_number_of_a_port(port: object) -> None:
    payload = frames.encode_greeting(Kind.WELCOME, {**GOOD, "data_port": port})[3:]
    with pytest.raises(ProtocolError, match="data port"):
        ClientHandshake(KEY, CERTIFICATE).receive_welcome(payload)


def test_a_server_of_another_version_is_named() -> None:
    payload = frames.encode_greeting(Kind.CHALLENGE, {"v": 2, "nonce": "0" * 64})[3:]
    with pytest.raises(ProtocolError, match="speaks protocol 2, this end 1"):
        ClientHandshake(KEY, CERTIFICATE).receive_challenge(payload)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=90) | st.floats(allow_nan=True),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
greetings = st.dictionaries(
    st.sampled_from(
        ["v", "nonce", "instance", "auth", "mode", "tls", "link", "direction", "data_port", "pool_min", "visitors"]
    ),
    json_values,
)
GOOD = {
    "v": 1,
    "nonce": "0" * 64,
    "instance": "me",
    "auth": "key",
    "mode": "auto",
    "tls": False,
    "link": "1",
    "direction": "reverse",
    "data_port": 1,
}


@given(greetings)
def test_a_greeting_of_any_content_is_taken_or_a_protocol_error(fields: dict[str, object]) -> None:
    """And nothing else: whoever says it has proven nothing."""
    for odd in (fields, {**GOOD, **fields}):
        try:
            payload = frames.encode_greeting(Kind.HELLO, odd)[3:]
        except ValueError:  # longer than a greeting may be
            continue
        for hear in (
            ServerHandshake(KEY, CERTIFICATE).receive_hello,
            ClientHandshake(KEY, CERTIFICATE).receive_challenge,
            ClientHandshake(KEY, CERTIFICATE).receive_welcome,
        ):
            with contextlib.suppress(ProtocolError):
                hear(payload)
