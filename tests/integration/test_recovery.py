"""Recovery when an end starts late, dies, freezes or loses its control channel."""

from __future__ import annotations

import signal
import time

import pytest

from tests.support.interception import InterceptingProxy
from tests.support.peers import Address, connect, round_trip, time_to_first_byte
from tests.support.ports import free_port
from tests.support.processes import Command, ProcessHarness
from tests.support.scale import IS_FULL_SCALE
from tests.support.waiting import wait_until

RECOVERY_S = 2.0
"""Seconds from the start of the second end, or of an end that returns, to the first byte."""
FREEZE_S = 20.0 if IS_FULL_SCALE else 2.0
INTERVAL = "1s" if IS_FULL_SCALE else "200ms"

both_directions = pytest.mark.parametrize("direction", ["reverse", "forward"])


class RestartableEnds:
    """Two processes, each with one URL, that can be started in any order and restarted."""

    def __init__(self, harness: ProcessHarness, direction: str, key: str = "abcdefgh") -> None:
        self.harness = harness
        self.target = harness.start_target()
        port, visitor_port = free_port(), free_port()
        self.visitors: Address = ("127.0.0.1", visitor_port)
        ingress, egress = f"127.0.0.1:{visitor_port}", f"127.0.0.1:{self.target.port}"
        ends = (ingress, egress) if direction == "reverse" else (egress, ingress)
        self.urls = {
            "server": f"server://{key}@127.0.0.1:{port}/{ends[0]}?mode={direction}",
            "client": f"client://{key}@127.0.0.1:{port}/{ends[1]}",
        }

    def start(self, which: str) -> Command:
        return self.harness.start_url(self.urls[which])


@both_directions
@pytest.mark.parametrize("first", ["server", "client"])
def test_either_end_may_start_first(harness: ProcessHarness, direction: str, first: str) -> None:
    ends = RestartableEnds(harness, direction)
    second = "client" if first == "server" else "server"
    command = ends.start(first)
    command.wait_for_log("listening" if first == "server" else "cooldown|connect|refused")
    ends.start(second)
    time_to_first_byte(ends.visitors, within=RECOVERY_S)


@both_directions
def test_a_client_that_waited_long_connects_within_its_cooldown(harness: ProcessHarness, direction: str) -> None:
    ends = RestartableEnds(harness, direction)
    client = ends.start("client")
    client.wait_for_log("cooldown|refused")
    time.sleep(3)  # the wait under test: the intervals between attempts grow
    ends.start("server")
    time_to_first_byte(ends.visitors, within=5 + RECOVERY_S)  # CLIENT_COOLDOWN with full jitter, then the recovery time


@both_directions
@pytest.mark.parametrize("victim", ["server", "client"])
def test_an_end_that_is_killed_and_restarted_carries_traffic(
    harness: ProcessHarness, direction: str, victim: str
) -> None:
    ends = RestartableEnds(harness, direction)
    commands = {which: ends.start(which) for which in ("server", "client")}
    time_to_first_byte(ends.visitors, within=5)
    for _ in range(3):
        commands[victim].kill()
        commands[victim] = ends.start(victim)
        time_to_first_byte(ends.visitors, within=RECOVERY_S)
    for command in commands.values():
        assert "in use" not in command.log_text()


