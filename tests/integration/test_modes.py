"""Who accepts visitors, and what a wrong idea of it looks like."""

from __future__ import annotations

import socket

import pytest

from tests.integration.harness import Stage, until
from tests.integration.peers import exchange, first_byte
from tests.ports import free_port


@pytest.mark.parametrize(("direction", "other"), [("reverse", "forward"), ("forward", "reverse")])
def test_ends_that_disagree_on_the_direction_say_so_at_both(stage: Stage, direction: str, other: str) -> None:
    pair = stage.pair(direction=direction, client=f"mode={other}", key="abcdefgh")
    for end in (pair.server, pair.client):
        line = end.says("mode")
        assert direction in line
        assert other in line
    assert pair.server.tunnel()["state"] != "up"
    until(lambda: pair.client.tunnel()["state"] in {"cooldown", "failed"}, within=5, what="the client is not up")


@pytest.mark.parametrize("mode", ["auto", "0", "reverse", "1"])
def test_a_server_with_an_address_of_its_own_accepts_visitors(stage: Stage, mode: str) -> None:
    target = stage.target()
    port, visitor_port = free_port(), free_port()
    server = stage.up({"t": f"server://127.0.0.1:{port}/127.0.0.1:{visitor_port}?mode={mode}"})
    client = stage.up({"t": f"client://127.0.0.1:{port}/127.0.0.1:{target.port}"})
    first_byte(("127.0.0.1", visitor_port), within=5)
    assert server.tunnel()["direction"] == client.is_in("up")["direction"] == "reverse"


@pytest.mark.parametrize("host", ["0.0.0.0", "", "localhost", "[::]"])
def test_every_way_of_writing_this_host_is_reverse(stage: Stage, host: str) -> None:
    target = stage.target()
    port, visitor_port = free_port(), free_port()
    stage.up({"t": f"server://127.0.0.1:{port}/{host}:{visitor_port}"})
    stage.up({"t": f"client://127.0.0.1:{port}/127.0.0.1:{target.port}"})
    first_byte(("127.0.0.1", visitor_port), within=5)


@pytest.mark.parametrize("mode", ["forward", "2"])
def test_a_server_told_so_dials_its_own_address(stage: Stage, mode: str) -> None:
    target = stage.target()
    port, visitor_port = free_port(), free_port()
    server = stage.up({"t": f"server://127.0.0.1:{port}/127.0.0.1:{target.port}?mode={mode}"})
    client = stage.up({"t": f"client://127.0.0.1:{port}/127.0.0.1:{visitor_port}"})
    first_byte(("127.0.0.1", visitor_port), within=5)
    assert server.is_in("up")["direction"] == client.is_in("up")["direction"] == "forward"


def test_the_client_is_told_the_direction_and_needs_no_mode(stage: Stage) -> None:
    for direction in ("reverse", "forward"):
        pair = stage.pair(direction=direction).up()
        assert exchange(pair.visitors, b"told") == b"told"
        assert pair.client.tunnel()["direction"] == direction


def test_a_target_address_in_use_names_mode_forward(stage: Stage) -> None:
    """The likely wish: the service runs on this very host and the tunnel should lead to it."""
    target = stage.target()
    server = stage.up({"t": f"server://127.0.0.1:{free_port()}/127.0.0.1:{target.port}"})
    line = server.says("in use")
    assert "mode=forward" in line
    assert str(target.port) in line
    assert "mode=forward" in server.is_in("cooldown")["reason"]


def test_a_tunnel_address_in_use_is_said_and_tried_again(stage: Stage) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        server = stage.up({"t": f"server://127.0.0.1:{port}/127.0.0.1:{free_port()}?server_cooldown=300ms"})
        line = server.says("in use")
        assert str(port) in line
        server.is_in("cooldown")
    server.is_in("waiting")


def test_a_clients_visitor_address_in_use_is_said_at_the_client(stage: Stage) -> None:
    visitor_port = free_port()
    with socket.create_server(("127.0.0.1", visitor_port)):
        target = stage.target()
        port = free_port()
        stage.up({"t": f"server://127.0.0.1:{port}/127.0.0.1:{target.port}?mode=forward"})
        client = stage.up({"t": f"client://127.0.0.1:{port}/127.0.0.1:{visitor_port}?client_cooldown=300ms"})
        client.says("in use")
    first_byte(("127.0.0.1", visitor_port), within=5)


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
def test_a_url_that_cannot_be_is_one_sentence_and_exit_2(stage: Stage, text: str, words: str) -> None:
    command = stage.url(text)
    assert command.ends() == 2
    assert words in command.said()
    assert command.printed() == ""
    assert len(command.said().splitlines()) <= 3


@pytest.mark.parametrize(("name", "value"), [("CLIENT_COOLDOWN", "5x"), ("MIN_POOL_CAPACITY", "-1")])
def test_a_variable_that_makes_no_sense_is_one_sentence_and_exit_2(stage: Stage, name: str, value: str) -> None:
    command = stage.url("client://127.0.0.1:1/127.0.0.1:2", env={name: value})
    assert command.ends() == 2
    assert name in command.said()


def test_variables_of_the_environment_are_obeyed(stage: Stage) -> None:
    daemon = stage.up(
        {"t": f"server://127.0.0.1:{free_port()}/127.0.0.1:{free_port()}?signal_queue_limit=33"},
        env={
            "MAX_POOL_CAPACITY": "2048",
            "MIN_POOL_CAPACITY": "16",
            "SEMAPHORE_LIMIT": "2048",
            "SIGNAL_QUEUE_LIMIT": "44",
        },
    )
    shown = daemon.is_in("waiting")
    assert (shown["pool"]["min"], shown["pool"]["max"]) == (16, 2048)
    assert shown["connections"]["limit"] == 2048
    assert shown["signals"]["limit"] == 33
