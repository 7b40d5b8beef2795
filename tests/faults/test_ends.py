"""Ends that are killed, frozen or cut off: the tunnel is soon back, and no dead link stands in the way.

The quick half of it is ``tests/integration/test_recovery.py`` and, for silence, ``test_seed.py``.
"""

from __future__ import annotations

import signal
import time

import pytest

from tests.faults.conftest import Figure
from tests.faults.hosts import CLIENT, DIRECTIONS, KEY, FarPair, Hosts, one_link, peers
from tests.integration.harness import Daemon, Stage, until
from tests.integration.peers import ask
from tests.ports import free_port
from tests.scale import allowed

PROMISE = 2.0
"""Seconds from the moment a fault is mended, or a process has started, to the first byte."""
FREEZE = 60.0
SILENCE = 30.0
INTERVAL = 1.0
"""REPORT_INTERVAL in seconds; an end that hears nothing for three of them is without a link."""
NOTICE = 4 * INTERVAL + 1.5
"""Seconds in which silence has to be noticed: three intervals, the pace of the pings, and a slow machine."""


def interval(seconds: float = INTERVAL) -> str:
    """The option of the URL."""
    return f"report_interval={round(seconds * 1000)}ms"


def notices(end: Daemon, link: str, began: float) -> float:
    """Seconds since ``began`` until an end has given its link up, and says why."""
    until(lambda: end.tunnel()["link"] != link, within=NOTICE, what=f"{end.name} notices that nobody answers")
    took = time.monotonic() - began
    assert end.tunnel()["last_error"] or end.tunnel()["reason"]
    return took


def starts(end: Daemon, life: int) -> None:
    """Wait until the process has begun its work for the ``life``-th time: what its interpreter needs is not ours."""
    until(lambda: end.said().count("tunnels started") >= life, within=30, what=f"{end.name} has started")


@pytest.mark.slow
@pytest.mark.case("an end is killed and started again", deadline=90)
@pytest.mark.parametrize("victim", ["server", "client"])
def test_killed(stage: Stage, hosts: Hosts, figure: Figure, victim: str) -> None:
    """Both directions at once; a visitor is there each time, and leaves the end's ports in use behind it.

    Without SO_REUSEADDR (``net.listen``) a server, or a client at the entrance, cannot take its address again; with the
    first pause of ``backoff.delay`` at its cap a client finds a returned server after up to five seconds.
    """
    pairs = [hosts.pair(stage, direction=direction) for direction in DIRECTIONS]
    worst = 0.0
    for life in range(2, 7):
        visitors = [stage.keep(pair.up().connect()) for pair in pairs]
        for visitor in visitors:
            assert ask(visitor, b"here") == b"here"
        ends = [pair.server if victim == "server" else pair.client for pair in pairs]
        for end in ends:
            end.kill()
        for end in ends:
            end.start()
        for end in ends:
            starts(end, life)
        worst = max(worst, *(pair.first_byte(within=PROMISE) for pair in pairs))
        for visitor in visitors:
            visitor.close()
    figure(f"first byte after {worst:.2f} s at the latest")


@pytest.mark.slow
@pytest.mark.case("SIGSTOP, then SIGCONT", deadline=FREEZE + 40)
def test_frozen(stage: Stage, hosts: Hosts, figure: Figure) -> None:
    """Either end, both directions, all four at once. A relay that runs through the frozen end goes on afterwards.

    Without the deadline of the pings (``link._SILENT_INTERVALS`` enormous) the other end stays ``up`` for as long as
    the kernel of the frozen one acknowledges, which is for ever.
    """
    pairs = [(victim, hosts.pair(stage, direction=d, both=interval())) for victim in (0, 1) for d in DIRECTIONS]
    visitors = [stage.keep(pair.up().connect()) for _, pair in pairs]
    for visitor in visitors:
        assert ask(visitor, b"before") == b"before"
    frozen = [((pair.server, pair.client)[victim], (pair.client, pair.server)[victim]) for victim, pair in pairs]
    links = [other.tunnel()["link"] for _, other in frozen]
    began = time.monotonic()
    for end, _ in frozen:
        end.signal(signal.SIGSTOP)
    noticed = max(notices(other, link, began) for (_, other), link in zip(frozen, links, strict=True))
    time.sleep(max(0.0, began + FREEZE - time.monotonic()))  # the freeze itself
    for end, _ in frozen:
        end.signal(signal.SIGCONT)
    back = max(pair.first_byte(within=PROMISE) for _, pair in pairs)
    for (_, pair), link in zip(pairs, links, strict=True):
        one_link(hosts, pair, unlike=link, within=2 * PROMISE)
    for visitor in visitors:
        assert ask(visitor, b"after") == b"after"
    figure(f"frozen for {FREEZE:g} s: noticed within {noticed:.1f} s, served {back:.2f} s after")


