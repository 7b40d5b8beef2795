"""Targets that refuse, are silent or die, and missing data connections: the visitor is closed in time."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Generator

import pytest

from tests.faults.conftest import FigureRecorder
from tests.faults.hosts import DIRECTIONS, NamespaceHosts, NamespacePair
from tests.support.peers import Target, read_stream_end, round_trip
from tests.support.ports import free_port
from tests.support.processes import ProcessHarness
from tests.support.scale import GUARD_S, IS_FULL_SCALE, time_allowed
from tests.support.waiting import wait_until

REFUSAL_S = 0.1 if IS_FULL_SCALE else 2.0
"""Seconds within which the median visitor of a refusing target is closed."""
TARGET_LOST_S = 1.0 if IS_FULL_SCALE else 4.0
"""Seconds within which the loss of a target reaches the visitor: less than any timeout."""
DIAL_TIMEOUT_S = 10.0
"""Seconds after which the egress gives a dial up."""
QUEUE_TIMEOUT_S = 5.0
"""Seconds that a visitor waits for a data connection at most."""
KEEPALIVE_S = 30 + 3 * 10
"""Seconds within which the kernel's keepalive detects that a host is gone."""


class RefusingPort(Target):
    """A port without a listener."""

    def __init__(self) -> None:
        self.port = free_port()


def time_to_close(pair: NamespacePair, *, within: float) -> float:
    """Return the seconds until a visitor is closed."""
    began = time.monotonic()
    with pair.connect(timeout=time_allowed(within)) as visitor:
        assert read_stream_end(visitor) in {"end", "reset"}
    return time.monotonic() - began


def wait_linked(pair: NamespacePair) -> NamespacePair:
    """Wait until both ends have a link, whether the target answers or not."""
    for end in (pair.server, pair.client):
        wait_until(lambda: end.tunnel().get("link"), within=20, what=f"{end.name} has a link")  # noqa: B023  called at once
    return pair


