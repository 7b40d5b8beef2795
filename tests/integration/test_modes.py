"""Which end accepts visitors, and what users see when options or addresses are wrong."""

from __future__ import annotations

import socket

import pytest

from tests.support.peers import exchange, time_to_first_byte
from tests.support.ports import free_port
from tests.support.processes import ProcessHarness
from tests.support.waiting import wait_until


@pytest.mark.parametrize(("direction", "other"), [("reverse", "forward"), ("forward", "reverse")])
def test_ends_that_disagree_on_the_direction_log_it_at_both_ends(
    harness: ProcessHarness, direction: str, other: str
) -> None:
    pair = harness.start_pair(direction=direction, client=f"mode={other}", key="abcdefgh")
    for end in (pair.server, pair.client):
        line = end.wait_for_log("mode")
        assert direction in line
        assert other in line
    assert pair.server.tunnel()["state"] != "up"
    wait_until(lambda: pair.client.tunnel()["state"] in {"cooldown", "failed"}, within=5, what="the client is not up")


@pytest.mark.parametrize("mode", ["auto", "0", "reverse", "1"])
def test_a_server_with_a_local_target_address_accepts_visitors(harness: ProcessHarness, mode: str) -> None:
    target = harness.start_target()
    port, visitor_port = free_port(), free_port()
    server = harness.start_daemon({"t": f"server://127.0.0.1:{port}/127.0.0.1:{visitor_port}?mode={mode}"})
    client = harness.start_daemon({"t": f"client://127.0.0.1:{port}/127.0.0.1:{target.port}"})
    time_to_first_byte(("127.0.0.1", visitor_port), within=5)
    assert server.tunnel()["direction"] == client.wait_state("up")["direction"] == "reverse"


@pytest.mark.parametrize("host", ["0.0.0.0", "", "localhost", "[::]"])
def test_every_spelling_of_this_host_selects_reverse(harness: ProcessHarness, host: str) -> None:
    target = harness.start_target()
    port, visitor_port = free_port(), free_port()
    harness.start_daemon({"t": f"server://127.0.0.1:{port}/{host}:{visitor_port}?auth=open"})
    harness.start_daemon({"t": f"client://127.0.0.1:{port}/127.0.0.1:{target.port}"})
    time_to_first_byte(("127.0.0.1", visitor_port), within=5)


@pytest.mark.parametrize("mode", ["forward", "2"])
def test_a_server_in_forward_mode_dials_its_own_address(harness: ProcessHarness, mode: str) -> None:
    target = harness.start_target()
    port, visitor_port = free_port(), free_port()
    server = harness.start_daemon({"t": f"server://127.0.0.1:{port}/127.0.0.1:{target.port}?mode={mode}"})
    client = harness.start_daemon({"t": f"client://127.0.0.1:{port}/127.0.0.1:{visitor_port}"})
    time_to_first_byte(("127.0.0.1", visitor_port), within=5)
    assert server.wait_state("up")["direction"] == client.wait_state("up")["direction"] == "forward"


def test_the_client_learns_the_direction_from_the_server(harness: ProcessHarness) -> None:
    for direction in ("reverse", "forward"):
        pair = harness.start_pair(direction=direction).wait_up()
        assert exchange(pair.visitors, b"hello") == b"hello"
        assert pair.client.tunnel()["direction"] == direction


def test_a_target_address_in_use_suggests_mode_forward(harness: ProcessHarness) -> None:
    """The likely intention: the service runs on this host and the tunnel should forward to it."""
    target = harness.start_target()
    server = harness.start_daemon({"t": f"server://127.0.0.1:{free_port()}/127.0.0.1:{target.port}"})
    line = server.wait_for_log("in use")
    assert "mode=forward" in line
    assert str(target.port) in line
    assert "mode=forward" in server.wait_state("cooldown")["reason"]


def test_a_tunnel_address_in_use_is_reported_and_retried(harness: ProcessHarness) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        server = harness.start_daemon({"t": f"server://127.0.0.1:{port}/127.0.0.1:{free_port()}?server_cooldown=300ms"})
        line = server.wait_for_log("in use")
        assert str(port) in line
        server.wait_state("cooldown")
    server.wait_state("waiting")


def test_a_visitor_address_in_use_is_reported_at_the_client(harness: ProcessHarness) -> None:
    visitor_port = free_port()
    with socket.create_server(("127.0.0.1", visitor_port)):
        target = harness.start_target()
        port = free_port()
        harness.start_daemon({"t": f"server://127.0.0.1:{port}/127.0.0.1:{target.port}?mode=forward"})
        client = harness.start_daemon(
            {"t": f"client://127.0.0.1:{port}/127.0.0.1:{visitor_port}?client_cooldown=300ms"}
        )
        client.wait_for_log("in use")
    time_to_first_byte(("127.0.0.1", visitor_port), within=5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("server://127.0.0.1:1", "target address"),
        ("http://127.0.0.1:1/127.0.0.1:2", "server://"),
        ("server://127.0.0.1:1/127.0.0.1:2?lof=debug", "did you mean 'log'"),
        ("server://127.0.0.1:99999/127.0.0.1:2", "99999"),
        ("server://127.0.0.1:1/127.0.0.1:2?report_interval=5", "5s"),
    ],
)
def test_an_invalid_url_prints_one_sentence_and_exits_with_2(harness: ProcessHarness, text: str, words: str) -> None:
    command = harness.start_url(text)
    assert command.wait_exit() == 2
    assert words in command.log_text()
    assert command.stdout_text() == ""
    assert len(command.log_text().splitlines()) <= 3


@pytest.mark.parametrize(("name", "value"), [("CLIENT_COOLDOWN", "5x"), ("MIN_POOL_CAPACITY", "-1")])
def test_an_invalid_environment_variable_prints_one_sentence_and_exits_with_2(
    harness: ProcessHarness, name: str, value: str
) -> None:
    command = harness.start_url("client://127.0.0.1:1/127.0.0.1:2", env={name: value})
    assert command.wait_exit() == 2
    assert name in command.log_text()


def test_environment_variables_set_the_limits_and_the_url_overrides_them(harness: ProcessHarness) -> None:
    daemon = harness.start_daemon(
        {"t": f"server://127.0.0.1:{free_port()}/127.0.0.1:{free_port()}?signal_queue_limit=33"},
        env={
            "MAX_POOL_CAPACITY": "2048",
            "MIN_POOL_CAPACITY": "16",
            "SEMAPHORE_LIMIT": "2048",
            "SIGNAL_QUEUE_LIMIT": "44",
        },
    )
    shown = daemon.wait_state("waiting")
    assert (shown["pool"]["min"], shown["pool"]["max"]) == (16, 2048)
    assert shown["connections"]["limit"] == 2048
    assert shown["signals"]["limit"] == 33
