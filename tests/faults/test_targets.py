"""Targets that refuse, are silent or die, and data connections that cannot be had: the visitor learns it in time."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Generator

import pytest

from tests.faults.conftest import Figure
from tests.faults.hosts import DIRECTIONS, FarPair, Hosts
from tests.integration.harness import Stage, until
from tests.integration.peers import Target, ask, ending
from tests.ports import free_port
from tests.scale import FULL, GUARD, allowed

REFUSAL = 0.1 if FULL else 2.0
"""Seconds in which a visitor of a target that refuses is closed, in the middle of many."""
AT_ONCE = 1.0 if FULL else 4.0
"""Seconds in which one hears of a target that is no more: less than it would take to give up waiting."""
DIAL_BOUND = 10.0
"""Seconds that an exit waits for a target at the most."""
WAIT = 5.0
"""Seconds that a visitor waits for a data connection at the most."""
KEEPALIVE = 30 + 3 * 10
"""Seconds in which the kernel notices that the host of a silent connection is gone."""


class Nobody(Target):
    """A port of a host where nobody listens."""

    def __init__(self) -> None:
        self.port = free_port()


def closed_after(pair: FarPair, *, within: float) -> float:
    """Seconds until a visitor is closed."""
    began = time.monotonic()
    with pair.connect(timeout=allowed(within)) as visitor:
        assert ending(visitor) in {"end", "reset"}
    return time.monotonic() - began


def linked(pair: FarPair) -> FarPair:
    """The pair, once it has a link; whether the target answers or not."""
    for end in (pair.server, pair.client):
        until(lambda: end.tunnel().get("link"), within=20, what=f"{end.name} has a link")  # noqa: B023  called at once
    return pair


@pytest.mark.case("target refused", deadline=60)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_refused(stage: Stage, hosts: Hosts, figure: Figure, direction: str) -> None:
    """A tunnel's two ends both know why.

    Without the word over the link (``Link.say_failed`` says nothing) the entrance counts no failure and does not know
    the reason.
    """
    pair = linked(hosts.pair(stage, Nobody(), direction=direction))
    visitors = 100 if FULL else 20
    took = sorted(closed_after(pair, within=5) for _ in range(visitors))
    for end in (pair.server, pair.client):
        until(lambda: end.tunnel()["connections"]["failed"] >= visitors, within=5, what=f"{end.name} counts them")  # noqa: B023  called at once
        assert "refused" in end.tunnel()["last_error"]
        assert "refused" in end.is_in("cooldown")["reason"]
        until(lambda: end.tunnel()["connections"]["active"] == 0, within=5, what="nobody is left")  # noqa: B023  as above
    assert took[visitors // 2] < REFUSAL
    figure(f"closed after {took[visitors // 2] * 1000:.1f} ms, the last of {visitors} after {took[-1] * 1000:.0f} ms")


@pytest.mark.slow
@pytest.mark.case("target black-holed", deadline=60)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_black_holed(stage: Stage, hosts: Hosts, figure: Figure, direction: str) -> None:
    """Its host drops what asks for a connection; when it answers again, so does the tunnel.

    Without the limit of a dial (``exit.DIAL_LIMIT`` enormous) the visitor waits for the kernel's two minutes.
    """
    pair = hosts.pair(stage, direction=direction).up()
    rule = ["INPUT", "-p", "tcp", "--syn", "--dport", str(pair.target.port), "-j", "DROP"]
    pair.target_host.run("iptables", "-A", *rule)
    try:
        took = closed_after(pair, within=DIAL_BOUND + 5)
        assert took < DIAL_BOUND + 1
        for end in (pair.server, pair.client):
            assert "did not answer" in end.is_in("cooldown")["reason"]
    finally:
        hosts.restore()
    back = pair.first_byte(within=WAIT)
    pair.up()
    figure(f"closed after {took:.1f} s, served {back:.1f} s after it answers again")


ECHO = """
import socket, sys
listener = socket.create_server(("0.0.0.0", int(sys.argv[1])))
while True:
    sock, _ = listener.accept()
    sock.sendall(sock.recv(100))
    kept = [sock]
