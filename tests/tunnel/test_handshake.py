"""Mutual authentication: it succeeds only between ends that share key and certificate."""

from __future__ import annotations

import contextlib
import hmac
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.model.limits import ConfiguredLimits
from tunnel.model.spec import Carrier, DataTls, Direction, Mode
from tunnel.protocol.errors import HandshakeRefusedError, ProtocolError
from tunnel.protocol.frame_codec import Frame, FrameDecoder, encode_frame
from tunnel.protocol.frames import Kind
from tunnel.protocol.handshake import AuthenticatedClient, ClientHandshake, ServerHandshake
from tunnel.protocol.handshake_messages import Hello, Proof, Welcome
from tunnel.protocol.keys import OPEN_BASE_KEY, BaseKey

KEY, OTHER, OPEN = BaseKey(b"k" * 32), BaseKey(b"o" * 32, "other"), BaseKey(OPEN_BASE_KEY, is_open=True)
CERTIFICATE = b"the server's certificate as DER"
LINK = "6f1c" * 4

WELCOME = Welcome(
    link=LINK,
    direction=Direction.REVERSE,
    data_port=40_000,
    carrier=Carrier.ENCRYPTED,
    bounds=ConfiguredLimits(1, 2, 3),
)

bounds = st.builds(ConfiguredLimits, *[st.none() | st.integers(1, (1 << 32) - 1)] * 3)


def client_of(key: BaseKey = KEY, service: str = "", seen: bytes = CERTIFICATE) -> ClientHandshake:
    return ClientHandshake(key, service, seen)


def server_of(service: str = "") -> ServerHandshake:
    return ServerHandshake(service, CERTIFICATE)


class Exchange:
    """Both sides of one handshake; ``alter`` (frame, byte, mask) changes one frame on its way."""

    def __init__(
        self,
        server_keys: tuple[BaseKey, ...] = (KEY,),
        client: ClientHandshake | None = None,
        server: ServerHandshake | None = None,
        alter: tuple[int, int, int] | None = None,
    ) -> None:
        self.server = server or server_of()
        self.client = client or client_of()
        self.frames: list[Frame] = []
        self._server_keys = server_keys
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

    def authenticate(
        self, mode: Mode = Mode.AUTO, tls: DataTls = DataTls.OFF, configured: ConfiguredLimits | None = None
    ) -> AuthenticatedClient:
        [challenge] = self.transfer(self.server.challenge())
        self.client.receive_challenge(challenge)
        answer = self.client.hello(instance="me", mode=mode, tls=tls, bounds=configured or ConfiguredLimits())
        hello, proof = self.transfer(answer)
        self.server.receive_hello(hello)
        return self.server.receive_proof(proof, self._server_keys)

    def complete(self) -> None:
        """Run the handshake from the first frame to the last."""
        self.authenticate()
        self.finish()

    def finish(self, decided: Welcome = WELCOME) -> tuple[Welcome, bytes, bytes]:
        """The WELCOME at the client, and the secrets of client and server."""
        answer, secret = self.server.welcome(decided)
        welcome, proof = self.transfer(answer)
        self.client.receive_welcome(welcome)
        received, ours = self.client.receive_proof(proof)
        return received, ours, secret


@given(
    key=st.sampled_from([KEY, OPEN]),
    service=st.sampled_from(["", "web", "büro-😀"]),
    configured=bounds,
    decided=bounds,
    port=st.none() | st.integers(1, 65_535),
    carrier=st.sampled_from(Carrier),
)
def test_both_ends_agree_on_terms_and_secret(
    key: BaseKey,
    service: str,
    configured: ConfiguredLimits,
    decided: ConfiguredLimits,
    port: int | None,
    *,
    carrier: Carrier,
) -> None:
    exchange = Exchange((key,), client_of(key, service), server_of(service))
    client = exchange.authenticate(configured=configured)
    assert client.key is key
    assert client.hello == Hello(
        version=2,
        nonce=client.hello.nonce,
        service=service,
        instance="me",
        auth="open" if key.is_open else "key",
        mode=Mode.AUTO,
        tls=DataTls.OFF,
        bounds=configured,
    )
    welcome = Welcome(link=LINK, direction=Direction.FORWARD, data_port=port, carrier=carrier, bounds=decided)
    received, client_secret, server_secret = exchange.finish(welcome)
    assert received == welcome
    assert client_secret == server_secret
    assert len(server_secret) == 32
    sent = b"".join(payload for _, payload in exchange.frames)
    assert server_secret not in sent
    assert KEY.secret not in sent
    assert "secret" not in repr(key)


