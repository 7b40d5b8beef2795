"""Ends that are killed, frozen or cut off: the tunnel recovers soon, and no dead link prevents it.

The quick versions are in ``tests/integration/test_recovery.py`` and, for silence, in ``test_seed.py``.
"""

from __future__ import annotations

import signal
import time

import pytest

from tests.faults.conftest import FigureRecorder
from tests.faults.hosts import CLIENT, DIRECTIONS, KEY, NamespaceHosts, NamespacePair, peers, wait_one_link
from tests.support.peers import round_trip
from tests.support.ports import free_port
from tests.support.processes import Daemon, ProcessHarness
from tests.support.scale import time_allowed
from tests.support.waiting import wait_until

RECOVERY_S = 2.0
"""Seconds from the end of a fault, or from the start of a process, to the first byte."""
FREEZE_S = 60.0
SILENCE_S = 30.0
INTERVAL_S = 1.0
"""REPORT_INTERVAL in seconds; an end that receives nothing for three intervals gives its link up."""
NOTICE_S = 4 * INTERVAL_S + 1.5
"""Seconds within which silence must be noticed: three intervals, the interval of the pings, and a slow machine."""


def interval_option(seconds: float = INTERVAL_S) -> str:
    """Return the URL option that sets REPORT_INTERVAL."""
    return f"report_interval={round(seconds * 1000)}ms"


def time_to_notice(end: Daemon, link: str, began: float) -> float:
    """Return the seconds from ``began`` until an end has given its link up and shows the reason."""
    wait_until(lambda: end.tunnel()["link"] != link, within=NOTICE_S, what=f"{end.name} notices the silence")
    took = time.monotonic() - began
    assert end.tunnel()["last_error"] or end.tunnel()["reason"]
    return took


def wait_started(end: Daemon, life: int) -> None:
    """Wait until the process has started its tunnels ``life`` times, so that interpreter start is not measured."""
    wait_until(lambda: end.log_text().count(" started") >= life, within=30, what=f"{end.name} has started")


@pytest.mark.slow
@pytest.mark.case("an end is killed and started again", deadline=90)
@pytest.mark.parametrize("victim", ["server", "client"])
def test_an_end_that_is_killed_and_restarted_serves_soon(
    harness: ProcessHarness, hosts: NamespaceHosts, record_figure: FigureRecorder, victim: str
) -> None:
    """Both directions at once; a visitor is connected each time, so that its ports are in TIME_WAIT afterwards.

    Seen to fail: without SO_REUSEADDR the restarted end cannot bind its address. With the first delay of the back-off
    at its maximum, a client finds the restarted server after up to five seconds.
    """
    pairs = [hosts.pair(harness, direction=direction) for direction in DIRECTIONS]
    worst = 0.0
    for life in range(2, 7):
        visitors = [harness.close_at_end(pair.wait_up().connect()) for pair in pairs]
        for visitor in visitors:
            assert round_trip(visitor, b"here") == b"here"
        ends = [pair.server if victim == "server" else pair.client for pair in pairs]
        for end in ends:
            end.kill()
        for end in ends:
            end.start()
        for end in ends:
            wait_started(end, life)
        worst = max(worst, *(pair.time_to_first_byte(within=RECOVERY_S) for pair in pairs))
        for visitor in visitors:
            visitor.close()
    record_figure(f"first byte after at most {worst:.2f} s")


@pytest.mark.slow
@pytest.mark.case("SIGSTOP, then SIGCONT", deadline=FREEZE_S + 40)
def test_a_frozen_end_is_noticed_and_serves_again_when_it_resumes(
    harness: ProcessHarness, hosts: NamespaceHosts, record_figure: FigureRecorder
) -> None:
    """Either end, both directions, all four at once. A relay through the frozen end continues afterwards.

    Seen to fail: without a deadline for pings the other end stays ``up`` for as long as the kernel of the frozen
    process acknowledges, which is for ever.
    """
    pairs = [
        (victim, hosts.pair(harness, direction=d, both=interval_option())) for victim in (0, 1) for d in DIRECTIONS
    ]
    visitors = [harness.close_at_end(pair.wait_up().connect()) for _, pair in pairs]
    for visitor in visitors:
        assert round_trip(visitor, b"before") == b"before"
    frozen = [((pair.server, pair.client)[victim], (pair.client, pair.server)[victim]) for victim, pair in pairs]
    links = [other.tunnel()["link"] for _, other in frozen]
    began = time.monotonic()
    for end, _ in frozen:
        end.signal(signal.SIGSTOP)
    noticed = max(time_to_notice(other, link, began) for (_, other), link in zip(frozen, links, strict=True))
    time.sleep(max(0.0, began + FREEZE_S - time.monotonic()))  # the freeze under test
    for end, _ in frozen:
        end.signal(signal.SIGCONT)
    back = max(pair.time_to_first_byte(within=RECOVERY_S) for _, pair in pairs)
    for (_, pair), link in zip(pairs, links, strict=True):
        wait_one_link(hosts, pair, unlike=link, within=2 * RECOVERY_S)
    for visitor in visitors:
        assert round_trip(visitor, b"after") == b"after"
    record_figure(f"frozen for {FREEZE_S:g} s: noticed within {noticed:.1f} s, served {back:.2f} s afterwards")