@pytest.mark.slow
@pytest.mark.case("packets dropped in silence", deadline=SILENCE + 60)
@pytest.mark.parametrize(
    "ways", [("in", "out"), ("in",), ("out",)], ids=["both ways", "to the server", "to the client"]
)
def test_silence(stage: Stage, hosts: Hosts, figure: Figure, ways: tuple[str, ...]) -> None:
    """No reset and no end, just nothing; both directions of tunnels at once. Relays that run go on afterwards.

    Without the deadline of the pings (``link._SILENT_INTERVALS`` enormous) the server stays ``up`` for as long as its
    kernel tries, which is a quarter of an hour.
    """
    pairs = [hosts.pair(stage, direction=d, both=f"{interval()}&client_cooldown=1s") for d in DIRECTIONS]
    visitors = [stage.keep(pair.up().connect()) for pair in pairs]
    for visitor in visitors:
        assert ask(visitor, b"before") == b"before"
    links = [pair.client.tunnel()["link"] for pair in pairs]
    began = time.monotonic()
    try:
        hosts.silence(*ways)
        noticed = max(
            notices(end, link, began)
            for pair, link in zip(pairs, links, strict=True)
            for end in (pair.server, pair.client)
        )
        time.sleep(max(0.0, began + SILENCE - time.monotonic()))  # the silence itself
    finally:
        hosts.restore()
    # An attempt under way has been retransmitted ever more seldom: it may still have its ten seconds to run.
    back = max(pair.first_byte(within=11 + PROMISE) for pair in pairs)
    for pair, link in zip(pairs, links, strict=True):
        one_link(hosts, pair, unlike=link, within=PROMISE)
    for visitor in visitors:
        visitor.settimeout(SILENCE + 20)  # the kernel's pause between retransmissions has grown with the silence
        assert ask(visitor, b"after") == b"after"
    figure(f"noticed within {noticed:.1f} s, served {back:.1f} s after {SILENCE:g} s of it")


@pytest.mark.case("half-open control channel, a replacement client comes", deadline=40)
def test_replacement(stage: Stage, hosts: Hosts, figure: Figure) -> None:
    """The client's host goes dark; a client on another host has the link at once, not after the ping's deadline.

    Without the question to the present client (``Server._rival`` refuses whenever there is a link) the newcomer hears
    that another client has this tunnel, for three minutes at this interval.
    """
    target = hosts.target(stage, hosts.backend)
    port, visitor_port = free_port(), free_port()
    server = stage.up(
        {"t": f"server://{KEY}@0.0.0.0:{port}/127.0.0.1:{visitor_port}?mode=reverse&{interval(60)}"},
        prefix=hosts.server.prefix,
    )
    first = hosts.target(stage, hosts.client)
    old = stage.up({"t": f"client://{KEY}@10.1.0.1:{port}/127.0.0.1:{first.port}"}, prefix=hosts.client.prefix)
    link = server.is_in("up")["link"]
    try:
        hosts.silence("in", "out")
        old.kill()
        began = time.monotonic()
        new = stage.up({"t": f"client://{KEY}@10.2.0.1:{port}/127.0.0.1:{target.port}"}, prefix=hosts.backend.prefix)
        new.is_in("up")
        pair = FarPair(server, new, ("127.0.0.1", visitor_port), port, target, hosts.server, hosts.backend)
        pair.first_byte(within=PROMISE)
        took = time.monotonic() - began
        assert server.tunnel()["link"] == new.tunnel()["link"] != link
        assert took < allowed(PROMISE + 1)  # the start of the process included
        until(lambda: CLIENT not in peers(hosts.server, port), within=5, what="nothing of the old client is left")
    finally:
        hosts.restore()
    figure(f"served {took:.2f} s after its start")