def test_every_link_has_a_secret_of_its_own() -> None:
    secrets = set()
    for _ in range(5):
        exchange = Exchange()
        exchange.authenticate()
        secrets.add(exchange.finish()[1])
    assert len(secrets) == 5


@pytest.mark.parametrize(
    ("server_key", "client_key", "why"),
    [
        (KEY, OTHER, "the client has another key, or"),
        (KEY, OPEN, "requires a key and the client has none"),
        (OPEN, KEY, "is open and the client has a key"),
    ],
)
def test_a_client_without_the_key_is_refused(server_key: BaseKey, client_key: BaseKey, why: str) -> None:
    with pytest.raises(HandshakeRefusedError, match=why):
        Exchange((server_key,), client_of(client_key)).authenticate()


@pytest.mark.parametrize("key", [KEY, OPEN])
def test_a_client_of_one_service_is_refused_by_another_with_the_same_key(key: BaseKey) -> None:
    for service in ("", "admin", "WEB"):
        exchange = Exchange((key,), client_of(key, service), server_of("web"))
        with pytest.raises(HandshakeRefusedError, match=r"the client wants the service .*, this is the service 'web'"):
            exchange.authenticate()


def test_the_log_does_not_repeat_the_service_of_a_client_without_the_key() -> None:
    exchange = Exchange((KEY,), client_of(OTHER, "chosen-by-the-peer"), server_of("web"))
    with pytest.raises(HandshakeRefusedError, match="another key and wants another service, or") as refused:
        exchange.authenticate()
    assert "chosen" not in str(refused.value)


def test_a_client_that_is_connected_to_another_service_does_not_accept_it() -> None:
    """A server that has the key, and ignores that the client wants another service."""
    exchange = Exchange((KEY,), client_of(KEY, "web"), server_of("admin"))
    with pytest.raises(HandshakeRefusedError):
        exchange.authenticate()
    with pytest.raises(HandshakeRefusedError, match="does not have the key"):
        exchange.finish()


@pytest.fixture
def computations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of HMACs computed so far, in a list."""
    count = [0]
    digest = hmac.digest

    def counting(key: bytes, message: bytes, name: str) -> bytes:
        count[0] += 1
        return digest(key, message, name)

    monkeypatch.setattr(hmac, "digest", counting)
    return count


@pytest.mark.parametrize("number", [1, 3])
def test_wrong_key_wrong_service_and_right_proof_cost_the_same_computations(
    computations: list[int], number: int
) -> None:
    keys = (*(BaseKey(bytes([n]) * 32, str(n)) for n in range(number - 1)), KEY)
    costs = set()
    for client in (client_of(KEY, "web"), client_of(keys[0], "web"), client_of(OTHER, "web"), client_of(KEY, "x")):
        server = server_of("web")
        client.receive_challenge(server.challenge()[3:])
        (_, hello), (_, proof) = FrameDecoder().feed(
            client.hello(instance="me", mode=Mode.AUTO, tls=DataTls.OFF, bounds=ConfiguredLimits())
        )
        server.receive_hello(hello)
        before = computations[0]
        with contextlib.suppress(HandshakeRefusedError):
            server.receive_proof(proof, keys)
        costs.add(computations[0] - before)
    assert costs == {2 * number}


def test_each_of_several_keys_is_accepted_and_known_by_its_name() -> None:
    home, office = BaseKey(b"h" * 32, "home"), BaseKey(b"f" * 32, "office")
    for key in (home, office):
        exchange = Exchange((home, office), client_of(BaseKey(key.secret)))
        assert exchange.authenticate().key is key
        _, client_secret, server_secret = exchange.finish()
        assert client_secret == server_secret


@pytest.mark.parametrize("key", [KEY, OPEN])
def test_a_man_in_the_middle_with_another_certificate_is_refused(key: BaseKey) -> None:
    with pytest.raises(HandshakeRefusedError, match="there is a man in the middle"):
        Exchange((key,), client_of(key, seen=b"another certificate")).authenticate()


def test_a_client_refuses_a_server_without_the_key() -> None:
    """It ignores that the client's proof is wrong."""
    exchange = Exchange((OTHER,))
    with pytest.raises(HandshakeRefusedError):
        exchange.authenticate()
    with pytest.raises(HandshakeRefusedError, match="does not have the key"):
        exchange.finish()


