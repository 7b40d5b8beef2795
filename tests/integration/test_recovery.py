"""Ends that start late, die, freeze or lose sight of each other."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest

from tests.integration.harness import Command, Stage, until
from tests.integration.peers import Address, ask, connect, first_byte
from tests.integration.strangers import Middle
from tests.ports import free_port
from tests.scale import FULL

PROMISE = 2.0
"""Seconds from the start of the second end, or of the one that returns, to the first byte."""
FREEZE = 20.0 if FULL else 2.0
INTERVAL = "1s" if FULL else "200ms"

both_directions = pytest.mark.parametrize("direction", ["reverse", "forward"])


class Ends:
    """Two single-URL processes that can be started in any order and again."""

    def __init__(self, stage: Stage, direction: str, key: str = "abcdefgh") -> None:
        self.stage = stage
        self.target = stage.target()
        port, visitor_port = free_port(), free_port()
        self.visitors: Address = ("127.0.0.1", visitor_port)
        entrance, exit_ = f"127.0.0.1:{visitor_port}", f"127.0.0.1:{self.target.port}"
        ends = (entrance, exit_) if direction == "reverse" else (exit_, entrance)
        self.urls = {
            "server": f"server://{key}@127.0.0.1:{port}/{ends[0]}?mode={direction}",
            "client": f"client://{key}@127.0.0.1:{port}/{ends[1]}",
        }

    def start(self, which: str) -> Command:
        return self.stage.url(self.urls[which])


def listener_between(stage: Stage) -> tuple[list[Middle], Callable[[int], int]]:
    """For ``Stage.pair``: somebody on the tunnel port, who tells control channels from data and can cut them."""
    middles: list[Middle] = []

    def through(port: int) -> int:
        middles.append(stage.keep(Middle(("127.0.0.1", port))))
        return middles[0].port

    return middles, through


@both_directions
@pytest.mark.parametrize("first", ["server", "client"])
def test_either_end_may_start_first(stage: Stage, direction: str, first: str) -> None:
    ends = Ends(stage, direction)
    second = "client" if first == "server" else "server"
    command = ends.start(first)
    command.says("listening" if first == "server" else "cooldown|connect|refused")
    ends.start(second)
    first_byte(ends.visitors, within=PROMISE)


@both_directions
def test_a_client_that_waited_long_still_comes_at_once(stage: Stage, direction: str) -> None:
    ends = Ends(stage, direction)
    client = ends.start("client")
    client.says("cooldown|refused")
    time.sleep(3)  # the wait itself: its retries become rare
    ends.start("server")
    first_byte(ends.visitors, within=5 + PROMISE)  # CLIENT_COOLDOWN, full jitter, then the promise


@both_directions
@pytest.mark.parametrize("victim", ["server", "client"])
def test_an_end_that_is_killed_and_started_again_carries_traffic(stage: Stage, direction: str, victim: str) -> None:
    ends = Ends(stage, direction)
    commands = {which: ends.start(which) for which in ("server", "client")}
    first_byte(ends.visitors, within=5)
    for _ in range(3):
        commands[victim].kill()
        commands[victim] = ends.start(victim)
        first_byte(ends.visitors, within=PROMISE)
    for command in commands.values():
        assert "in use" not in command.said()


@both_directions
@pytest.mark.parametrize("victim", ["server", "client"])
def test_an_end_that_freezes_and_thaws_leaves_exactly_one_link(stage: Stage, direction: str, victim: str) -> None:
    middles, through = listener_between(stage)
    pair = stage.pair(direction=direction, both=f"report_interval={INTERVAL}", key="abcdefgh", through=through).up()
    first_byte(pair.visitors, within=PROMISE)
    end, other = (pair.server, pair.client) if victim == "server" else (pair.client, pair.server)
    link = other.tunnel()["link"]
    end.signal(signal.SIGSTOP)
    began = time.monotonic()

    def notices() -> bool:
        shown = other.tunnel()
        return shown["state"] != "up" and bool(shown["reason"])

    until(notices, within=FREEZE, what=f"{other.name} notices the silence, and says why")
    time.sleep(max(0.0, began + FREEZE - time.monotonic()))  # the freeze itself
    end.signal(signal.SIGCONT)
    first_byte(pair.visitors, within=PROMISE)
    pair.up()
    until(
        lambda: pair.server.tunnel()["link"] == pair.client.tunnel()["link"] != link,
        within=PROMISE,
        what="both ends are on one new link",
    )
    until(lambda: len(middles[0].controls) == 1, within=PROMISE, what="one control channel is left")
    first_byte(pair.visitors, within=PROMISE)


@both_directions
def test_established_relays_survive_the_loss_of_the_control_channel(stage: Stage, direction: str) -> None:
    middles, through = listener_between(stage)
    pair = stage.pair(direction=direction, key="abcdefgh", through=through).up()
    middle = middles[0]
    with connect(pair.visitors) as visitor:
        assert ask(visitor, b"before") == b"before"
        link = pair.client.tunnel()["link"]
        assert len(middle.controls) == 1
        middle.controls[0].cut()
        assert ask(visitor, b"during") == b"during"
        until(lambda: pair.client.tunnel()["link"] not in {link, None}, within=5, what="there is a new link")
        pair.up()
        assert ask(visitor, b"after") == b"after"
        first_byte(pair.visitors, within=PROMISE)
        for end in (pair.server, pair.client):
            assert end.tunnel()["connections"]["active"] >= 1
        assert ask(visitor, b"at the end") == b"at the end"


def test_a_server_that_nobody_answers_for_shows_cooldown_and_why(stage: Stage) -> None:
    daemon = stage.up({"t": f"client://127.0.0.1:{free_port()}/127.0.0.1:1?client_cooldown=60s"})
    shown = daemon.is_in("cooldown")
    assert "refused" in shown["reason"]
    assert shown["last_error"]
    assert shown["last_error_at"]
    until(lambda: daemon.tunnel()["cooldown"]["attempt"] >= 3, within=10, what="it tries again soon")
    assert 0 <= daemon.tunnel()["cooldown"]["remaining_s"] <= 60


def test_a_name_that_does_not_resolve_is_tried_again(stage: Stage) -> None:
    daemon = stage.up({"t": "client://no-such-host.invalid:10101/127.0.0.1:1"})
    shown = daemon.is_in("cooldown", within=60)
    assert "no-such-host.invalid" in shown["reason"]


def test_a_returning_client_takes_over_its_dead_link(stage: Stage) -> None:
    target = stage.target()
    port, visitor_port = free_port(), free_port()
    server = stage.up({"t": f"server://abcdefgh@127.0.0.1:{port}/127.0.0.1:{visitor_port}?report_interval=60s"})
    url = f"client://abcdefgh@127.0.0.1:{port}/127.0.0.1:{target.port}"
    frozen = stage.url(url)
    first_byte(("127.0.0.1", visitor_port), within=5)
    link = server.tunnel()["link"]
    frozen.signal(signal.SIGSTOP)  # its kernel still says the connection is alive
    stage.url(url)
    until(lambda: server.tunnel()["link"] not in {link, None}, within=PROMISE, what="the newcomer has the link")
    first_byte(("127.0.0.1", visitor_port), within=PROMISE)
