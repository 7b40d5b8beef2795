"""Visitors that are refused or too many: the visitors that are admitted, and other tunnels, do not notice."""

from __future__ import annotations

import contextlib
import socket

import pytest

from tests.faults.conftest import FigureRecorder
from tests.faults.floods import Flood
from tests.faults.hosts import KEY
from tests.faults.loads import count_descriptors
from tests.faults.test_floods import FEW_DESCRIPTORS, FLOOD_RATE, FLOOD_S, quantile, visit_times
from tests.support.peers import time_to_first_byte
from tests.support.ports import free_port
from tests.support.processes import ProcessHarness
from tests.support.scale import IS_FULL_SCALE
from tests.support.waiting import wait_until

IDLE = 2_000


@pytest.mark.slow
@pytest.mark.case("idle visitors of one tunnel, and the descriptors of the others", deadline=90)
def test_idle_visitors_of_one_tunnel_leave_descriptors_to_the_others(
    harness: ProcessHarness, record_figure: FigureRecorder
) -> None:
    """Seen to fail: without a share for each tunnel the first one gets all descriptors, and no visitor of b a byte."""
    target = harness.start_target()
    ports, visitors = [free_port() for _ in range(3)], [free_port() for _ in range(3)]
    urls = {
        name: f"server://{KEY}@127.0.0.1:{port}/127.0.0.1:{visitor}?mode=reverse"
        for name, port, visitor in zip("abc", ports, visitors, strict=True)
    }
    server = harness.start_daemon(urls, name="server", prefix=FEW_DESCRIPTORS)
    clients = {
        f"to-{name}": f"client://{KEY}@127.0.0.1:{port}/127.0.0.1:{target.port}"
        for name, port in zip("abc", ports, strict=True)
    }
    harness.start_daemon(clients, name="client")
    for name in urls:
        server.wait_state("up", within=30, name=name)
    with contextlib.ExitStack() as stack:
        for number in range(IDLE):
            idle = stack.enter_context(socket.socket())
            idle.bind((f"127.0.{1 + number // 250}.{1 + number % 250}", 0))
            idle.setblocking(False)
            idle.connect_ex(("127.0.0.1", visitors[0]))
        wait_until(lambda: "its other tunnels" in server.log_text(), within=30, what="tunnel a pauses")
        few = 150  # visitors that wait for data connections hold descriptors, too, before they are served
        active = wait_until(
            lambda: (count := server.tunnel("a")["connections"]["active"]) > few and count,
            within=30,
            what=f"more than {few} visitors of a are served",
        )
        times = [time_to_first_byte(("127.0.0.1", port), within=5) for port in visitors[1:] for _ in range(10)]
        held = count_descriptors(server.pid)
    assert 150 < active < 400
    record_figure(
        f"{active} of {IDLE} idle visitors served; others wait {max(times):.2f} s at most; {held} descriptors"
    )


@pytest.mark.slow
@pytest.mark.case("a flood of visitors that are not allowed", deadline=FLOOD_S + 60)
def test_a_flood_of_refused_visitors_delays_no_admitted_one(
    harness: ProcessHarness, record_figure: FigureRecorder
) -> None:
    """Seen to fail: with a warning for each refused visitor the log has thousands of lines."""
    pair = harness.start_pair(key=KEY, server="deny=127.0.1.0/24").wait_up(within=30)
    before = visit_times(pair.visitors, 1)
    with Flood(pair.visitors, b"", FLOOD_RATE, ["127.0.1.1"]) as flood:
        during = visit_times(pair.visitors, FLOOD_S)
    refused = pair.server.tunnel()["refused"]["allow"]
    assert refused > 0.5 * flood.sent
    assert pair.server.tunnel()["signals"]["total"] == pair.server.tunnel()["connections"]["total"]
    assert pair.server.log_text().count("was refused") <= 2 + FLOOD_S
    assert quantile(during, 0.5) < (max(2, 3 * quantile(before, 0.5)) if IS_FULL_SCALE else 200)
    record_figure(f"{refused} refused: p50 {quantile(before, 0.5):.1f} → {quantile(during, 0.5):.1f} ms")
