"""Bytes in are bytes out, in every direction, shape and encryption."""

from __future__ import annotations

import hashlib
import random
import socket
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.harness import Daemon, Pair, Stage, until
from tests.integration.peers import (
    ask,
    ending,
    receive,
    receive_all,
    reset,
)
from tests.integration.strangers import Authority
from tests.ports import free_port
from tests.scale import FULL, GUARD

BULK = (1 << 30) if FULL else (64 << 20)
SHORT = 10_000 if FULL else 1_000
BLOCK = random.Random(1).randbytes(1 << 20)

WAYS = {
    "reverse": ("reverse", ""),
    "forward": ("forward", ""),
    "reverse, encrypted": ("reverse", "tls=1"),
    "forward, encrypted": ("forward", "tls=1"),
}


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Generator[dict[str, Pair]]:
    """A pair for each way, which the tests of this file share: they differ in the target's manners alone."""
    stage = Stage(tmp_path_factory.mktemp("ways"))
    try:
        pairs = {name: stage.pair(direction=direction, both=options) for name, (direction, options) in WAYS.items()}
        yield {name: pair.up(within=10) for name, pair in pairs.items()}
        stage.check()
    finally:
        stage.close()


@pytest.fixture(params=WAYS)
def pair(request: pytest.FixtureRequest, ways: dict[str, Pair]) -> Pair:
    """One of them, at rest."""
    pair = ways[request.param]
    for end in (pair.server, pair.client):
        is_idle(end)
    return pair


def blocks(size: int, seed: int) -> Iterator[bytes]:
    """``size`` bytes that no other seed gives."""
    for number in range(0, size, len(BLOCK)):
        yield (seed + number).to_bytes(8, "big") + BLOCK[8 : min(len(BLOCK), size - number)]


def sum_of(size: int, seed: int) -> str:
    """The SHA-256 of that stream."""
    digest = hashlib.sha256()
    for block in blocks(size, seed):
        digest.update(block)
    return digest.hexdigest()


def send_stream(sock: socket.socket, size: int, seed: int) -> str:
    """Send it, then a half-close; its SHA-256."""
    digest = hashlib.sha256()
    for block in blocks(size, seed):
        digest.update(block)
        sock.sendall(block)
    sock.shutdown(socket.SHUT_WR)
    return digest.hexdigest()


