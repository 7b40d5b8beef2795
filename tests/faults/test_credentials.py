"""Credentials replayed, forged and used twice; bytes that make no sense, from strangers and from those with the key."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
from pathlib import Path

import pytest

from tests.faults.conftest import Figure
from tests.faults.impostors import HostileClient, HostileServer
from tests.integration import test_strangers as strangers
from tests.integration.harness import Daemon, Stage, until
from tests.integration.peers import Address, Target, connect, first_byte, reset
from tests.integration.strangers import Authority, Middle, Passage
from tests.integration.test_strangers import KEY, refused
from tests.ports import free_port
from tests.scale import FULL
from tunnel.protocol import frames
from tunnel.protocol.frames import LIMITS, Kind

PROMISE = 2.0
ROUNDS = 150 if FULL else 10
"""Links that are spoiled."""


class Fortress:
    """A server with a key, its target, and whoever attacks it. ``client`` lets a rightful client in."""

    def __init__(self, stage: Stage, *, options: str = "", direction: str = "forward") -> None:
        self.stage = stage
        self.target: Target = stage.target()
        self.port, self.data_port, self.visitor_port = free_port(), free_port(), free_port()
        inner = self.target.port if direction == "forward" else self.visitor_port
        url = f"server://{KEY}@127.0.0.1:{self.port}/127.0.0.1:{inner}?mode={direction}&data_port={self.data_port}"
        self.server: Daemon = stage.up({"t": "&".join(filter(None, [url, options]))}, name="server")
        self.server.is_in("waiting")
        self.outer = self.visitor_port if direction == "forward" else self.target.port
        self.certificates: tuple[Path, Path] = Authority(stage.directory).issue("impostor")

    @property
    def doors(self) -> tuple[Address, Address]:
        """Where data connections are let in."""
        return ("127.0.0.1", self.data_port), ("127.0.0.1", self.port)

    def impostor(self, *, data_tls: bool = False) -> HostileClient:
        """One who knows the key. Of those before nobody is left."""
        until(lambda: self.server.tunnel()["link"] is None, within=5, what="the last impostor is gone")
        return HostileClient(("127.0.0.1", self.port), KEY, self.certificates, data_tls=data_tls)

    def still_serves(self) -> float:
        """Seconds from the start of a rightful client to its first visitor's echo; the server is the one of before."""
        assert self.server.tunnel()["restarts"] == 0
        client = self.stage.up({"t": f"client://{KEY}@127.0.0.1:{self.port}/127.0.0.1:{self.outer}"}, name="client")
        client.is_in("up")
        return first_byte(("127.0.0.1", self.visitor_port), within=PROMISE)


def let_in(door: Address, words: bytes) -> bool:
    """Whether a connection that begins with these words is kept: silence is all that a pooled one gets."""
    with connect(door) as sock:
        sock.sendall(words)
        try:
            return bool(sock.recv(1))
        except TimeoutError:
            return True
        except OSError:
            return False


@pytest.mark.slow
@pytest.mark.case("a handshake replayed, in clear and as ciphertext", deadline=60)
def test_replayed_handshake(stage: Stage, figure: Figure) -> None:
    """Without a fresh nonce in CHALLENGE (``secrets.token_hex`` replaced by zeros) what was overheard makes a link."""
    strangers.test_a_replayed_handshake_is_refused(stage)
    strangers.test_replayed_ciphertext_is_refused(stage)
    figure("both refused and counted, the link untouched")


