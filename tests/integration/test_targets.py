"""Targets that do not answer: the visitor learns it at once, the operator learns why."""

from __future__ import annotations

import socket
import time

import pytest

from tests.integration.harness import Stage, until
from tests.integration.peers import PATIENCE, BlackHole, Target, connect, ending, exchange, receive
from tests.ports import free_port
from tests.scale import FULL

AT_ONCE = 0.1 if FULL else 2.0
"""Seconds in which most visitors of a target that refuses are closed."""
DIAL_BOUND = 10.0
"""Seconds that an exit waits for a target at the most."""

both_directions = pytest.mark.parametrize("direction", ["reverse", "forward"])


class Nobody(Target):
    """A port that refuses."""

    def __init__(self) -> None:
        self.host, self.port = "127.0.0.1", free_port()


@both_directions
def test_a_refused_target_closes_the_visitor_at_once_and_shows_why(stage: Stage, direction: str) -> None:
    nobody = Nobody()
    pair = stage.pair(nobody, direction=direction).up()
    exit_ = pair.client if direction == "reverse" else pair.server
    took = []
    for _ in range(20):
        began = time.monotonic()
        with connect(pair.visitors) as visitor:
            assert ending(visitor) in {"end", "reset"}
        took.append(time.monotonic() - began)
    assert sorted(took)[len(took) // 2] < AT_ONCE, f"seconds each: {took}"
    line = exit_.says("target.*refused")
    assert str(nobody.port) in line
    pair.entrance.says("target.*refused")
    for end in (pair.server, pair.client):
        until(lambda: end.tunnel()["connections"]["failed"] >= 20, within=2, what="failures are counted")  # noqa: B023  called at once
        assert "refused" in end.tunnel()["last_error"]
        until(lambda: end.tunnel()["connections"]["active"] == 0, within=2, what="nobody is left")  # noqa: B023  as above


@both_directions
def test_a_target_that_comes_back_is_served_again(stage: Stage, direction: str) -> None:
    nobody = Nobody()
    pair = stage.pair(nobody, direction=direction).up()
    with connect(pair.visitors) as visitor:
        assert ending(visitor) in {"end", "reset"}
    listener = socket.create_server(("127.0.0.1", nobody.port))
    stage.keep(Target(lambda sock: sock.sendall(receive(sock, 4)), listener=listener))
    until(lambda: exchange(pair.visitors, b"back") == b"back", within=5, what="visitors are served")
    pair.up()


@pytest.mark.parametrize("direction", ["reverse", pytest.param("forward", marks=pytest.mark.slow)])
def test_a_black_holed_target_closes_the_visitor_within_the_bound(stage: Stage, direction: str) -> None:
    hole = stage.keep(BlackHole())
    target = Nobody()
    target.port = hole.port
    pair = stage.pair(target, direction=direction).up()
    began = time.monotonic()
    with connect(pair.visitors, timeout=DIAL_BOUND + PATIENCE) as visitor:
        assert ending(visitor) in {"end", "reset"}
    assert time.monotonic() - began < DIAL_BOUND + (1 if FULL else 10)
    for end in (pair.server, pair.client):
        end.says("target.*did not answer", within=2)


@both_directions
def test_a_slow_target_does_not_hold_up_the_others(stage: Stage, direction: str) -> None:
    """Visitors of a black hole wait; those of its neighbour in the same processes do not."""
    hole = stage.keep(BlackHole())
    target = stage.target()
    ports = [free_port() for _ in range(4)]
    dead, good = f"127.0.0.1:{hole.port}", f"127.0.0.1:{target.port}"
    doors = [f"127.0.0.1:{ports[2]}", f"127.0.0.1:{ports[3]}"]
    reverse = direction == "reverse"
    ends = zip(("dead", "good"), ports[:2], doors, (dead, good), strict=True)
    servers, clients = {}, {}
    for name, port, door, address in ends:
        servers[name] = f"server://127.0.0.1:{port}/{door if reverse else address}?mode={direction}"
        clients[name] = f"client://127.0.0.1:{port}/{address if reverse else door}"
    stage.up(servers, name="server")
    client = stage.up(clients, name="client")
    client.is_in("up", name="good")
    until(lambda: client.tunnel("dead").get("link"), within=5, what="there is a link")
    waiting = [connect(("127.0.0.1", ports[2])) for _ in range(20)]
    try:
        began = time.monotonic()
        assert exchange(("127.0.0.1", ports[3]), b"quick") == b"quick"
        assert time.monotonic() - began < (0.5 if FULL else DIAL_BOUND / 2)
    finally:
        for sock in waiting:
            sock.close()