def receive_stream(sock: socket.socket) -> str:
    """The SHA-256 of all that comes."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(1 << 18))
    while count := sock.recv_into(buffer):
        digest.update(buffer[:count])
    return digest.hexdigest()


def both_ways(sock: socket.socket, size: int, seed: int) -> tuple[str, str]:
    """Send and receive a stream at once; the SHA-256 of each."""
    with ThreadPoolExecutor(1) as threads:
        sending = threads.submit(send_stream, sock, size, seed)
        received = receive_stream(sock)
        return sending.result(), received


def is_idle(end: Daemon, *, within: float = 5.0) -> None:
    until(lambda: end.tunnel()["connections"]["active"] == 0, within=within, what=f"all relays of {end.name} are over")


def test_bulk_both_ways_at_once_arrives_unchanged(pair: Pair) -> None:
    seen: list[tuple[str, str]] = []
    pair.target.serve = lambda sock: seen.append(both_ways(sock, BULK, 2))
    before = {end: end.tunnel()["bytes"] for end in (pair.server, pair.client)}
    with pair.connect() as visitor:
        visitor_sent, visitor_received = both_ways(visitor, BULK, 1)
    until(lambda: seen, within=5, what="the target is done")
    target_sent, target_received = seen[0]
    assert target_received == visitor_sent
    assert visitor_received == target_sent
    for end in (pair.server, pair.client):
        is_idle(end)
        after = end.tunnel()["bytes"]
        assert {way: after[way] - count for way, count in before[end].items()} == {"in": BULK, "out": BULK}


def test_no_byte_is_lost_when_the_end_follows_the_last_byte_at_once(pair: Pair) -> None:
    arrived: dict[bytes, bytes] = {}

    def collect(sock: socket.socket) -> None:
        everything = receive_all(sock)
        arrived[everything[:8]] = hashlib.sha256(everything).digest()

    pair.target.serve = collect
    sizes = random.Random(3)
    payloads = [n.to_bytes(8, "big") + BLOCK[: sizes.choice([0, 1, 500, 20_000])] for n in range(SHORT)]

    def visit(payload: bytes) -> None:
        with pair.connect() as sock:
            sock.sendall(payload)

    with ThreadPoolExecutor(32) as threads:
        list(threads.map(visit, payloads))
    until(lambda: len(arrived) >= SHORT, within=20, what=f"all {SHORT} arrive")
    assert arrived == {payload[:8]: hashlib.sha256(payload).digest() for payload in payloads}
    assert pair.server.tunnel()["connections"]["failed"] == 0


def test_no_byte_is_lost_when_the_target_ends_after_its_last_byte(pair: Pair) -> None:
    def answer(sock: socket.socket) -> None:
        size = int.from_bytes(receive(sock, 4), "big")
        sock.sendall(BLOCK[:size])

    pair.target.serve = answer
    sizes = [random.Random(n).choice([0, 1, 500, 20_000, 300_000]) for n in range(SHORT)]

    def visit(size: int) -> bool:
        with pair.connect() as sock:
            sock.sendall(size.to_bytes(4, "big"))
            return receive_all(sock) == BLOCK[:size]

    with ThreadPoolExecutor(32) as threads:
        assert all(threads.map(visit, sizes))


def test_the_full_reply_arrives_after_the_visitors_half_close(pair: Pair) -> None:
    def reply(sock: socket.socket) -> None:
        request = receive_all(sock)
        sock.sendall(hashlib.sha256(request).digest() + BLOCK[: len(request) * 3])

    pair.target.serve = reply
    for size in random.Random(4).sample(range(200_000), 30):
        request = BLOCK[:size]
        assert pair.exchange(request) == hashlib.sha256(request).digest() + BLOCK[: size * 3]


def test_the_full_request_arrives_after_the_targets_half_close(pair: Pair) -> None:
    arrived: list[bytes] = []

    def speak_first(sock: socket.socket) -> None:
        sock.sendall(b"220 ready\r\n")
        sock.shutdown(socket.SHUT_WR)
        arrived.append(receive_all(sock))

    pair.target.serve = speak_first
    for size in random.Random(5).sample(range(400_000), 30):
        with pair.connect() as visitor:
            assert receive_all(visitor) == b"220 ready\r\n"
            visitor.sendall(BLOCK[:size])
            visitor.shutdown(socket.SHUT_WR)
            until(lambda: arrived, within=5, what="the target heard the end")
        assert arrived.pop() == BLOCK[:size]


def test_a_reset_of_the_visitor_is_a_reset_at_the_target(pair: Pair) -> None:
    endings: list[str] = []

    def serve(sock: socket.socket) -> None:
        sock.sendall(receive(sock, 4))
        endings.append(ending(sock))

    pair.target.serve = serve
    visitor = pair.connect()
    assert ask(visitor, b"here") == b"here"
    reset(visitor)
    until(lambda: endings, within=2, what="the target notices")
    assert endings == ["reset"]


def test_a_reset_of_the_target_is_a_reset_at_the_visitor(pair: Pair) -> None:
    def serve(sock: socket.socket) -> None:
        sock.sendall(receive(sock, 4))
        receive(sock, 1)
        reset(sock)

    pair.target.serve = serve
    with pair.connect() as visitor:
        assert ask(visitor, b"here") == b"here"
        visitor.sendall(b"!")
        assert ending(visitor) == "reset"


def test_a_plain_end_is_no_reset(pair: Pair) -> None:
    endings: list[str] = []
    pair.target.serve = lambda sock: endings.append(ending(sock))
    with pair.connect() as visitor:
        visitor.shutdown(socket.SHUT_WR)
        assert ending(visitor) == "end"
    until(lambda: endings, within=2, what="the target notices")
    assert endings == ["end"]


@pytest.mark.parametrize("reader", ["visitor", "target"])
def test_a_stalled_reader_costs_no_memory_and_the_stream_resumes(pair: Pair, reader: str) -> None:
    size = 256 << 20
    go = threading.Event()
    sums: dict[str, str] = {}
    progress = [0]

    def pour(sock: socket.socket) -> None:
        digest = hashlib.sha256()
        for number in range(size >> 20):
            block = number.to_bytes(8, "big") + BLOCK[8:]
            digest.update(block)
            sock.sendall(block)
            progress[0] = number
        sock.shutdown(socket.SHUT_WR)
        sums["sent"] = digest.hexdigest()
        receive_all(sock)

    def stall(sock: socket.socket) -> None:
        go.wait(2 * GUARD)
        sums["received"] = receive_stream(sock)

    def stands_still() -> bool:
        before = progress[0]
        time.sleep(0.5)  # the observation itself: nothing moves for half a second
        return progress[0] == before

    pair.target.serve = stall if reader == "target" else pour
    before = {end: end.rss() for end in (pair.server, pair.client)}
    with pair.connect() as visitor:
        visitor.settimeout(2 * GUARD)
        thread = threading.Thread(target=pour if reader == "target" else stall, args=(visitor,), daemon=True)
        thread.start()
        until(stands_still, within=20, what="the writer is held back")
        growth = {end.name: (end.rss() - rss) >> 20 for end, rss in before.items()}
        assert max(growth.values()) < 8, f"MiB more than before: {growth}"
        go.set()
        until(lambda: len(sums) == 2, within=2 * GUARD, what="the stream resumes")
        thread.join(GUARD)
    assert sums["received"] == sums["sent"]


def test_many_visitors_at_once_and_a_server_that_speaks_first(pair: Pair) -> None:
    def greet(sock: socket.socket) -> None:
        sock.sendall(b"220 mail ready\r\n")
        while line := receive(sock, 8):
            sock.sendall(line)

    pair.target.serve = greet
    before = {end: end.tunnel()["connections"]["total"] for end in (pair.server, pair.client)}
    visitors: list[socket.socket] = []
    try:
        visitors.extend(pair.connect() for _ in range(300))
        for visitor in visitors:
            assert receive(visitor, 16) == b"220 mail ready\r\n"
        for number, visitor in enumerate(visitors):
            assert ask(visitor, number.to_bytes(8, "big")) == number.to_bytes(8, "big")
        for end in (pair.server, pair.client):
            assert end.tunnel()["connections"]["active"] == 300
    finally:
        for visitor in visitors:
            visitor.close()
    for end in (pair.server, pair.client):
        is_idle(end)
        assert end.tunnel()["connections"]["total"] - before[end] == 300


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_ipv6_loopback(stage: Stage, direction: str) -> None:
    pair = stage.pair(direction=direction, host="::1", key="abcdefgh").up()
    assert pair.exchange(b"six") == b"six"
    assert pair.server.tunnel()["tunnel_addr"] == f"[::1]:{pair.tunnel_port}"


@pytest.mark.parametrize("direction", ["reverse", "forward"])
@pytest.mark.parametrize("data_port", ["tunnel", "fixed"])
@pytest.mark.parametrize("tls", ["0", "1"])
def test_data_connections_go_where_the_option_says(stage: Stage, direction: str, data_port: str, tls: str) -> None:
    fixed = free_port()
    option = f"data_port={fixed if data_port == 'fixed' else data_port}&tls={tls}"
    pair = stage.pair(direction=direction, server=option, client=f"tls={tls}", key="abcdefgh").up()
    assert pair.exchange(b"hello") == b"hello"
    expected = f"127.0.0.1:{fixed if data_port == 'fixed' else pair.tunnel_port}"
    assert pair.server.tunnel()["data_addr"] in {expected, None}


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_verified_certificates(stage: Stage, direction: str) -> None:
    authority = Authority(stage.directory)
    certificate, key = authority.issue("server")
    pair = stage.pair(
        direction=direction,
        key="abcdefgh",
        server=f"tls=2&tls_cert={certificate}&tls_key={key}",
        client=f"tls=2&tls_ca={authority.file}",
    ).up()
    assert pair.exchange(b"verified") == b"verified"
    assert pair.client.tunnel()["data_tls"] == 2


def test_a_certificate_of_another_authority_is_refused_with_the_reason(stage: Stage) -> None:
    certificate, key = Authority(stage.directory).issue("server")
    other = Authority(stage.directory, "other")
    pair = stage.pair(server=f"tls=2&tls_cert={certificate}&tls_key={key}", client=f"tls=2&tls_ca={other.file}")
    pair.client.says("certificate")
    assert pair.client.tunnel()["state"] in {"cooldown", "connecting", "failed"}
    assert "certificate" in (pair.client.is_in("cooldown")["reason"] or "")


def test_on_loopback_data_takes_the_announced_port(stage: Stage) -> None:
    """The tunnel port beside it is for those who cannot reach the announced one: it costs a quarter of a second.

    Which may pass on a machine that stands still; hardly each time.
    """
    pairs = (stage.pair().up() for _ in range(1 if FULL else 3))
    assert any(pair.exchange(b"x") == b"x" and "using the tunnel port" not in pair.client.said() for pair in pairs)


def test_both_ends_show_the_same_link_and_what_they_are(stage: Stage) -> None:
    pair = stage.pair(key="abcdefgh", both="tls=1").up()
    server, client = pair.server.tunnel(), pair.client.tunnel()
    assert server["link"] == client["link"]
    assert (server["role"], client["role"]) == ("server", "client")
    assert server["direction"] == client["direction"] == "reverse"
    assert server["auth"] == client["auth"] == "key"
    assert server["data_tls"] == client["data_tls"] == 1
    assert server["peer"].startswith("127.0.0.1:")
    assert client["peer"] == f"127.0.0.1:{pair.tunnel_port}"
    assert server["pool"]["idle"] >= 1
    until(lambda: pair.server.tunnel()["rtt_ms"] is not None, within=7, what="a round trip is known")
