"""Targets that do not answer: the visitor is closed at once and the operator sees the reason."""

from __future__ import annotations

import socket
import time

import pytest

from tests.support.peers import (
    SOCKET_TIMEOUT_S,
    BlackHole,
    Target,
    connect,
    exchange,
    read_stream_end,
    receive_exactly,
)
from tests.support.ports import free_port
from tests.support.processes import ProcessHarness
from tests.support.scale import IS_FULL_SCALE
from tests.support.waiting import wait_until

REFUSAL_S = 0.1 if IS_FULL_SCALE else 2.0
"""Seconds within which most visitors of a refusing target are closed."""
DIAL_TIMEOUT_S = 10.0
"""Seconds after which the egress gives a dial up."""

both_directions = pytest.mark.parametrize("direction", ["reverse", "forward"])


class RefusingPort(Target):
    """A port without a listener."""

    def __init__(self) -> None:
        self.host, self.port = "127.0.0.1", free_port()


@both_directions
def test_a_refusing_target_closes_the_visitor_at_once_and_shows_the_reason(
    harness: ProcessHarness, direction: str
) -> None:
    refusing = RefusingPort()
    pair = harness.start_pair(refusing, direction=direction).wait_up()
    egress = pair.client if direction == "reverse" else pair.server
    took = []
    for _ in range(20):
        began = time.monotonic()
        with connect(pair.visitors) as visitor:
            assert read_stream_end(visitor) in {"end", "reset"}
        took.append(time.monotonic() - began)
    assert sorted(took)[len(took) // 2] < REFUSAL_S, f"seconds each: {took}"
    line = egress.wait_for_log("target.*refused")
    assert str(refusing.port) in line
    pair.ingress.wait_for_log("target.*refused")
    for end in (pair.server, pair.client):
        wait_until(lambda: end.tunnel()["connections"]["failed"] >= 20, within=2, what="failures are counted")  # noqa: B023  called at once
        assert "refused" in end.tunnel()["last_error"]
        wait_until(lambda: end.tunnel()["connections"]["active"] == 0, within=2, what="no visitor is left")  # noqa: B023  called at once


@both_directions
def test_a_target_that_returns_is_used_again(harness: ProcessHarness, direction: str) -> None:
    refusing = RefusingPort()
    pair = harness.start_pair(refusing, direction=direction).wait_up()
    with connect(pair.visitors) as visitor:
        assert read_stream_end(visitor) in {"end", "reset"}
    listener = socket.create_server(("127.0.0.1", refusing.port))
    harness.close_at_end(Target(lambda sock: sock.sendall(receive_exactly(sock, 4)), listener=listener))
    wait_until(lambda: exchange(pair.visitors, b"back") == b"back", within=5, what="visitors are served")
    pair.wait_up()


@pytest.mark.parametrize("direction", ["reverse", pytest.param("forward", marks=pytest.mark.slow)])
def test_a_black_holed_target_closes_the_visitor_within_the_dial_timeout(
    harness: ProcessHarness, direction: str
) -> None:
    hole = harness.close_at_end(BlackHole())
    target = RefusingPort()
    target.port = hole.port
    pair = harness.start_pair(target, direction=direction).wait_up()
    began = time.monotonic()
    with connect(pair.visitors, timeout=DIAL_TIMEOUT_S + SOCKET_TIMEOUT_S) as visitor:
        assert read_stream_end(visitor) in {"end", "reset"}
    assert time.monotonic() - began < DIAL_TIMEOUT_S + (1 if IS_FULL_SCALE else 10)
    for end in (pair.server, pair.client):
        end.wait_for_log("target.*did not answer", within=2)


@both_directions
def test_a_slow_target_does_not_delay_other_tunnels(harness: ProcessHarness, direction: str) -> None:
    """Visitors of a black hole wait; visitors of another tunnel in the same processes do not."""
    hole = harness.close_at_end(BlackHole())
    target = harness.start_target()
    ports = [free_port() for _ in range(4)]
    dead, good = f"127.0.0.1:{hole.port}", f"127.0.0.1:{target.port}"
    visitor_addresses = [f"127.0.0.1:{ports[2]}", f"127.0.0.1:{ports[3]}"]
    reverse = direction == "reverse"
    ends = zip(("dead", "good"), ports[:2], visitor_addresses, (dead, good), strict=True)
    servers, clients = {}, {}
    for name, port, visitors, address in ends:
        servers[name] = f"server://127.0.0.1:{port}/{visitors if reverse else address}?mode={direction}"
        clients[name] = f"client://127.0.0.1:{port}/{address if reverse else visitors}"
    harness.start_daemon(servers, name="server")
    client = harness.start_daemon(clients, name="client")
    client.wait_state("up", name="good")
    wait_until(lambda: client.tunnel("dead").get("link"), within=5, what="there is a link")
    waiting = [connect(("127.0.0.1", ports[2])) for _ in range(20)]
    try:
        began = time.monotonic()
        assert exchange(("127.0.0.1", ports[3]), b"quick") == b"quick"
        assert time.monotonic() - began < (0.5 if IS_FULL_SCALE else DIAL_TIMEOUT_S / 2)
    finally:
        for sock in waiting:
            sock.close()
