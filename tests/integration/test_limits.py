"""Limits make visitors wait, not lose; signals end a process in order."""

from __future__ import annotations

import re
import select
import signal
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.integration.harness import Stage, until
from tests.integration.peers import ask, connect, ending, exchange, first_byte, receive
from tests.ports import free_port
from tests.scale import GUARD, allowed

OURS = re.compile(r"/(?:orchestrator|tunnel)/(?!cli\.py\", line \d+, in <module>)")
"""A line of a traceback in our code, after the first import of all: until then Ctrl-C is the interpreter's own."""

both_directions = pytest.mark.parametrize("direction", ["reverse", "forward"])


@both_directions
@pytest.mark.parametrize("limited", ["server", "client"])
def test_visitors_beyond_the_limit_wait_and_none_is_dropped(stage: Stage, direction: str, limited: str) -> None:
    limit = "semaphore_limit=2"
    pair = stage.pair(
        direction=direction,
        server=limit if limited == "server" else "",
        client=limit if limited == "client" else "",
    ).up()
    visitors = [connect(pair.visitors) for _ in range(5)]
    try:
        for number, visitor in enumerate(visitors):
            visitor.sendall(bytes([number]))
        waiting = dict(enumerate(visitors))
        while waiting:
            expected = min(2, len(waiting))
            until(lambda: len(answered(waiting)) >= expected, within=5, what=f"{expected} are served")  # noqa: B023  called at once
            assert len(answered(waiting, 0.3)) == expected, "no more of them at once"
            assert pair.entrance.tunnel()["connections"]["active"] <= 2
            for number in answered(waiting):
                assert waiting[number].recv(2) == bytes([number])
                waiting.pop(number).close()
    finally:
        for visitor in visitors:
            visitor.close()


def answered(visitors: Mapping[int, socket.socket], after: float = 0.0) -> list[int]:
    """Who has an answer, now or after so many seconds."""
    time.sleep(after)  # in which nobody else is to get one
    ready = select.select(list(visitors.values()), [], [], 0)[0]
    return [number for number, sock in visitors.items() if sock in ready]


@both_directions
def test_a_rush_beyond_pool_and_queue_serves_everybody(stage: Stage, direction: str) -> None:
    options = "min_pool_capacity=1&max_pool_capacity=4&signal_queue_limit=8&semaphore_limit=16"
    pair = stage.pair(direction=direction, both=options).up()
    failures: list[str] = []

    def visit(number: int) -> None:
        payload = number.to_bytes(4, "big") * 100
        try:
            if exchange(pair.visitors, payload) != payload:
                failures.append(f"{number}: another answer")
        except OSError as error:
            failures.append(f"{number}: {error}")

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * GUARD)
    assert not failures
    shown = pair.entrance.tunnel()
    assert shown["pool"]["max"] == 4
    assert shown["signals"]["limit"] == 8
    assert shown["connections"]["limit"] == 16


@both_directions
@pytest.mark.parametrize("which", ["server", "client"])
def test_sigterm_lets_a_running_relay_finish_and_refuses_new_visitors(stage: Stage, direction: str, which: str) -> None:
    pair = stage.pair(direction=direction, both="shutdown_timeout=100s").up()
    leaving = pair.server if which == "server" else pair.client
    with connect(pair.visitors) as visitor:
        assert ask(visitor, b"before") == b"before"
        leaving.signal(signal.SIGTERM)
        leaving.says("drain|shutting down")
        until(lambda: not is_served(pair.visitors), within=5, what="new visitors are refused")
        assert ask(visitor, b"during") == b"during"
        assert leaving.process.poll() is None
        visitor.shutdown(socket.SHUT_WR)
        assert ending(visitor) == "end"
    assert leaving.ends(within=3) == 0


def is_served(address: tuple[str, int]) -> bool:
    """Whether a new visitor gets an answer soon."""
    try:
        with connect(address, timeout=0.5) as sock:
            return ask(sock, b"?") == b"?"
    except OSError:
        return False