def test_a_client_that_gets_its_own_proof_back_refuses_it() -> None:
    victim = client_of()
    victim.receive_challenge(server_of().challenge()[3:])
    frames = victim.hello(instance="me", mode=Mode.AUTO, tls=DataTls.OFF, bounds=ConfiguredLimits())
    (_, _), (_, own_proof) = FrameDecoder().feed(frames)
    victim.receive_welcome(WELCOME.encode())
    with pytest.raises(HandshakeRefusedError):
        victim.receive_proof(own_proof)


def test_recorded_frames_cannot_be_replayed() -> None:
    first = Exchange()
    first.authenticate()
    first.finish()
    recorded = dict(first.frames)
    client_proof = next(payload for kind, payload in first.frames if kind is Kind.PROOF)

    again = server_of()
    again.challenge()
    again.receive_hello(recorded[Kind.HELLO])
    with pytest.raises(HandshakeRefusedError):
        again.receive_proof(client_proof, [KEY])

    victim = client_of()
    victim.receive_challenge(recorded[Kind.CHALLENGE])
    victim.hello(instance="me", mode=Mode.AUTO, tls=DataTls.OFF, bounds=ConfiguredLimits())
    victim.receive_welcome(recorded[Kind.WELCOME])
    with pytest.raises(HandshakeRefusedError):
        victim.receive_proof(recorded[Kind.PROOF])


# --- decisions of the server ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [Mode.FORWARD, Mode.REVERSE])
def test_a_client_refuses_a_direction_that_contradicts_its_mode(mode: Mode) -> None:
    for direction in Direction:
        exchange = Exchange()
        exchange.authenticate(mode)
        decided = Welcome(
            link=LINK, direction=direction, data_port=None, carrier=Carrier.TCP, bounds=ConfiguredLimits()
        )
        if direction.value == mode.value:
            exchange.finish(decided)
        else:
            with pytest.raises(ProtocolError, match=f"has mode={mode} and the server decided {direction}"):
                exchange.finish(decided)


@pytest.mark.parametrize("tls", [DataTls.ENCRYPTED, DataTls.VERIFIED])
def test_a_client_that_asks_for_encryption_refuses_a_carrier_without_it(tls: DataTls) -> None:
    exchange = Exchange()
    exchange.authenticate(tls=tls)
    with pytest.raises(ProtocolError, match=f"tls={tls.value} and the server does not encrypt"):
        exchange.finish(
            Welcome(
                link=LINK,
                direction=Direction.REVERSE,
                data_port=None,
                carrier=Carrier.TCP,
                bounds=ConfiguredLimits(),
            )
        )


@pytest.mark.parametrize(
    ("ours", "theirs", "agreed"),
    [
        (("a", "b"), ("b", "c"), ("b",)),
        (("a",), (), ()),
        ((), ("unknown",), ()),
    ],
)
def test_features_that_one_end_does_not_know_are_ignored(
    ours: tuple[str, ...], theirs: tuple[str, ...], agreed: tuple[str, ...]
) -> None:
    client = ClientHandshake(KEY, "", CERTIFICATE, features=theirs)
    exchange = Exchange(client=client, server=ServerHandshake("", CERTIFICATE, features=ours))
    exchange.authenticate()
    assert exchange.server.negotiate_features() == agreed