"""


@contextlib.contextmanager
def process_target(pair_port: int, prefix: tuple[str, ...]) -> Generator[subprocess.Popen[bytes]]:
    """A target that is a process of its own: it answers once and then keeps silent."""
    process = subprocess.Popen([*prefix, sys.executable, "-c", ECHO, str(pair_port)])
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


@pytest.mark.case("target dies mid-stream", deadline=60)
@pytest.mark.parametrize("direction", DIRECTIONS if FULL else DIRECTIONS[:1])
def test_target_dies(stage: Stage, hosts: Hosts, figure: Figure, direction: str) -> None:
    """``kill -9`` of its process while a visitor waits for more; the next visitor hears that nobody is there.

    Without passing the end on (``Flow._pass_end`` neither tells nor shows it) the visitor waits for ever.
    """
    nobody = Nobody()
    pair = hosts.pair(stage, nobody, direction=direction)
    with process_target(nobody.port, pair.target_host.prefix) as process:
        linked(pair).first_byte(within=10)
        with pair.connect() as visitor:
            assert ask(visitor, b"first") == b"first"
            began = time.monotonic()
            process.kill()
            assert ending(visitor) in {"end", "reset"}
            took = time.monotonic() - began
        process.wait(GUARD)  # before that its port may still take somebody in, and reset him
        assert took < AT_ONCE
        assert closed_after(pair, within=5) < AT_ONCE
    for end in (pair.server, pair.client):
        assert "refused" in end.is_in("cooldown")["reason"]
    figure(f"the visitor heard after {took * 1000:.0f} ms")


@pytest.mark.slow
@pytest.mark.case("target's host goes dark mid-stream", deadline=KEEPALIVE + 60)
def test_target_goes_dark(stage: Stage, hosts: Hosts, figure: Figure) -> None:
    """No reset and no end ever comes; the host behind the server just is no more.

    Without keepalive on what has lived for five seconds (``net.keep_alive`` empty) the visitor waits for ever.
    """
    pair = hosts.pair(stage, direction="forward", behind=True).up()
    with pair.connect(timeout=KEEPALIVE + 30) as visitor:
        assert ask(visitor, b"first") == b"first"
        time.sleep(6)  # it has settled, and from now on the kernel watches
        began = time.monotonic()
        hosts.backend.run("iptables", "-A", "INPUT", "-j", "DROP")
        hosts.backend.run("iptables", "-A", "OUTPUT", "-j", "DROP")
        try:
            assert ending(visitor) in {"end", "reset"}
        finally:
            hosts.restore()
    took = time.monotonic() - began
    assert pair.server.tunnel()["connections"]["active"] == 0
    figure(f"the visitor heard after {took:.0f} s")


@pytest.mark.case("no data connection to be had", deadline=60)
@pytest.mark.parametrize("direction", DIRECTIONS if FULL else DIRECTIONS[:1])
def test_no_data_connection(stage: Stage, hosts: Hosts, figure: Figure, direction: str) -> None:
    """New connections to the server are dropped, the link stands: who finds the pool empty waits five seconds, no more.

    Without that limit (``Entrance._expire`` empty) the visitor waits for as long as the fault lasts.
    """
    pair = hosts.pair(
        stage, direction=direction, both="min_pool_capacity=2&max_pool_capacity=2&report_interval=4s"
    ).up()
    until(lambda: pair.server.tunnel()["pool"]["idle"] == 2, within=5, what="the pool is full")
    link = pair.server.tunnel()["link"]
    hosts.server.run("iptables", "-A", "INPUT", "-i", "client0", "-p", "tcp", "--syn", "-j", "DROP")
    with contextlib.ExitStack() as closing:
        closing.callback(hosts.restore)
        served = [closing.enter_context(pair.connect()) for _ in range(2)]
        for visitor in served:
            assert ask(visitor, b"idle before") == b"idle before"
        failed = pair.entrance.tunnel()["connections"]["failed"]
        took = closed_after(pair, within=WAIT + 5)
        assert WAIT - 0.5 < took < WAIT + (1 if FULL else 10)
        assert pair.entrance.tunnel()["connections"]["failed"] == failed + 1
        assert f"no data connection for it in {WAIT:g} s" in pair.entrance.said()
        assert pair.server.tunnel()["link"] == pair.client.tunnel()["link"] == link
        assert ask(served[-1], b"still") == b"still"
        hosts.restore()
        back = pair.first_byte(within=11)  # a dial under way has its ten seconds
    figure(f"closed after {took:.1f} s, served {back:.1f} s after the fault")
