"""Streams between hosts arrive unchanged, whatever visitors and targets do.

The slow cases are those of ``tests/integration/test_traffic.py``, between hosts instead of on loopback.
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

from tests.faults.conftest import FigureRecorder
from tests.faults.hosts import DIRECTIONS, KEY, NamespaceHosts, NamespacePair
from tests.integration import test_traffic as traffic
from tests.support.interception import InterceptedConnection, InterceptingProxy
from tests.support.peers import receive_all, receive_exactly
from tests.support.processes import ProcessHarness
from tests.support.scale import IS_FULL_SCALE, time_allowed
from tests.support.sockets import close_with_reset
from tests.support.waiting import wait_until
from tunnel.engine.relays import VANISHED_AFTER_S

STALL_S = 120.0 if IS_FULL_SCALE else 3.0
BURST_VISITORS = 2000 if IS_FULL_SCALE else 400
SLICED_BYTES = 20_000 if IS_FULL_SCALE else 2_000

WAYS = {
    "reverse": ("reverse", "tls=0"),
    "forward": ("forward", "tls=0"),
    "reverse, encrypted": ("reverse", ""),
    "forward, encrypted": ("forward", ""),
}
QUICK = ("reverse", "forward, encrypted")


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory, hosts: NamespaceHosts) -> Generator[dict[str, NamespacePair]]:
    """Start one pair for each way; the cases of this file share the pairs."""
    harness = ProcessHarness(tmp_path_factory.mktemp("ways"))
    try:
        wanted = {name: WAYS[name] for name in (WAYS if IS_FULL_SCALE else QUICK)}
        pairs = {name: hosts.pair(harness, direction=way, both=options) for name, (way, options) in wanted.items()}
        yield {name: pair.wait_up() for name, pair in pairs.items()}
        harness.check_logs()
    finally:
        harness.close()


@pytest.fixture(params=WAYS if IS_FULL_SCALE else QUICK)
def pair(request: pytest.FixtureRequest, ways: dict[str, NamespacePair]) -> NamespacePair:
    """Return one of the pairs without visitors."""
    pair: NamespacePair = ways[request.param]
    for end in (pair.server, pair.client):
        traffic.wait_idle(end)
    return pair


@pytest.mark.slow
@pytest.mark.case("SHUT_WR, visitor first", deadline=60)
def test_a_reply_is_complete_after_the_visitors_half_close(pair: NamespacePair, record_figure: FigureRecorder) -> None:
    """Seen to fail: if the relay ends at the first end of stream, the replies are cut off."""
    traffic.test_the_full_reply_arrives_after_the_visitors_half_close(pair)
    record_figure("30 replies of up to 600 kB complete")


@pytest.mark.slow
@pytest.mark.case("SHUT_WR, target first", deadline=60)
def test_a_request_is_complete_after_the_targets_half_close(pair: NamespacePair, record_figure: FigureRecorder) -> None:
    """Seen to fail: if the relay ends at the first end of stream, no request arrives."""
    traffic.test_the_full_request_arrives_after_the_targets_half_close(pair)
    record_figure("30 requests of up to 400 kB complete")


@pytest.mark.slow
@pytest.mark.case("RST by the visitor", deadline=30)
def test_a_reset_by_the_visitor_reaches_the_target(pair: NamespacePair, record_figure: FigureRecorder) -> None:
    """Seen to fail: if the relay does not forward the reset, the target sees an end of stream."""
    began = time.monotonic()
    traffic.test_a_reset_by_the_visitor_reaches_the_target(pair)
    record_figure(f"a reset at the target within {time.monotonic() - began:.2f} s")


@pytest.mark.slow
@pytest.mark.case("RST by the target", deadline=30)
def test_a_reset_by_the_target_reaches_the_visitor(pair: NamespacePair, record_figure: FigureRecorder) -> None:
    """Seen to fail: if the relay does not forward the reset, the visitor sees an end of stream."""
    began = time.monotonic()
    traffic.test_a_reset_by_the_target_reaches_the_visitor(pair)
    record_figure(f"a reset at the visitor within {time.monotonic() - began:.2f} s")


@pytest.mark.slow
@pytest.mark.case("RST by a visitor whose bytes the target does not read", deadline=60)
def test_a_reset_frees_the_place_of_a_visitor_of_a_stalled_target(
    ways: dict[str, NamespacePair], record_figure: FigureRecorder
) -> None:
    """All ways at once. The relay ends although the target reads nothing; when the target reads, it sees a reset.

    Seen to fail: without a time limit for the remaining bytes of a reset source, such visitors keep their places under
    SEMAPHORE_LIMIT for as long as the target stalls.
    """
    resume = threading.Event()
    endings: list[str] = []

    def stall(sock: socket.socket) -> None:
        resume.wait(50)
        try:
            receive_all(sock)
            endings.append("end")
        except ConnectionResetError:
            endings.append("reset")

    def fill_and_reset(pair: NamespacePair) -> None:
        pair.target.serve = stall
        visitor = pair.connect(timeout=0.5)
        with contextlib.suppress(TimeoutError):
            while True:
                visitor.sendall(traffic.BLOCK)
        close_with_reset(visitor)

    with ThreadPoolExecutor(len(ways)) as threads:
        list(threads.map(fill_and_reset, ways.values()))
    began = time.monotonic()
    try:
        for pair in ways.values():
            for end in (pair.server, pair.client):
                traffic.wait_idle(end, within=25)
        took = time.monotonic() - began
    finally:
        resume.set()
    wait_until(lambda: len(endings) == len(ways), within=5, what="the targets see the reset")
    assert set(endings) == {"reset"}
    record_figure(f"its place was free after {took:.1f} s")


@pytest.mark.slow
@pytest.mark.case(f"FIN right after the last byte of {traffic.SHORT_VISITORS:,} visitors", deadline=150)
def test_no_byte_is_lost_when_visitors_close_after_their_last_byte(
    pair: NamespacePair, record_figure: FigureRecorder
) -> None:
    """Seen to fail: if the relay does not read on after EPOLLRDHUP, an end that arrives with data is overlooked."""
    began = time.monotonic()
    traffic.test_no_byte_is_lost_when_the_visitor_closes_after_its_last_byte(pair)
    record_figure(f"nothing lost, {traffic.SHORT_VISITORS / (time.monotonic() - began):,.0f} a second")


@pytest.mark.slow
@pytest.mark.case(f"FIN right after the last byte of {traffic.SHORT_VISITORS:,} targets", deadline=150)
def test_no_byte_is_lost_when_targets_close_after_their_last_byte(
    pair: NamespacePair, record_figure: FigureRecorder
) -> None:
    """Seen to fail: if the relay does not read on after EPOLLRDHUP, an end that arrives with data is overlooked."""
    began = time.monotonic()
    traffic.test_no_byte_is_lost_when_the_target_closes_after_its_last_byte(pair)
    record_figure(f"nothing lost, {traffic.SHORT_VISITORS / (time.monotonic() - began):,.0f} a second")


@pytest.mark.slow
@pytest.mark.case(f"{traffic.BULK_BYTES >> 20:,} MiB each way at once", deadline=180)
def test_bulk_both_ways_at_once_arrives_unchanged(pair: NamespacePair, record_figure: FigureRecorder) -> None:
    """Seen to fail: if the relay drops the bytes that a full sink does not accept, the digests differ."""
    began = time.monotonic()
    traffic.test_bulk_both_ways_at_once_arrives_unchanged(pair)
    record_figure(
        f"SHA-256 equal, {2 * traffic.BULK_BYTES / (time.monotonic() - began) / (1 << 20):,.0f} MiB/s in total"
    )


class StalledTransfers:
    """Streams whose receivers read nothing until ``resume`` is set; records the digests of both ends."""

    size = 256 << 20
    """more than the buffers on the path hold"""

    def __init__(self) -> None:
        self.resume = threading.Event()
        self.sent: list[str] = []
        self.received: list[str] = []

    def send(self, sock: socket.socket) -> None:
        sock.settimeout(STALL_S + 120)
        self.sent.append(traffic.send_stream(sock, self.size, len(self.sent)))
        receive_all(sock)

    def receive_later(self, sock: socket.socket) -> None:
        sock.settimeout(STALL_S + 120)
        self.resume.wait(STALL_S + 120)
        self.received.append(traffic.receive_stream(sock))

    def count(self) -> int:
        return len(self.sent) + len(self.received)


@pytest.mark.case("a reader that stalls", deadline=STALL_S + 90)
@pytest.mark.parametrize("reader", ["visitor", "target"])
def test_a_stalled_reader_costs_no_memory_and_no_link(
    ways: dict[str, NamespacePair], record_figure: FigureRecorder, reader: str
) -> None:
    """All ways at once, for minutes. Memory does not grow, the link stays, and then the stream resumes.

    Seen to fail: without backpressure memory grows with the stream. With TCP_USER_TIMEOUT on data connections, they
    are closed after a while.
    """
    transfers, growth_mib = StalledTransfers(), 0
    ends = [end for pair in ways.values() for end in (pair.server, pair.client)]
    links = [end.tunnel()["link"] for end in ends]
    before = {end: end.rss() for end in ends}
    at_visitor, at_target = transfers.send, transfers.receive_later
    if reader == "visitor":
        at_visitor, at_target = at_target, at_visitor
    visitors = []
    for pair in ways.values():
        pair.target.serve = at_target
        visitors.append(pair.connect())
    with ThreadPoolExecutor(len(visitors)) as threads:
        running = [threads.submit(at_visitor, visitor) for visitor in visitors]
        try:
            time.sleep(STALL_S)  # the stall under test
            growth_mib = max((end.rss() - rss) >> 20 for end, rss in before.items())
            assert not transfers.sent
            assert not transfers.received
        finally:
            transfers.resume.set()
        for transfer in running:
            transfer.result(STALL_S + 120)
    for visitor in visitors:
        visitor.close()
    wait_until(lambda: transfers.count() == 2 * len(ways), within=10, what="all streams have ended")
    assert sorted(transfers.received) == sorted(transfers.sent)
    assert growth_mib < 8, f"MiB more than before: {growth_mib}"
    assert [end.tunnel()["link"] for end in ends] == links
    record_figure(f"{STALL_S:g} s: {growth_mib} MiB more, streams complete afterwards")


def send_single_bytes(sock: socket.socket, data: bytes, pause_s: float = 0.0) -> None:
    """Send each byte in a segment of its own."""
    for place in range(len(data)):
        sock.send(data[place : place + 1])
        time.sleep(pause_s)  # without it the tunnel would read several bytes at once


def time_three_bytes(visitor: socket.socket, three: bytes) -> float:
    """Send three single bytes; return the seconds until their echo."""
    began = time.monotonic()
    send_single_bytes(visitor, three, pause_s=0.001)
    assert receive_exactly(visitor, 3) == three
    return time.monotonic() - began


@pytest.mark.case("one byte at a time", deadline=120)
def test_single_bytes_are_relayed_without_delay(pair: NamespacePair, record_figure: FigureRecorder) -> None:
    """Each byte in a segment of its own, both ways at once; then groups of three, each answered before the next.

    Seen to fail: without TCP_NODELAY the second byte of three waits for the acknowledgement of the first, which the
    receiving kernel delays for 40 ms.
    """
    payload = random.Random(7).randbytes(SLICED_BYTES)
    arrived: list[bytes] = []

    def serve(sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with ThreadPoolExecutor(1) as threads:
            sending = threads.submit(send_single_bytes, sock, payload)
            arrived.append(receive_exactly(sock, SLICED_BYTES))
            sending.result()
        while three := receive_exactly(sock, 3):
            sock.sendall(three)

    pair.target.serve = serve
    with pair.connect() as visitor:
        with ThreadPoolExecutor(1) as threads:
            sending = threads.submit(send_single_bytes, visitor, payload)
            assert receive_exactly(visitor, SLICED_BYTES) == payload
            sending.result()
        wait_until(lambda: arrived, within=5, what="the target has received all bytes")
        assert arrived == [payload]
        waits = [time_three_bytes(visitor, payload[place : place + 3]) for place in range(0, 180, 3)]
    median, quick = sorted(waits)[len(waits) // 2], sorted(waits)[len(waits) // 10]
    # On a busy machine the quickest ones show that no delay is built in.
    assert (median if IS_FULL_SCALE else quick) < 0.03
    record_figure(f"{SLICED_BYTES:,} bytes each way, complete; three bytes and back in {median * 1000:.1f} ms")


@pytest.mark.case("one byte at a time, of everything that the two ends send", deadline=60)
@pytest.mark.parametrize("direction", DIRECTIONS if IS_FULL_SCALE else DIRECTIONS[:1])
def test_the_protocol_works_one_byte_at_a_time(
    harness: ProcessHarness, record_figure: FigureRecorder, direction: str
) -> None:
    """Handshake, proofs, frames, prefaces and data, split into single bytes by a proxy between the ends.

    Seen to fail: if a pending connection keeps only the bytes read last, no preface is ever complete.
    """

    def split(_connection: InterceptedConnection, data: bytes) -> Iterator[bytes]:
        for place in range(len(data)):
            yield data[place : place + 1]
            if place < 40:
                time.sleep(0.0005)  # without it the receiving kernel would join the segments

    proxy = harness.close_at_end(InterceptingProxy())
    proxy.mangle = split

    pair = harness.start_pair(
        direction=direction,
        key=KEY,
        both=f"tls={int(direction == 'forward')}",
        server="data_port=tunnel",
        through=proxy.intercept,
    ).wait_up(within=15)
    payload = random.Random(8).randbytes(SLICED_BYTES)
    assert pair.exchange(payload) == payload
    for _ in range(20):
        assert pair.exchange(b"again") == b"again"
    record_figure("21 visitors served")


@pytest.mark.case(f"a burst of {BURST_VISITORS:,} visitors at once drains the pool", deadline=60)
def test_a_burst_of_visitors_beyond_the_pool_is_served(pair: NamespacePair, record_figure: FigureRecorder) -> None:
    """All visitors connect, then all of them send a request; each is answered within the wait for a data connection.

    Seen to fail: without the queue of the ingress, visitors without a data connection are closed at once.
    """
    pair.target.serve = lambda sock: sock.sendall(receive_exactly(sock, 4))
    visitors: list[socket.socket] = []
    failed = pair.ingress.tunnel()["connections"]["failed"]
    began = time.monotonic()
    worst = 0.0
    try:
        visitors += [pair.connect() for _ in range(BURST_VISITORS)]
        for number, visitor in enumerate(visitors):
            visitor.sendall(number.to_bytes(4, "big"))
        for number, visitor in enumerate(visitors):
            assert receive_exactly(visitor, 4) == number.to_bytes(4, "big")
            visitor.close()
        worst = time.monotonic() - began
    finally:
        for visitor in visitors:
            visitor.close()
    assert pair.ingress.tunnel()["connections"]["failed"] == failed
    assert worst < time_allowed(20)
    record_figure(f"all answered within {worst:.1f} s")


VANISHED_WITHIN_S = VANISHED_AFTER_S + 45
"""One minute without an answer, and the intervals between checks."""


@pytest.mark.slow
@pytest.mark.case("visitors vanish during a download", deadline=VANISHED_WITHIN_S + 60)
@pytest.mark.parametrize("tls", [0, 1], ids=["plain", "encrypted"])
def test_places_of_vanished_visitors_are_freed(
    harness: ProcessHarness, hosts: NamespaceHosts, record_figure: FigureRecorder, tls: int
) -> None:
    """Their packets are dropped in both directions; a visitor that only pauses keeps its place and its stream.

    Seen to fail: without the check the kernel repeats the data for a quarter of an hour, and keepalive does not run.
    """
    pair = hosts.pair(harness, send_without_end, both=f"tls={tls}", server="semaphore_limit=3").wait_up()
    with contextlib.ExitStack() as here:
        visitors = [here.enter_context(pair.connect()) for _ in range(3)]
        for visitor in visitors:
            assert receive_exactly(visitor, 1000)
        vanished = [str(visitor.getsockname()[1]) for visitor in visitors[:2]]
        for side in ("--sports", "--dports"):
            rule = ("-A", "INPUT", "-i", "lo", "-p", "tcp", "-m", "multiport", side, ",".join(vanished), "-j", "DROP")
            pair.ingress_host.run("iptables", *rule)
        began = time.monotonic()
        try:
            wait_until(
                lambda: pair.server.tunnel()["connections"]["active"] == 1,
                within=VANISHED_WITHIN_S,
                what="the places of the vanished visitors are free",
            )
            took = time.monotonic() - began
            assert receive_exactly(visitors[2], 8 << 20), "the stream of the visitor that paused"
        finally:
            hosts.restore()
    record_figure(f"2 of 3 places are free after {took:.0f} s, the paused visitor reads on")


def send_without_end(sock: socket.socket) -> None:
    """Send until the connection fails."""
    sock.settimeout(VANISHED_WITHIN_S + 60)
    with contextlib.suppress(OSError):
        while True:
            sock.sendall(bytes(1 << 16))