@pytest.mark.parametrize("decided", [("offered",), ("wanted",), ("neither",)])
def test_a_client_refuses_a_feature_that_is_not_in_both_lists(decided: tuple[str, ...]) -> None:
    client = ClientHandshake(KEY, "", CERTIFICATE, features=("wanted", "both"))
    exchange = Exchange(client=client, server=ServerHandshake("", CERTIFICATE, features=("offered", "both")))
    exchange.authenticate()
    welcome = Welcome(
        features=("both", *decided),
        link=LINK,
        direction=Direction.REVERSE,
        data_port=None,
        carrier=Carrier.TCP,
        bounds=ConfiguredLimits(),
    )
    with pytest.raises(ProtocolError, match="feature that was not agreed on"):
        exchange.finish(welcome)


@pytest.mark.parametrize(
    ("ours", "fault"), [((), None), (("udp",), "this client has proto=udp and the server has not")]
)
def test_a_client_that_forwards_udp_needs_a_server_that_does(ours: tuple[str, ...], fault: str | None) -> None:
    client = ClientHandshake(KEY, "", CERTIFICATE, features=ours)
    exchange = Exchange(client=client, server=ServerHandshake("", CERTIFICATE, features=()))
    exchange.authenticate()
    welcome = Welcome(
        link=LINK, direction=Direction.REVERSE, data_port=None, carrier=Carrier.TCP, bounds=ConfiguredLimits()
    )
    with contextlib.nullcontext() if fault is None else pytest.raises(ProtocolError, match=fault):
        exchange.finish(welcome)


def test_members_that_a_reader_does_not_know_are_ignored_and_authenticated() -> None:
    server, client = server_of(), client_of()
    challenge = json.dumps({**json.loads(server.challenge()[3:]), "later": [1, {"a": None}]}).encode()
    client.receive_challenge(challenge)
    (_, hello), (_, proof) = FrameDecoder().feed(
        client.hello(instance="me", mode=Mode.AUTO, tls=DataTls.OFF, bounds=ConfiguredLimits())
    )
    server.receive_hello(hello)
    with pytest.raises(HandshakeRefusedError):  # the server has sent another challenge
        server.receive_proof(proof, [KEY])


# --- frames ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 4), st.integers(0, 2000), st.integers(1, 255))
def test_one_changed_byte_in_any_frame_ends_the_handshake(frame: int, at: int, flip: int) -> None:
    exchange = Exchange(alter=(frame, at, flip))
    with pytest.raises((HandshakeRefusedError, ProtocolError)):
        exchange.complete()
    assert len(exchange.frames) > frame


def test_a_proof_before_the_greeting_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="before the greeting"):
        server_of().receive_proof(b"", [KEY])
    with pytest.raises(ProtocolError, match="before the welcome"):
        client_of().receive_proof(b"")


@pytest.mark.parametrize("port", [True, 0, 65_536, "1", 1.0])
def test_an_invalid_data_port_is_rejected(port: object) -> None:
    payload = json.dumps({**GOOD, "data_port": port}).encode()
    with pytest.raises(ProtocolError, match="data port"):
        client_of().receive_welcome(payload)


def test_a_server_of_another_protocol_version_is_rejected_with_its_versions() -> None:
    payload = json.dumps({**GOOD, "versions": [3, 4]}).encode()
    with pytest.raises(ProtocolError, match="speaks protocol version 3, 4, this client 2; use the same release"):
        client_of().receive_challenge(payload)


def test_a_client_that_chooses_a_version_that_was_not_offered_is_rejected() -> None:
    with pytest.raises(ProtocolError, match="chose protocol version 3, which was not offered"):
        server_of().receive_hello(json.dumps({**GOOD, "version": 3}).encode())


def test_a_later_server_that_also_speaks_this_version_is_accepted() -> None:
    client_of().receive_challenge(json.dumps({**GOOD, "versions": [3, 2]}).encode())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=90) | st.floats(allow_nan=True),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
greetings = st.dictionaries(
    st.sampled_from(
        [
            *("versions", "version", "features", "nonce", "service", "instance", "auth", "mode", "tls"),
            *("carrier", "link", "direction", "data_port", "pool_min", "visitors"),
        ]
    ),
    json_values,
)
GOOD = {
    "versions": [2],
    "version": 2,
    "features": [],
    "service": "",
    "tls": 0,
    "nonce": "0" * 64,
    "instance": "me",
    "auth": "key",
    "mode": "auto",
    "carrier": "tcp",
    "link": LINK,
    "direction": "reverse",
    "data_port": 1,
}


