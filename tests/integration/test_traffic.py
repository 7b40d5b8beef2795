"""Streams arrive unchanged in every direction, shape and encryption."""

from __future__ import annotations

import hashlib
import random
import socket
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.interception import CertificateAuthority
from tests.support.peers import (
    read_stream_end,
    receive_all,
    receive_exactly,
    round_trip,
)
from tests.support.ports import free_port
from tests.support.processes import Daemon, Pair, ProcessHarness, running_harness
from tests.support.scale import GUARD_S, IS_FULL_SCALE
from tests.support.sockets import close_with_reset
from tests.support.waiting import wait_until

BULK_BYTES = (1 << 30) if IS_FULL_SCALE else (64 << 20)
SHORT_VISITORS = 10_000 if IS_FULL_SCALE else 1_000
BLOCK = random.Random(1).randbytes(1 << 20)

WAYS = {
    "reverse": ("reverse", "tls=0"),
    "forward": ("forward", "tls=0"),
    "reverse, encrypted": ("reverse", ""),
    "forward, encrypted": ("forward", ""),
    "reverse, reused": ("reverse", "tls=0&reuse=1"),
    "forward, encrypted, reused": ("forward", "reuse=1"),
}


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Generator[dict[str, Pair]]:
    """Start one pair for each way; the tests share the pairs and set only what the target does."""
    with running_harness(tmp_path_factory.mktemp("ways")) as harness:
        pairs = {
            name: harness.start_pair(direction=direction, both=options) for name, (direction, options) in WAYS.items()
        }
        yield {name: pair.wait_up(within=10) for name, pair in pairs.items()}


@pytest.fixture(params=WAYS)
def pair(request: pytest.FixtureRequest, ways: dict[str, Pair]) -> Pair:
    """Return one of the pairs without visitors."""
    pair = ways[request.param]
    for end in (pair.server, pair.client):
        wait_idle(end)
    return pair


def blocks(size: int, seed: int) -> Iterator[bytes]:
    """Yield ``size`` bytes that differ for each seed."""
    for number in range(0, size, len(BLOCK)):
        yield (seed + number).to_bytes(8, "big") + BLOCK[8 : min(len(BLOCK), size - number)]


def stream_digest(size: int, seed: int) -> str:
    """Return the SHA-256 of the stream that ``blocks`` yields."""
    digest = hashlib.sha256()
    for block in blocks(size, seed):
        digest.update(block)
    return digest.hexdigest()


def send_stream(sock: socket.socket, size: int, seed: int) -> str:
    """Send the stream and a half-close; return its SHA-256."""
    digest = hashlib.sha256()
    for block in blocks(size, seed):
        digest.update(block)
        sock.sendall(block)
    sock.shutdown(socket.SHUT_WR)
    return digest.hexdigest()


