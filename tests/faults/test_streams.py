"""Bytes in are bytes out, between hosts, whatever the two ends of a stream do with it.

What ``tests/integration/test_traffic.py`` asks of tunnels on loopback is asked here of hosts, at full size alone.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.faults.conftest import Figure
from tests.faults.hosts import DIRECTIONS, KEY, FarPair, Hosts
from tests.integration import test_traffic as traffic
from tests.integration.harness import Stage, until
from tests.integration.peers import receive, receive_all, reset
from tests.integration.strangers import Middle, Passage
from tests.scale import FULL, allowed

STALL = 120.0 if FULL else 3.0
BURST = 2000 if FULL else 400
SLICED = 20_000 if FULL else 2_000

WAYS = {
    "reverse": ("reverse", ""),
    "forward": ("forward", ""),
    "reverse, encrypted": ("reverse", "tls=1"),
    "forward, encrypted": ("forward", "tls=1"),
}
QUICK = ("reverse", "forward, encrypted")


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory, hosts: Hosts) -> Generator[dict[str, FarPair]]:
    """A pair for each way, which the cases of this file share."""
    stage = Stage(tmp_path_factory.mktemp("ways"))
    try:
        wanted = {name: WAYS[name] for name in (WAYS if FULL else QUICK)}
        pairs = {name: hosts.pair(stage, direction=way, both=options) for name, (way, options) in wanted.items()}
        yield {name: pair.up() for name, pair in pairs.items()}
        stage.check()
    finally:
        stage.close()


@pytest.fixture(params=WAYS if FULL else QUICK)
def pair(request: pytest.FixtureRequest, ways: dict[str, FarPair]) -> FarPair:
    """One of them, at rest."""
    pair: FarPair = ways[request.param]
    for end in (pair.server, pair.client):
        traffic.is_idle(end)
    return pair


@pytest.mark.slow
@pytest.mark.case("SHUT_WR, visitor first", deadline=60)
def test_visitor_ends_first(pair: FarPair, figure: Figure) -> None:
    """Without half-close (``Flow._pass_end`` finishes the relay at the first end) the replies are cut off."""
    traffic.test_the_full_reply_arrives_after_the_visitors_half_close(pair)
    figure("30 replies of up to 600 kB whole")


@pytest.mark.slow
@pytest.mark.case("SHUT_WR, target first", deadline=60)
def test_target_ends_first(pair: FarPair, figure: Figure) -> None:
    """Without half-close (``Flow._pass_end`` finishes the relay at the first end) no request arrives."""
    traffic.test_the_full_request_arrives_after_the_targets_half_close(pair)
    figure("30 requests of up to 400 kB whole")


@pytest.mark.slow
@pytest.mark.case("RST by the visitor", deadline=30)
def test_visitor_resets(pair: FarPair, figure: Figure) -> None:
    """Without the reset carried over (``Flow._source_broke`` finishes with no ``reset=``) the target sees an end."""
    began = time.monotonic()
    traffic.test_a_reset_of_the_visitor_is_a_reset_at_the_target(pair)
    figure(f"a reset at the target within {time.monotonic() - began:.2f} s")


@pytest.mark.slow
@pytest.mark.case("RST by the target", deadline=30)
def test_target_resets(pair: FarPair, figure: Figure) -> None:
    """Without the reset carried over (``Flow._source_broke`` finishes with no ``reset=``) the visitor sees an end."""
    began = time.monotonic()
    traffic.test_a_reset_of_the_target_is_a_reset_at_the_visitor(pair)
    figure(f"a reset at the visitor within {time.monotonic() - began:.2f} s")


@pytest.mark.slow
@pytest.mark.case("RST by a visitor whose bytes the target does not take", deadline=60)
def test_reset_behind_a_stalled_target(ways: dict[str, FarPair], figure: Figure) -> None:
    """Of every way at once. Its place is free again, though the target never moves; when that looks, it sees a reset.

    Without the limit for what is left of a dead source (``relay._LAST_WORDS`` enormous) such visitors keep their places
    under SEMAPHORE_LIMIT for as long as the target stands still.
    """
    go = threading.Event()
    endings: list[str] = []

    def stall(sock: socket.socket) -> None:
        go.wait(50)
        try:
            receive_all(sock)
            endings.append("end")
        except ConnectionResetError:
            endings.append("reset")

    def pour_and_reset(pair: FarPair) -> None:
        pair.target.serve = stall
        visitor = pair.connect(timeout=0.5)
        with contextlib.suppress(TimeoutError):
            while True:
                visitor.sendall(traffic.BLOCK)
        reset(visitor)

    with ThreadPoolExecutor(len(ways)) as threads:
        list(threads.map(pour_and_reset, ways.values()))
    began = time.monotonic()
    try:
        for pair in ways.values():
            for end in (pair.server, pair.client):
                traffic.is_idle(end, within=25)
        took = time.monotonic() - began
    finally:
        go.set()
    until(lambda: len(endings) == len(ways), within=5, what="the targets notice")
    assert set(endings) == {"reset"}
    figure(f"its place was free {took:.1f} s after")


@pytest.mark.slow
@pytest.mark.case(f"FIN right behind the last byte of {traffic.SHORT:,} visitors", deadline=150)
def test_fin_behind_the_last_byte(pair: FarPair, figure: Figure) -> None:
    """Without reading on after a hang-up (``Flow._hung`` never set) an end that came with its bytes is overlooked."""
    began = time.monotonic()
    traffic.test_no_byte_is_lost_when_the_end_follows_the_last_byte_at_once(pair)
    figure(f"nothing lost, {traffic.SHORT / (time.monotonic() - began):,.0f} a second")


@pytest.mark.slow
@pytest.mark.case(f"FIN right behind the last byte of {traffic.SHORT:,} targets", deadline=150)
def test_fin_behind_the_last_byte_of_the_target(pair: FarPair, figure: Figure) -> None:
    """Without reading on after a hang-up (``Flow._hung`` never set) an end that came with its bytes is overlooked."""
    began = time.monotonic()
    traffic.test_no_byte_is_lost_when_the_target_ends_after_its_last_byte(pair)
    figure(f"nothing lost, {traffic.SHORT / (time.monotonic() - began):,.0f} a second")


@pytest.mark.slow
@pytest.mark.case(f"{traffic.BULK >> 20:,} MiB each way at once", deadline=180)
def test_bulk(pair: FarPair, figure: Figure) -> None:
    """Without the tail (``Flow.pump`` forgets what a full sink did not take) the sums differ."""
    began = time.monotonic()
    traffic.test_bulk_both_ways_at_once_arrives_unchanged(pair)
    figure(f"SHA-256 equal, {2 * traffic.BULK / (time.monotonic() - began) / (1 << 20):,.0f} MiB/s in all")


@pytest.mark.case("a reader that stalls", deadline=STALL + 90)
@pytest.mark.parametrize("reader", ["visitor", "target"])
def test_stalled_reader(ways: dict[str, FarPair], figure: Figure, reader: str) -> None:
    """Of every way at once, for minutes. Memory stands still, the link too, and then the stream resumes.

    Without backpressure (``Flow.pump`` reads on into its tail while ``blocked``) memory grows with the stream; with
    TCP_USER_TIMEOUT on data connections they are cut after a while.
    """
    size, growth, go = (256 << 20), 0, threading.Event()  # more than kernels hold on the way
    sent: list[str] = []
    received: list[str] = []

    def pour(sock: socket.socket) -> None:
        sock.settimeout(STALL + 120)
        sent.append(traffic.send_stream(sock, size, len(sent)))
        receive_all(sock)

    def stall(sock: socket.socket) -> None:
        sock.settimeout(STALL + 120)
        go.wait(STALL + 120)
        received.append(traffic.receive_stream(sock))

    ends = [end for pair in ways.values() for end in (pair.server, pair.client)]
    links = [end.tunnel()["link"] for end in ends]
    before = {end: end.rss() for end in ends}
    visitors = []
    for pair in ways.values():
        pair.target.serve = stall if reader == "target" else pour
        visitors.append(pair.connect())
    with ThreadPoolExecutor(len(visitors)) as threads:
        doing = [threads.submit(pour if reader == "target" else stall, visitor) for visitor in visitors]
        try:
            time.sleep(STALL)  # the stall itself
            growth = max((end.rss() - rss) >> 20 for end, rss in before.items())
            assert not sent
            assert not received
        finally:
            go.set()
        for done in doing:
            done.result(STALL + 120)
    for visitor in visitors:
        visitor.close()
    until(lambda: len(sent) == len(received) == len(ways), within=10, what="all streams are over")
    assert sorted(received) == sorted(sent)
    assert growth < 8, f"MiB more than before: {growth}"
    assert [end.tunnel()["link"] for end in ends] == links
    figure(f"{STALL:g} s: {growth} MiB more, streams whole afterwards")


@pytest.mark.case("one byte at a time", deadline=120)
def test_one_byte_at_a_time(pair: FarPair, figure: Figure) -> None:
    """Each byte a segment of its own, both ways at once; then in threes, each answered before the next.

    Without TCP_NODELAY (``net.no_delay`` empty) the second byte of three waits for the first to be acknowledged, which
    the other kernel puts off for 40 ms.
    """
    payload = random.Random(7).randbytes(SLICED)
    arrived: list[bytes] = []

    def drip(sock: socket.socket, data: bytes, pause: float = 0.0) -> None:
        for place in range(len(data)):
            sock.send(data[place : place + 1])
            time.sleep(pause)  # or the tunnel would find them together

    def serve(sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with ThreadPoolExecutor(1) as threads:
            dripping = threads.submit(drip, sock, payload)
            arrived.append(receive(sock, SLICED))
            dripping.result()
        while three := receive(sock, 3):
            sock.sendall(three)

    pair.target.serve = serve
    with pair.connect() as visitor:
        with ThreadPoolExecutor(1) as threads:
            dripping = threads.submit(drip, visitor, payload)
            assert receive(visitor, SLICED) == payload
            dripping.result()
        until(lambda: arrived, within=5, what="the target has it all")
        assert arrived == [payload]
        waits = []
        for place in range(0, 180, 3):
            three = payload[place : place + 3]
            began = time.monotonic()
            drip(visitor, three, pause=0.001)
            assert receive(visitor, 3) == three
            waits.append(time.monotonic() - began)
    middle, quick = sorted(waits)[len(waits) // 2], sorted(waits)[len(waits) // 10]
    assert (middle if FULL else quick) < 0.03  # where others use the machine a few tell that nothing waits on purpose
    figure(f"{SLICED:,} bytes each way, whole; three and back in {middle * 1000:.1f} ms")


@pytest.mark.case("one byte at a time, of all that the two ends say", deadline=60)
@pytest.mark.parametrize("direction", DIRECTIONS if FULL else DIRECTIONS[:1])
def test_own_bytes_one_at_a_time(stage: Stage, figure: Figure, direction: str) -> None:
    """Handshake, proofs, frames, prefaces and data, cut up by somebody between the ends.

    Without the preface gathered (``Newcomer.read`` keeps only what came last) there is no data connection.
    """
    middles: list[Middle] = []

    def slow(_passage: Passage, data: bytes) -> Iterator[bytes]:
        for place in range(len(data)):
            yield data[place : place + 1]
            if place < 40:
                time.sleep(0.0005)  # or the other kernel would put them together again

    def through(port: int) -> int:
        middles.append(stage.keep(Middle(("127.0.0.1", port))))
        middles[0].mangle = slow
        return middles[0].port

    pair = stage.pair(
        direction=direction,
        key=KEY,
        both=f"tls={int(direction == 'forward')}",
        server="data_port=tunnel",
        through=through,
    ).up(within=15)
    payload = random.Random(8).randbytes(SLICED)
    assert pair.exchange(payload) == payload
    for _ in range(20):
        assert pair.exchange(b"again") == b"again"
    figure("21 visitors served")


@pytest.mark.case(f"a burst of {BURST:,} visitors at once drains the pool", deadline=60)
def test_burst(pair: FarPair, figure: Figure) -> None:
    """All of them connect, then all of them ask; every one is answered, none later than the wait for a connection.

    Without the queue (``Entrance._serve`` turns away whom it has no data connection for) most of them are closed.
    """
    pair.target.serve = lambda sock: sock.sendall(receive(sock, 4))
    visitors: list[socket.socket] = []
    failed = pair.entrance.tunnel()["connections"]["failed"]
    began = time.monotonic()
    worst = 0.0
    try:
        visitors += [pair.connect() for _ in range(BURST)]
        for number, visitor in enumerate(visitors):
            visitor.sendall(number.to_bytes(4, "big"))
        for number, visitor in enumerate(visitors):
            assert receive(visitor, 4) == number.to_bytes(4, "big")
            visitor.close()
        worst = time.monotonic() - began
    finally:
        for visitor in visitors:
            visitor.close()
    assert pair.entrance.tunnel()["connections"]["failed"] == failed
    assert worst < allowed(20)
    figure(f"all answered within {worst:.1f} s")