@pytest.mark.case("target refused", deadline=60)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_refusing_target_closes_the_visitor_and_both_ends_show_the_reason(
    harness: ProcessHarness, hosts: NamespaceHosts, record_figure: FigureRecorder, direction: str
) -> None:
    """Both ends of the tunnel show the reason.

    Seen to fail: without the FAILED frame on the link, the ingress counts no failure and does not know the reason.
    """
    pair = wait_linked(hosts.pair(harness, RefusingPort(), direction=direction))
    visitors = 100 if IS_FULL_SCALE else 20
    took = sorted(time_to_close(pair, within=5) for _ in range(visitors))
    for end in (pair.server, pair.client):
        wait_until(lambda: end.tunnel()["connections"]["failed"] >= visitors, within=5, what=f"{end.name} counts all")  # noqa: B023  called at once
        assert "refused" in end.tunnel()["last_error"]
        assert "refused" in end.wait_state("cooldown")["reason"]
        wait_until(lambda: end.tunnel()["connections"]["active"] == 0, within=5, what="no visitor is left")  # noqa: B023  called at once
    assert took[visitors // 2] < REFUSAL_S
    record_figure(
        f"closed after {took[visitors // 2] * 1000:.1f} ms, the slowest of {visitors} after {took[-1] * 1000:.0f} ms"
    )


@pytest.mark.slow
@pytest.mark.case("target black-holed", deadline=60)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_black_holed_target_closes_the_visitor_within_the_dial_timeout(
    harness: ProcessHarness, hosts: NamespaceHosts, record_figure: FigureRecorder, direction: str
) -> None:
    """The target's host drops SYN packets; when it answers again, the tunnel serves again.

    Seen to fail: without the dial timeout the visitor waits for the kernel's two minutes.
    """
    pair = hosts.pair(harness, direction=direction).wait_up()
    rule = ["INPUT", "-p", "tcp", "--syn", "--dport", str(pair.target.port), "-j", "DROP"]
    pair.target_host.run("iptables", "-A", *rule)
    try:
        took = time_to_close(pair, within=DIAL_TIMEOUT_S + 5)
        assert took < DIAL_TIMEOUT_S + 1
        for end in (pair.server, pair.client):
            assert "did not answer" in end.wait_state("cooldown")["reason"]
    finally:
        hosts.restore()
    back = pair.time_to_first_byte(within=QUEUE_TIMEOUT_S)
    pair.wait_up()
    record_figure(f"closed after {took:.1f} s, served {back:.1f} s after the target answers again")


ECHO = """
import socket, sys
listener = socket.create_server(("0.0.0.0", int(sys.argv[1])))
while True:
    sock, _ = listener.accept()
    sock.sendall(sock.recv(100))
    held = [sock]
"""


@contextlib.contextmanager
def process_target(pair_port: int, prefix: tuple[str, ...]) -> Generator[subprocess.Popen[bytes]]:
    """Run a target in a process of its own that answers once and then stays silent."""
    process = subprocess.Popen([*prefix, sys.executable, "-c", ECHO, str(pair_port)])
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


@pytest.mark.case("target dies mid-stream", deadline=60)
@pytest.mark.parametrize("direction", DIRECTIONS if IS_FULL_SCALE else DIRECTIONS[:1])
def test_the_death_of_a_target_closes_its_visitors(
    harness: ProcessHarness, hosts: NamespaceHosts, record_figure: FigureRecorder, direction: str
) -> None:
    """``kill -9`` of the target's process while a visitor waits for data; the next visitor is closed at once.

    Seen to fail: if the relay does not forward the end of stream, the visitor waits for ever.
    """
    port = RefusingPort()
    pair = hosts.pair(harness, port, direction=direction)
    with process_target(port.port, pair.target_host.prefix) as process:
        wait_linked(pair).time_to_first_byte(within=10)
        with pair.connect() as visitor:
            assert round_trip(visitor, b"first") == b"first"
            began = time.monotonic()
            process.kill()
            assert read_stream_end(visitor) in {"end", "reset"}
            took = time.monotonic() - began
        process.wait(GUARD_S)  # until then its port may still accept a connection and reset it
        assert took < TARGET_LOST_S
        assert time_to_close(pair, within=5) < TARGET_LOST_S
    for end in (pair.server, pair.client):
        assert "refused" in end.wait_state("cooldown")["reason"]
    record_figure(f"the visitor was closed after {took * 1000:.0f} ms")


@pytest.mark.slow
@pytest.mark.case("target's host disappears mid-stream", deadline=KEEPALIVE_S + 60)
def test_the_loss_of_a_targets_host_closes_its_visitors(
    harness: ProcessHarness, hosts: NamespaceHosts, record_figure: FigureRecorder
) -> None:
    """No reset and no end of stream arrives; the host behind the server is simply gone.

    Seen to fail: without keepalive on connections older than five seconds the visitor waits for ever.
    """
    pair = hosts.pair(harness, direction="forward", behind=True).wait_up()
    with pair.connect(timeout=KEEPALIVE_S + 30) as visitor:
        assert round_trip(visitor, b"first") == b"first"
        time.sleep(6)  # keepalive is set after five seconds
        began = time.monotonic()
        hosts.backend.run("iptables", "-A", "INPUT", "-j", "DROP")
        hosts.backend.run("iptables", "-A", "OUTPUT", "-j", "DROP")
        try:
            assert read_stream_end(visitor) in {"end", "reset"}
        finally:
            hosts.restore()
    took = time.monotonic() - began
    assert pair.server.tunnel()["connections"]["active"] == 0
    record_figure(f"the visitor was closed after {took:.0f} s")


@pytest.mark.case("no data connection available", deadline=60)
@pytest.mark.parametrize("direction", DIRECTIONS if IS_FULL_SCALE else DIRECTIONS[:1])
def test_a_visitor_without_a_data_connection_is_closed_after_the_queue_timeout(
    harness: ProcessHarness, hosts: NamespaceHosts, record_figure: FigureRecorder, direction: str
) -> None:
    """New connections to the server are dropped while the link stays: a visitor waits at most five seconds.

    Seen to fail: without that limit the visitor waits for as long as the fault lasts.
    """
    pair = hosts.pair(
        harness, direction=direction, both="min_pool_capacity=2&max_pool_capacity=2&report_interval=4s&mux=0"
    ).wait_up()
    wait_until(lambda: pair.server.tunnel()["pool"]["idle"] == 2, within=5, what="the pool is full")
    link = pair.server.tunnel()["link"]
    hosts.server.run("iptables", "-A", "INPUT", "-i", "client0", "-p", "tcp", "--syn", "-j", "DROP")
    with contextlib.ExitStack() as closing:
        closing.callback(hosts.restore)
        served = [closing.enter_context(pair.connect()) for _ in range(2)]
        for visitor in served:
            assert round_trip(visitor, b"idle before") == b"idle before"
        failed = pair.ingress.tunnel()["connections"]["failed"]
        took = time_to_close(pair, within=QUEUE_TIMEOUT_S + 5)
        assert QUEUE_TIMEOUT_S - 0.5 < took < QUEUE_TIMEOUT_S + (1 if IS_FULL_SCALE else 10)
        assert pair.ingress.tunnel()["connections"]["failed"] == failed + 1
        assert f"no data connection for it in {QUEUE_TIMEOUT_S:g} s" in pair.ingress.log_text()
        assert pair.server.tunnel()["link"] == pair.client.tunnel()["link"] == link
        assert round_trip(served[-1], b"still") == b"still"
        hosts.restore()
        back = pair.time_to_first_byte(within=11)  # a dial in progress may take its ten seconds
    record_figure(f"closed after {took:.1f} s, served {back:.1f} s after the fault")