def receive_stream(sock: socket.socket) -> str:
    """Receive to the end of the stream; return its SHA-256."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(1 << 18))
    while count := sock.recv_into(buffer):
        digest.update(buffer[:count])
    return digest.hexdigest()


def send_and_receive_streams(sock: socket.socket, size: int, seed: int) -> tuple[str, str]:
    """Send and receive a stream at the same time; return the SHA-256 of both."""
    with ThreadPoolExecutor(1) as threads:
        sending = threads.submit(send_stream, sock, size, seed)
        received = receive_stream(sock)
        return sending.result(), received


def wait_idle(end: Daemon, *, within: float = 5.0) -> None:
    wait_until(lambda: end.tunnel()["connections"]["active"] == 0, within=within, what=f"{end.name} has no relay")


def test_bulk_both_ways_at_once_arrives_unchanged(pair: Pair) -> None:
    seen: list[tuple[str, str]] = []
    pair.target.serve = lambda sock: seen.append(send_and_receive_streams(sock, BULK_BYTES, 2))
    before = {end: end.tunnel()["bytes"] for end in (pair.server, pair.client)}
    with pair.connect() as visitor:
        visitor_sent, visitor_received = send_and_receive_streams(visitor, BULK_BYTES, 1)
    wait_until(lambda: seen, within=5, what="the target has finished")
    target_sent, target_received = seen[0]
    assert target_received == visitor_sent
    assert visitor_received == target_sent
    for end in (pair.server, pair.client):
        wait_idle(end)
        after = end.tunnel()["bytes"]
        assert {way: after[way] - count for way, count in before[end].items()} == {"in": BULK_BYTES, "out": BULK_BYTES}


def test_no_byte_is_lost_when_the_visitor_closes_after_its_last_byte(pair: Pair) -> None:
    arrived: dict[bytes, bytes] = {}
    # A visitor that waits longer than 5 s for a data connection is disconnected by design. These visitors close at
    # once, so without a limit a thousand of them would queue for as many dials.
    in_flight = threading.Semaphore(32)

    def collect(sock: socket.socket) -> None:
        everything = receive_all(sock)
        arrived[everything[:8]] = hashlib.sha256(everything).digest()
        in_flight.release()

    pair.target.serve = collect
    sizes = random.Random(3)
    payloads = [n.to_bytes(8, "big") + BLOCK[: sizes.choice([0, 1, 500, 20_000])] for n in range(SHORT_VISITORS)]

    for payload in payloads:
        assert in_flight.acquire(timeout=GUARD_S), "an earlier visitor did not arrive"
        with pair.connect() as sock:
            sock.sendall(payload)
    wait_until(lambda: len(arrived) >= SHORT_VISITORS, within=20, what=f"all {SHORT_VISITORS} arrive")
    assert arrived == {payload[:8]: hashlib.sha256(payload).digest() for payload in payloads}
    assert pair.server.tunnel()["connections"]["failed"] == 0


def test_no_byte_is_lost_when_the_target_closes_after_its_last_byte(pair: Pair) -> None:
    def answer(sock: socket.socket) -> None:
        size = int.from_bytes(receive_exactly(sock, 4), "big")
        sock.sendall(BLOCK[:size])

    pair.target.serve = answer
    sizes = [random.Random(n).choice([0, 1, 500, 20_000, 300_000]) for n in range(SHORT_VISITORS)]

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

    def send_first(sock: socket.socket) -> None:
        sock.sendall(b"220 ready\r\n")
        sock.shutdown(socket.SHUT_WR)
        arrived.append(receive_all(sock))

    pair.target.serve = send_first
    for size in random.Random(5).sample(range(400_000), 30):
        with pair.connect() as visitor:
            assert receive_all(visitor) == b"220 ready\r\n"
            visitor.sendall(BLOCK[:size])
            visitor.shutdown(socket.SHUT_WR)
            wait_until(lambda: arrived, within=5, what="the target has received the end of the stream")
        assert arrived.pop() == BLOCK[:size]


def test_a_reset_by_the_visitor_reaches_the_target(pair: Pair) -> None:
    endings: list[str] = []

    def serve(sock: socket.socket) -> None:
        sock.sendall(receive_exactly(sock, 4))
        endings.append(read_stream_end(sock))

    pair.target.serve = serve
    visitor = pair.connect()
    assert round_trip(visitor, b"here") == b"here"
    close_with_reset(visitor)
    wait_until(lambda: endings, within=2, what="the target sees the end")
    assert endings == ["reset"]


def test_a_reset_by_the_target_reaches_the_visitor(pair: Pair) -> None:
    def serve(sock: socket.socket) -> None:
        sock.sendall(receive_exactly(sock, 4))
        receive_exactly(sock, 1)
        close_with_reset(sock)

    pair.target.serve = serve
    with pair.connect() as visitor:
        assert round_trip(visitor, b"here") == b"here"
        visitor.sendall(b"!")
        assert read_stream_end(visitor) == "reset"


def test_an_end_of_stream_does_not_become_a_reset(pair: Pair) -> None:
    endings: list[str] = []
    pair.target.serve = lambda sock: endings.append(read_stream_end(sock))
    with pair.connect() as visitor:
        visitor.shutdown(socket.SHUT_WR)
        assert read_stream_end(visitor) == "end"
    wait_until(lambda: endings, within=2, what="the target sees the end")
    assert endings == ["end"]


@pytest.mark.parametrize("reader", ["visitor", "target"])
def test_a_stalled_reader_costs_no_memory_and_the_stream_resumes(pair: Pair, reader: str) -> None:
    size = 256 << 20
    resume = threading.Event()
    sums: dict[str, str] = {}
    progress = [0]

    def send(sock: socket.socket) -> None:
        digest = hashlib.sha256()
        for number in range(size >> 20):
            block = number.to_bytes(8, "big") + BLOCK[8:]
            digest.update(block)
            sock.sendall(block)
            progress[0] = number
        sock.shutdown(socket.SHUT_WR)
        sums["sent"] = digest.hexdigest()
        receive_all(sock)

    def receive_later(sock: socket.socket) -> None:
        resume.wait(2 * GUARD_S)
        sums["received"] = receive_stream(sock)

    def has_stopped() -> bool:
        before = progress[0]
        time.sleep(0.5)  # the observation: no progress for half a second
        return progress[0] == before

    pair.target.serve = receive_later if reader == "target" else send
    before = {end: end.rss() for end in (pair.server, pair.client)}
    with pair.connect() as visitor:
        visitor.settimeout(2 * GUARD_S)
        thread = threading.Thread(target=send if reader == "target" else receive_later, args=(visitor,), daemon=True)
        thread.start()
        wait_until(has_stopped, within=20, what="the sender is blocked")
        growth = {end.name: (end.rss() - rss) >> 20 for end, rss in before.items()}
        assert max(growth.values()) < 8, f"MiB more than before: {growth}"
        resume.set()
        wait_until(lambda: len(sums) == 2, within=2 * GUARD_S, what="the stream resumes")
        thread.join(GUARD_S)
    assert sums["received"] == sums["sent"]


def test_many_visitors_at_once_are_served_by_a_target_that_sends_first(pair: Pair) -> None:
    def greet(sock: socket.socket) -> None:
        sock.sendall(b"220 mail ready\r\n")
        while line := receive_exactly(sock, 8):
            sock.sendall(line)

    pair.target.serve = greet
    before = {end: end.tunnel()["connections"]["total"] for end in (pair.server, pair.client)}
    visitors: list[socket.socket] = []
    try:
        visitors.extend(pair.connect() for _ in range(300))
        for visitor in visitors:
            assert receive_exactly(visitor, 16) == b"220 mail ready\r\n"
        for number, visitor in enumerate(visitors):
            assert round_trip(visitor, number.to_bytes(8, "big")) == number.to_bytes(8, "big")
        for end in (pair.server, pair.client):
            assert end.tunnel()["connections"]["active"] == 300
    finally:
        for visitor in visitors:
            visitor.close()
    for end in (pair.server, pair.client):
        wait_idle(end)
        assert end.tunnel()["connections"]["total"] - before[end] == 300


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_a_tunnel_on_ipv6_loopback_serves_visitors(harness: ProcessHarness, direction: str) -> None:
    pair = harness.start_pair(direction=direction, host="::1", key="abcdefgh").wait_up()
    assert pair.exchange(b"six") == b"six"
    assert pair.server.tunnel()["tunnel_addr"] == f"[::1]:{pair.tunnel_port}"


@pytest.mark.parametrize("direction", ["reverse", "forward"])
@pytest.mark.parametrize("data_port", ["tunnel", "fixed"])
@pytest.mark.parametrize("tls", ["0", "1"])
def test_data_connections_use_the_port_of_the_data_port_option(
    harness: ProcessHarness, direction: str, data_port: str, tls: str
) -> None:
    fixed = free_port()
    option = f"data_port={fixed if data_port == 'fixed' else data_port}&tls={tls}"
    pair = harness.start_pair(direction=direction, server=option, client=f"tls={tls}", key="abcdefgh").wait_up()
    assert pair.exchange(b"hello") == b"hello"
    expected = f"127.0.0.1:{fixed if data_port == 'fixed' else pair.tunnel_port}"
    assert pair.server.tunnel()["data_addr"] in {expected, None}


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_tls_2_serves_with_a_certificate_of_the_given_authority(harness: ProcessHarness, direction: str) -> None:
    authority = CertificateAuthority(harness.directory)
    certificate, key = authority.issue("server")
    pair = harness.start_pair(
        direction=direction,
        key="abcdefgh",
        server=f"tls=2&tls_cert={certificate}&tls_key={key}",
        client=f"tls=2&tls_ca={authority.file}",
    ).wait_up()
    assert pair.exchange(b"verified") == b"verified"
    assert pair.client.tunnel()["data_tls"] == 2


def test_a_certificate_of_another_authority_is_refused_with_the_reason(harness: ProcessHarness) -> None:
    certificate, key = CertificateAuthority(harness.directory).issue("server")
    other = CertificateAuthority(harness.directory, "other")
    pair = harness.start_pair(server=f"tls=2&tls_cert={certificate}&tls_key={key}", client=f"tls=2&tls_ca={other.file}")
    pair.client.wait_for_log("certificate")
    assert pair.client.tunnel()["state"] in {"cooldown", "connecting", "failed"}
    assert "certificate" in (pair.client.wait_state("cooldown")["reason"] or "")


def test_data_connections_on_loopback_use_the_announced_port(harness: ProcessHarness) -> None:
    """The tunnel port is the fallback if the announced data port does not answer within a quarter of a second.

    A machine that stalls may exceed that once, but hardly each time.
    """
    pairs = (harness.start_pair().wait_up() for _ in range(1 if IS_FULL_SCALE else 3))
    assert any(pair.exchange(b"x") == b"x" and "using the tunnel port" not in pair.client.log_text() for pair in pairs)


def test_both_ends_show_the_same_link_and_their_own_role(harness: ProcessHarness) -> None:
    pair = harness.start_pair(key="abcdefgh").wait_up()
    server, client = pair.server.tunnel(), pair.client.tunnel()
    assert server["link"] == client["link"]
    assert (server["role"], client["role"]) == ("server", "client")
    assert server["direction"] == client["direction"] == "reverse"
    assert server["auth"] == client["auth"] == "key"
    assert server["data_tls"] == client["data_tls"] == 1
    assert server["peer"].startswith("127.0.0.1:")
    assert client["peer"] == f"127.0.0.1:{pair.tunnel_port}"
    assert server["pool"]["idle"] >= 1
    wait_until(lambda: pair.server.tunnel()["rtt_ms"] is not None, within=7, what="the round-trip time is known")