@both_directions
@pytest.mark.parametrize("victim", ["server", "client"])
def test_an_end_that_freezes_and_resumes_leaves_exactly_one_link(
    harness: ProcessHarness, direction: str, victim: str
) -> None:
    proxy = harness.close_at_end(InterceptingProxy())
    pair = harness.start_pair(
        direction=direction, both=f"report_interval={INTERVAL}", key="abcdefgh", through=proxy.intercept
    ).wait_up()
    time_to_first_byte(pair.visitors, within=RECOVERY_S)
    end, other = (pair.server, pair.client) if victim == "server" else (pair.client, pair.server)
    link = other.tunnel()["link"]
    end.signal(signal.SIGSTOP)
    began = time.monotonic()

    def is_noticed() -> bool:
        shown = other.tunnel()
        return shown["state"] != "up" and bool(shown["reason"])

    wait_until(is_noticed, within=FREEZE_S, what=f"{other.name} notices the silence and shows a reason")
    time.sleep(max(0.0, began + FREEZE_S - time.monotonic()))  # the freeze under test
    end.signal(signal.SIGCONT)
    time_to_first_byte(pair.visitors, within=RECOVERY_S)
    pair.wait_up()
    wait_until(
        lambda: pair.server.tunnel()["link"] == pair.client.tunnel()["link"] != link,
        within=RECOVERY_S,
        what="both ends are on one new link",
    )
    wait_until(lambda: len(proxy.controls) == 1, within=RECOVERY_S, what="one control channel is left")
    time_to_first_byte(pair.visitors, within=RECOVERY_S)


@both_directions
def test_relays_survive_the_loss_of_the_control_channel(harness: ProcessHarness, direction: str) -> None:
    proxy = harness.close_at_end(InterceptingProxy())
    pair = harness.start_pair(direction=direction, key="abcdefgh", through=proxy.intercept).wait_up()
    with connect(pair.visitors) as visitor:
        assert round_trip(visitor, b"before") == b"before"
        link = pair.client.tunnel()["link"]
        assert len(proxy.controls) == 1
        proxy.controls[0].cut()
        assert round_trip(visitor, b"during") == b"during"
        wait_until(lambda: pair.client.tunnel()["link"] not in {link, None}, within=5, what="there is a new link")
        pair.wait_up()
        assert round_trip(visitor, b"after") == b"after"
        time_to_first_byte(pair.visitors, within=RECOVERY_S)
        for end in (pair.server, pair.client):
            assert end.tunnel()["connections"]["active"] >= 1
        assert round_trip(visitor, b"at the end") == b"at the end"


def test_a_client_without_a_server_shows_cooldown_with_the_reason(harness: ProcessHarness) -> None:
    daemon = harness.start_daemon({"t": f"client://127.0.0.1:{free_port()}/127.0.0.1:1?client_cooldown=60s"})
    shown = daemon.wait_state("cooldown")
    assert "refused" in shown["reason"]
    assert shown["last_error"]
    assert shown["last_error_at"]
    wait_until(lambda: daemon.tunnel()["cooldown"]["attempt"] >= 3, within=10, what="the client retries soon")
    assert 0 <= daemon.tunnel()["cooldown"]["remaining_s"] <= 60


def test_a_name_that_does_not_resolve_shows_cooldown_with_the_name(harness: ProcessHarness) -> None:
    daemon = harness.start_daemon({"t": "client://no-such-host.invalid:10101/127.0.0.1:1?auth=open"})
    shown = daemon.wait_state("cooldown", within=60)
    assert "no-such-host.invalid" in shown["reason"]


def test_a_returning_client_takes_over_from_its_frozen_predecessor(harness: ProcessHarness) -> None:
    target = harness.start_target()
    port, visitor_port = free_port(), free_port()
    server = harness.start_daemon(
        {"t": f"server://abcdefgh@127.0.0.1:{port}/127.0.0.1:{visitor_port}?report_interval=60s"}
    )
    url = f"client://abcdefgh@127.0.0.1:{port}/127.0.0.1:{target.port}"
    frozen = harness.start_url(url)
    time_to_first_byte(("127.0.0.1", visitor_port), within=5)
    link = server.tunnel()["link"]
    frozen.signal(signal.SIGSTOP)  # the kernel of the frozen process keeps the connection alive
    harness.start_url(url)
    wait_until(
        lambda: server.tunnel()["link"] not in {link, None}, within=RECOVERY_S, what="the new client has the link"
    )
    time_to_first_byte(("127.0.0.1", visitor_port), within=RECOVERY_S)