@pytest.mark.slow
@pytest.mark.case("packets dropped silently", deadline=SILENCE_S + 60)
@pytest.mark.parametrize(
    "ways", [("in", "out"), ("in",), ("out",)], ids=["both ways", "to the server", "to the client"]
)
def test_silent_packet_loss_is_noticed_and_the_tunnel_recovers(
    harness: ProcessHarness, hosts: NamespaceHosts, record_figure: FigureRecorder, ways: tuple[str, ...]
) -> None:
    """No reset and no end of stream arrives; both directions at once. Established relays continue afterwards.

    Seen to fail: without a deadline for pings the server stays ``up`` for as long as its kernel retransmits, which is
    a quarter of an hour.
    """
    pairs = [hosts.pair(harness, direction=d, both=f"{interval_option()}&client_cooldown=1s") for d in DIRECTIONS]
    visitors = [harness.close_at_end(pair.wait_up().connect()) for pair in pairs]
    for visitor in visitors:
        assert round_trip(visitor, b"before") == b"before"
    links = [pair.client.tunnel()["link"] for pair in pairs]
    began = time.monotonic()
    try:
        hosts.silence(*ways)
        noticed = max(
            time_to_notice(end, link, began)
            for pair, link in zip(pairs, links, strict=True)
            for end in (pair.server, pair.client)
        )
        time.sleep(max(0.0, began + SILENCE_S - time.monotonic()))  # the silence under test
    finally:
        hosts.restore()
    # A connection attempt that started during the silence may run for the rest of its ten seconds.
    back = max(pair.time_to_first_byte(within=11 + RECOVERY_S) for pair in pairs)
    for pair, link in zip(pairs, links, strict=True):
        wait_one_link(hosts, pair, unlike=link, within=RECOVERY_S)
    for visitor in visitors:
        visitor.settimeout(SILENCE_S + 20)  # the kernel's retransmission interval has grown during the silence
        assert round_trip(visitor, b"after") == b"after"
    record_figure(f"noticed within {noticed:.1f} s, served {back:.1f} s after {SILENCE_S:g} s of silence")


@pytest.mark.slow
@pytest.mark.case("half-open control channel, a replacement client connects", deadline=40)
def test_a_replacement_client_takes_over_a_half_open_link(
    harness: ProcessHarness, hosts: NamespaceHosts, record_figure: FigureRecorder
) -> None:
    """The client's host is cut off; a client on another host has the link at once, before the deadline of the ping.

    Seen to fail: without the ping to the present client, the server refuses every new client while it has a link,
    which lasts three minutes at this interval.
    """
    target = hosts.target(harness, hosts.backend)
    port, visitor_port = free_port(), free_port()
    server = harness.start_daemon(
        {"t": f"server://{KEY}@0.0.0.0:{port}/127.0.0.1:{visitor_port}?mode=reverse&{interval_option(60)}"},
        prefix=hosts.server.prefix,
    )
    first = hosts.target(harness, hosts.client)
    old = harness.start_daemon(
        {"t": f"client://{KEY}@10.1.0.1:{port}/127.0.0.1:{first.port}"}, prefix=hosts.client.prefix
    )
    link = server.wait_state("up")["link"]
    try:
        hosts.silence("in", "out")
        old.kill()
        began = time.monotonic()
        new = harness.start_daemon(
            {"t": f"client://{KEY}@10.2.0.1:{port}/127.0.0.1:{target.port}"}, prefix=hosts.backend.prefix
        )
        new.wait_state("up")
        pair = NamespacePair(server, new, ("127.0.0.1", visitor_port), port, target, hosts.server, hosts.backend)
        pair.time_to_first_byte(within=RECOVERY_S)
        took = time.monotonic() - began
        assert server.tunnel()["link"] == new.tunnel()["link"] != link
        assert took < time_allowed(RECOVERY_S + 1)  # includes the start of the process
        wait_until(
            lambda: CLIENT not in peers(hosts.server, port), within=5, what="no connection of the old client is left"
        )
    finally:
        hosts.restore()
    record_figure(f"served {took:.2f} s after its start")
