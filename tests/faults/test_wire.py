"""A wire that loses, delays and reorders: streams stay whole, the link holds, data connections find their way."""

from __future__ import annotations

import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.faults.conftest import Figure
from tests.faults.hosts import DIRECTIONS, FarHosts, FarPair
from tests.faults.wire import Manners
from tests.integration import test_traffic as traffic
from tests.integration.harness import Stage
from tests.integration.peers import ask, echo, receive, receive_all
from tests.scale import FULL

BULK = (4 << 20) if FULL else (256 << 10)
VISITORS = 400 if FULL else 40
INTERVAL = "1s" if FULL else "5s"

KINDS = {
    "loss of 5 %": Manners(loss=0.05, delay=0.005),
    "delay of 200 ms each way": Manners(delay=0.2),
    "every fourth packet overtaken": Manners(delay=0.005, reorder=0.25),
    "all of it": Manners(loss=0.02, delay=0.05, reorder=0.1),
}


def is_direct(pair: FarPair) -> bool:
    """Whether data connections take the port that was announced."""
    return "using the tunnel port" not in pair.client.said()


def serve(sock: socket.socket) -> None:
    """What a visitor's first byte asks for: an echo to its half-close, or streams both ways at once."""
    if receive(sock, 1) == b"s":
        traffic.both_ways(sock, BULK, 2)
    else:
        echo(sock)


def visit(pair: FarPair, number: int) -> float:
    """Ask and half-close at once, get it all back; the seconds that it took."""
    payload = random.Random(number).randbytes(1 + number * 37 % 6000)
    began = time.monotonic()
    with pair.connect(timeout=60) as visitor:
        visitor.sendall(b"e" + payload)
        visitor.shutdown(socket.SHUT_WR)
        assert receive_all(visitor) == payload
    return time.monotonic() - began


def stream(pair: FarPair) -> float:
    """A stream each way at once; the seconds that it took."""
    began = time.monotonic()
    with pair.connect(timeout=60) as visitor:
        visitor.sendall(b"s")
        sent, received = traffic.both_ways(visitor, BULK, 1)
        assert received == traffic.sum_of(BULK, 2)
        assert sent == traffic.sum_of(BULK, 1)
    return time.monotonic() - began


@pytest.mark.case("a wire with", deadline=240)
@pytest.mark.parametrize("direction", DIRECTIONS if FULL else DIRECTIONS[:1])
@pytest.mark.parametrize("kind", KINDS if FULL else ["delay of 200 ms each way"])
def test_bad_wire(stage: Stage, far_hosts: FarHosts, figure: Figure, kind: str, direction: str) -> None:
    """Short visitors, a stream each way at once and one long-lived visitor, none of them harmed, all on one link.

    Delay: with ``filler._ROUTE_PATIENCE`` alone, not four round trips, the announced data port is given up for the
    tunnel port. All others: without limbo (``Pool.stirred`` closes what ended before its signal) quick visitors whose
    signal was lost or overtaken are lost with it.
    """
    far_hosts.wire.behave(KINDS[kind])
    options = f"report_interval={INTERVAL}"
    tried = (far_hosts.pair(stage, serve, direction=direction, both=options).up() for _ in range(1 if FULL else 3))
    pair = next((pair for pair in tried if is_direct(pair)), None)  # the wire, a process, may be held up longer still
    assert pair, "the announced data port was given up"
    link = pair.client.tunnel()["link"]
    with pair.connect(timeout=60) as lasting, ThreadPoolExecutor(16) as threads:
        lasting.sendall(b"e")
        assert ask(lasting, b"before") == b"before"
        streaming = threads.submit(stream, pair)
        waits = sorted(threads.map(lambda number: visit(pair, number), range(VISITORS)))
        took = streaming.result()
        assert ask(lasting, b"after") == b"after"
    for end in (pair.server, pair.client):
        assert end.tunnel()["link"] == link
        assert end.tunnel()["connections"]["failed"] == 0
    assert is_direct(pair)
    middle, last = waits[len(waits) // 2], waits[-1]
    figure(
        f"{VISITORS} visitors in {middle:.2f} s each, {last:.1f} s at most; {BULK >> 10:,} KiB each way in {took:.1f} s"
    )