@pytest.mark.case("prefaces used twice, forged, and of an earlier link", deadline=60)
@pytest.mark.parametrize("data_tls", [False, True], ids=["plain", "encrypted"])
def test_prefaces(stage: Stage, figure: Figure, data_tls: bool) -> None:  # noqa: FBT001  a parameter of the case
    """On both ports; nothing is dialled for any of them.

    Twice: without ``Once`` (``accept`` always true) it is let in again. Forged: without the MAC (``decode_preface``
    does not compare) all but the changed magic are let in. Earlier: with a link's secret that is the key's alone
    (``_Transcript.proof`` leaves the digest out) it is let in.
    """
    fortress = Fortress(stage, options=f"tls={int(data_tls)}")
    first = fortress.impostor(data_tls=data_tls)
    genuine = [frames.encode_preface(first.secret, ident) for ident in (1, 2)]
    kept = [connect(door) for door in fortress.doors]
    for sock, preface in zip(kept, genuine, strict=True):
        sock.sendall(preface)
    if not data_tls:  # else they are pooled after TLS alone; their ids are used all the same
        until(lambda: fortress.server.tunnel()["pool"]["idle"] == 2, within=5, what="both are pooled")
    else:
        assert not any(map(is_closed_soon, kept))
    tried = 0
    for door in fortress.doors:
        for preface in genuine:
            assert not let_in(door, preface)
            tried += 1
        for place in range(frames.PREFACE_SIZE):
            forged = bytearray(frames.encode_preface(first.secret, 3 + place))
            forged[place] ^= 1 << random.Random(place).randrange(8)
            assert not let_in(door, bytes(forged)), f"byte {place} does not matter"
            tried += 1
    first.close()
    second = fortress.impostor(data_tls=data_tls)
    for door in fortress.doors:
        assert not let_in(door, frames.encode_preface(first.secret, 1000))
        tried += 1
    assert refused(fortress.server, "prefaces") == tried
    second.close()
    for sock in kept:
        sock.close()
    assert fortress.target.accepted == 0
    fortress.still_serves()
    figure(f"{tried} of {tried} refused and counted")


def is_closed_soon(sock: socket.socket) -> bool:
    """Whether the other end has closed it."""
    sock.settimeout(0.2)
    try:
        return sock.recv(1) == b""
    except TimeoutError:
        return False


def junk(chance: random.Random) -> bytes:
    """Frames with a kind and a length that may be, or not, and anything in them."""
    kind = chance.choice(list(Kind))
    match chance.randrange(6):
        case 0:
            return chance.randbytes(chance.randrange(1, 4000))
        case 1:
            return struct.pack("!BH", kind, chance.randrange(1 << 16)) + chance.randbytes(chance.randrange(200))
        case 2:
            return struct.pack("!BH", chance.randrange(256), 8) + chance.randbytes(8)
        case 3:
            numbers = [chance.choice([0, 1, 2, 7, 1 << 32, (1 << 64) - 1]) for _ in range(chance.randrange(40))]
            return frames.encode(kind, struct.pack(f"!{len(numbers)}Q", *numbers)[: LIMITS[kind]])
        case 4:
            return frames.encode(kind, chance.randbytes(chance.randrange(LIMITS[kind] + 1)))
        case _:
            return b"".join(frames.encode_ids(Kind.LAUNCH, range(n, n + 500)) for n in range(0, 5000, 500))


def spoil(sock: socket.socket, chance: random.Random) -> None:
    """Say junk until the other end has had enough, or for a while."""
    sock.settimeout(0.3)
    with contextlib.suppress(OSError):
        for _ in range(chance.randrange(1, 12)):
            sock.sendall(junk(chance))
        while sock.recv(1 << 16):
            pass


@pytest.mark.case("control bytes fuzzed by a client with the key", deadline=300)
@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_fuzzed_server(stage: Stage, figure: Figure, direction: str) -> None:
    """Each link ends with its junk, the engine goes on as it was, a rightful client is served.

    Without the limit of a frame (``Decoder.feed`` passes any kind) the engine crashes and is started anew.
    """
    fortress = Fortress(stage, direction=direction)
    chance = random.Random(11)
    for _ in range(ROUNDS):
        impostor = fortress.impostor()
        spoil(impostor.sock, chance)
        impostor.close()
    until(lambda: fortress.server.tunnel()["link"] is None, within=5, what="the last impostor is gone")
    took = fortress.still_serves()
    figure(f"{ROUNDS} links spoiled, then served after {took:.2f} s")


@pytest.mark.case("control bytes fuzzed by a server with the key", deadline=300)
def test_fuzzed_client(stage: Stage, figure: Figure) -> None:
    """The client gives each such link up, says why, and tries again; its process and its engine live on.

    Without the limit of a frame (``Decoder.feed`` passes any kind) the engine crashes and is started anew.
    """
    chance = random.Random(12)
    certificates = Authority(stage.directory).issue("impostor")
    hostile = stage.keep(HostileServer(KEY, certificates, lambda sock: spoil(sock, chance)))
    client = stage.up({"t": f"client://{KEY}@127.0.0.1:{hostile.port}/127.0.0.1:1?client_cooldown=50ms"})
    until(lambda: hostile.links >= ROUNDS, within=250, what="the client tries again and again")
    assert client.tunnel()["restarts"] == 0
    assert client.tunnel()["last_error"]
    figure(f"{hostile.links} links spoiled, no restart")