@pytest.mark.parametrize("kind", ["url", "up"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_process_with_0(stage: Stage, kind: str, number: signal.Signals) -> None:
    url = f"server://127.0.0.1:{free_port()}/127.0.0.1:{free_port()}?shutdown_timeout=300s"
    command = stage.url(url) if kind == "url" else stage.up({"t": url})
    command.says("listening")
    began = time.monotonic()
    command.signal(number)
    assert command.ends() == 0
    assert time.monotonic() - began < allowed(1.5), "there is nobody to wait for"
    assert command.printed() == ""


@pytest.mark.parametrize("kind", ["url", "up"])
def test_a_second_signal_ends_at_once(stage: Stage, kind: str) -> None:
    target = stage.target()
    port, visitor_port = free_port(), free_port()
    url = f"server://127.0.0.1:{port}/127.0.0.1:{visitor_port}?shutdown_timeout=300s"
    server = stage.url(url) if kind == "url" else stage.up({"t": url})
    stage.url(f"client://127.0.0.1:{port}/127.0.0.1:{target.port}")
    first_byte(("127.0.0.1", visitor_port), within=5)
    with connect(("127.0.0.1", visitor_port)) as visitor:
        assert ask(visitor, b"here") == b"here"
        server.signal(signal.SIGTERM)
        server.says("drain|shutting down")
        assert ask(visitor, b"still") == b"still"
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.ends() in {0, 1}
        assert time.monotonic() - began < allowed(1.5)
        assert ending(visitor) in {"end", "reset"}


def test_a_drain_has_an_end(stage: Stage) -> None:
    pair = stage.pair(both="shutdown_timeout=1s").up()
    with connect(pair.visitors) as visitor:
        assert ask(visitor, b"here") == b"here"
        began = time.monotonic()
        pair.server.signal(signal.SIGTERM)
        assert pair.server.ends() == 0
        assert 0.8 < time.monotonic() - began < allowed(3)
        assert ending(visitor) in {"end", "reset"}


@pytest.mark.parametrize("delay", [0.03, 0.06, 0.1, 0.2, 0.4])
@pytest.mark.parametrize("kind", ["url", "up", "check"])
def test_ctrl_c_at_any_moment_of_the_start_is_no_traceback(stage: Stage, kind: str, delay: float) -> None:
    url = f"server://127.0.0.1:{free_port()}/127.0.0.1:{free_port()}"
    if kind == "url":
        command = stage.url(url)
    elif kind == "up":
        command = stage.up({"t": url})
    else:
        file = stage.directory / "tunnels.yaml"
        file.write_text(f"version: 1\ntunnels:\n  t: {url}\n")
        command = stage.run("check", str(file))
    time.sleep(delay)  # the moment is what is tested
    command.signal(signal.SIGINT)
    status = command.ends()
    if "Traceback" in command.said() and not OURS.search(command.said()):
        stage.commands.remove(command)
        pytest.skip("the interpreter was still starting itself: what it says then is not ours")
    assert status in {0, 130, -signal.SIGINT}


def test_descriptors_go_back_to_what_they_were(stage: Stage) -> None:
    pair = stage.pair(lambda sock: sock.sendall(receive(sock, 4))).up()
    exchange(pair.visitors, b"warm")
    time.sleep(0.5)  # the pool refills
    before = {end.name: descriptors(end.pid) for end in (pair.server, pair.client)}
    for _ in range(300):
        exchange(pair.visitors, b"four")
    for end in (pair.server, pair.client):
        slack = pair.server.tunnel()["pool"]["capacity"] + 16  # a pool that grew, pipes kept for reuse
        until(
            lambda: descriptors(end.pid) <= before[end.name] + slack,  # noqa: B023  called at once
            within=5,
            what=f"{end.name} gives descriptors back",
        )


def descriptors(pid: int) -> int:
    """How many descriptors a process holds."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