@given(greetings)
def test_any_greeting_is_accepted_or_raises_a_protocol_error(fields: dict[str, object]) -> None:
    """And no other exception: the sender has not authenticated."""
    for greeting in (fields, {**GOOD, **fields}):
        payload = json.dumps(greeting).encode()
        for receive in (
            server_of().receive_hello,
            client_of().receive_challenge,
            client_of().receive_welcome,
        ):
            with contextlib.suppress(ProtocolError):
                receive(payload)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"versions": [True]}, "without valid versions"),
        ({"versions": []}, "without valid versions"),
        ({"versions": [2] * 17}, "without valid versions"),
        ({"features": ["f"] * 17}, "without valid features"),
        ({"features": [""]}, "without valid features"),
        ({"features": ["f" * 33]}, "without valid features"),
        ({"features": "reuse"}, "without valid features"),
        ({"nonce": "0"}, "without a valid nonce"),
        ({"nonce": "\x1b" * 64}, "without a valid nonce"),
    ],
)
def test_a_malformed_challenge_is_rejected_with_the_reason(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        client_of().receive_challenge(json.dumps({**GOOD, **change}).encode())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mode": "sideways"}, "unknown mode"),
        ({"version": None}, "without a valid version"),
        ({"service": "s" * 65}, "without a valid service"),
        ({"service": None}, "without a valid service"),
        ({"tls": 3}, "without a valid tls"),
        ({"tls": True}, "without a valid tls"),
        ({"pool_min": True}, "invalid bounds"),
        ({"visitors": 1 << 32}, "invalid bounds"),
        ({"pool_max": 0}, "invalid bounds"),
    ],
)
def test_a_malformed_hello_is_rejected_with_the_reason(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        server_of().receive_hello(json.dumps({**GOOD, **change}).encode())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"carrier": 1}, "without a valid carrier"),
        ({"carrier": "pigeon"}, "unknown carrier"),
        ({"direction": "up"}, "unknown direction"),
        ({"link": "1"}, "without a valid link"),
        ({"features": [1]}, "without valid features"),
    ],
)
def test_a_malformed_welcome_is_rejected_with_the_reason(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        client_of().receive_welcome(json.dumps({**GOOD, **change}).encode())


def test_the_largest_hello_fits_its_frame() -> None:
    client = ClientHandshake(KEY, "\U0001f600" * 64, CERTIFICATE, features=tuple(f"{n:032}" for n in range(16)))
    client.receive_challenge(server_of().challenge()[3:])
    most = (1 << 32) - 1
    frames = client.hello(
        instance="i" * 16, mode=Mode.FORWARD, tls=DataTls.VERIFIED, bounds=ConfiguredLimits(most, most, most)
    )
    (kind, hello), _ = FrameDecoder().feed(frames)
    assert encode_frame(kind, hello) == frames[: len(hello) + 3]


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b"[" * 1000, b'{"version":"\xff"}'])
def test_a_greeting_that_is_no_json_object_is_a_protocol_error(payload: bytes) -> None:
    with pytest.raises(ProtocolError, match="a greeting that is not"):
        server_of().receive_hello(payload)


def test_the_proof_is_sent_as_it_is() -> None:
    assert Proof.decode(bytes(range(32))).digest == Proof(bytes(range(32))).encode() == bytes(range(32))


@pytest.mark.parametrize("weight", [-1, 257, True, "1", None])
def test_a_greeting_with_an_invalid_weight_is_refused(weight: object) -> None:
    exchange = Exchange()
    exchange.authenticate()
    fields = json.loads(next(payload for kind, payload in exchange.frames if kind is Kind.HELLO))
    assert Hello.decode(json.dumps({**fields, "weight": 256, "backup": True}).encode()).weight == 256
    with pytest.raises(ProtocolError, match="an invalid weight"):
        Hello.decode(json.dumps({**fields, "weight": weight}).encode())