@pytest.mark.case("data bytes fuzzed, with and without a genuine preface", deadline=120)
@pytest.mark.parametrize("data_tls", [False, True], ids=["plain", "encrypted"])
def test_fuzzed_data(stage: Stage, figure: Figure, data_tls: bool) -> None:  # noqa: FBT001  a parameter of the case
    """Garbage, a preface cut off or in pieces, one with garbage or a reset behind it: closed, nothing dialled.

    Without the check of what stirs an idle connection (``Pool.stirred`` does nothing) those with garbage behind a
    genuine preface stay in the pool of an entrance; with TLS, without the error caught in ``Newcomer.read``, the engine
    crashes and is started anew.
    """
    fortress = Fortress(stage, options=f"tls={int(data_tls)}", direction="reverse")
    impostor = fortress.impostor(data_tls=data_tls)
    chance = random.Random(13)
    for number in range(1, ROUNDS * 2):
        preface = frames.encode_preface(impostor.secret, number)
        for door in fortress.doors:
            with contextlib.suppress(OSError):
                sock = connect(door)
                match number % 5:
                    case 0:
                        sock.sendall(chance.randbytes(chance.randrange(1, 5000)))
                    case 1:
                        sock.sendall(preface[: chance.randrange(1, 32)])
                    case 2:
                        for place in range(32):
                            sock.sendall(preface[place : place + 1])
                    case 3:
                        sock.sendall(preface + chance.randbytes(chance.randrange(1, 5000)))
                    case _:
                        sock.sendall(preface)
                reset(sock) if chance.random() < 0.5 else sock.close()
    until(lambda: fortress.server.tunnel()["pool"]["idle"] == 0, within=5, what="none of them stays in the pool")
    impostor.close()
    until(lambda: fortress.server.tunnel()["link"] is None, within=5, what="the impostor is gone")
    took = fortress.still_serves()
    figure(f"{ROUNDS * 4} connections, then served after {took:.2f} s")


@pytest.mark.case("flipped bits on the way", deadline=240)
def test_flipped_bits(stage: Stage, figure: Figure) -> None:
    """In the control channel and in encrypted data connections: an end to both, but never another byte for a visitor.

    Without TLS on data connections (``tls=0``) wrong bytes arrive.
    """
    middles: list[Middle] = []

    def through(port: int) -> int:
        middles.append(stage.keep(Middle(("127.0.0.1", port))))
        return middles[0].port

    pair = stage.pair(key=KEY, both="tls=1&report_interval=300ms", server="data_port=tunnel", through=through)
    pair.up(within=10)
    chance = random.Random(14)
    wrong, whole, cut = 0, 0, 0
    flipping = threading.Event()

    def flip(passage: Passage, data: bytes) -> list[bytes]:
        if not flipping.is_set() or chance.random() > (0.02 if passage.encrypted else 0.1):
            return [data]
        place = chance.randrange(len(data))
        return [data[:place], bytes([data[place] ^ 1 << chance.randrange(8)]), data[place + 1 :]]

    middles[0].mangle = flip
    flipping.set()
    number = 0
    while number < 2 * ROUNDS or not (cut and whole):  # chance decides; the deadline bounds it
        number += 1
        payload = random.Random(number).randbytes(1 + number * 997 % 20_000)
        got = b""
        with contextlib.suppress(OSError), pair.connect(timeout=1 if FULL else 5) as visitor:
            visitor.sendall(payload)
            visitor.shutdown(socket.SHUT_WR)
            while part := visitor.recv(1 << 16):
                got += part
        wrong += not payload.startswith(got)
        whole += got == payload
        cut += got != payload
    flipping.clear()
    assert not wrong
    back = pair.first_byte(within=10 + PROMISE)  # a length that was changed in a handshake is waited for
    for end in (pair.server, pair.client):
        assert end.tunnel()["restarts"] == 0
    figure(f"{cut} cut, {whole} whole, none wrong; served {back:.2f} s after")


@pytest.mark.slow
@pytest.mark.case("wrong key, no key, a man in the middle", deadline=60)
def test_strangers_with_keys(stage: Stage, figure: Figure) -> None:
    """Without the proof (``_Transcript.check`` always true) each of them has a link."""
    for server_user, user in ((f"{KEY}@", "wrong-Zq7Wm2Rk9@"), (f"{KEY}@", ""), ("", f"{KEY}@")):
        strangers.test_a_client_without_the_key_is_refused(stage, server_user, user)
    strangers.test_a_man_in_the_middle_with_his_own_certificate_is_refused_by_both(stage)
    figure("all refused and counted, nothing dialled")
