"""Limits delay visitors but drop none; process signals end a process in order."""

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

from tests.support.peers import connect, exchange, read_stream_end, receive_exactly, round_trip, time_to_first_byte
from tests.support.ports import free_port
from tests.support.processes import ProcessHarness
from tests.support.scale import GUARD_S, time_allowed
from tests.support.waiting import wait_until

OURS = re.compile(r"/(?:orchestrator|tunnel)/(?!cli\.py\", line \d+, in <module>)")
"""A traceback line of our code after the first import; before that, Ctrl-C interrupts the interpreter itself."""

both_directions = pytest.mark.parametrize("direction", ["reverse", "forward"])


@both_directions
@pytest.mark.parametrize("limited", ["server", "client"])
def test_visitors_beyond_the_limit_wait_and_none_is_dropped(
    harness: ProcessHarness, direction: str, limited: str
) -> None:
    limit = "semaphore_limit=2"
    pair = harness.start_pair(
        direction=direction,
        server=limit if limited == "server" else "",
        client=limit if limited == "client" else "",
    ).wait_up()
    visitors = [connect(pair.visitors) for _ in range(5)]
    try:
        for number, visitor in enumerate(visitors):
            visitor.sendall(bytes([number]))
        waiting = dict(enumerate(visitors))
        while waiting:
            expected = min(2, len(waiting))
            wait_until(lambda: len(answered(waiting)) >= expected, within=5, what=f"{expected} are served")  # noqa: B023  called at once
            time.sleep(0.3)  # the time in which no other visitor may be served
            assert len(answered(waiting)) == expected, "more visitors are served at once than the limit allows"
            assert pair.ingress.tunnel()["connections"]["active"] <= 2
            for number in answered(waiting):
                assert waiting[number].recv(2) == bytes([number])
                waiting.pop(number).close()
    finally:
        for visitor in visitors:
            visitor.close()


def answered(visitors: Mapping[int, socket.socket]) -> list[int]:
    """Return the visitors that have received an answer."""
    ready = select.select(list(visitors.values()), [], [], 0)[0]
    return [number for number, sock in visitors.items() if sock in ready]


@both_directions
def test_a_burst_beyond_pool_and_queue_serves_every_visitor(harness: ProcessHarness, direction: str) -> None:
    options = "min_pool_capacity=1&max_pool_capacity=4&signal_queue_limit=8&semaphore_limit=16"
    pair = harness.start_pair(direction=direction, both=options).wait_up()
    failures: list[str] = []

    def visit(number: int) -> None:
        payload = number.to_bytes(4, "big") * 100
        try:
            if exchange(pair.visitors, payload) != payload:
                failures.append(f"{number}: wrong answer")
        except OSError as error:
            failures.append(f"{number}: {error}")

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * GUARD_S)
    assert not failures
    shown = pair.ingress.tunnel()
    assert shown["pool"]["max"] == 4
    assert shown["signals"]["limit"] == 8
    assert shown["connections"]["limit"] == 16


@both_directions
@pytest.mark.parametrize("which", ["server", "client"])
def test_sigterm_lets_a_running_relay_finish_and_refuses_new_visitors(
    harness: ProcessHarness, direction: str, which: str
) -> None:
    pair = harness.start_pair(direction=direction, both="shutdown_timeout=100s").wait_up()
    leaving = pair.server if which == "server" else pair.client
    with connect(pair.visitors) as visitor:
        assert round_trip(visitor, b"before") == b"before"
        leaving.signal(signal.SIGTERM)
        leaving.wait_for_log("drain|shutting down")
        wait_until(lambda: not is_served(pair.visitors), within=5, what="new visitors are refused")
        assert round_trip(visitor, b"during") == b"during"
        assert leaving.process.poll() is None
        visitor.shutdown(socket.SHUT_WR)
        assert read_stream_end(visitor) == "end"
    assert leaving.wait_exit(within=3) == 0


def is_served(address: tuple[str, int]) -> bool:
    """Whether a new visitor gets an answer within half a second."""
    try:
        with connect(address, timeout=0.5) as sock:
            return round_trip(sock, b"?") == b"?"
    except OSError:
        return False


@pytest.mark.parametrize("kind", ["url", "up"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_signal_ends_an_idle_process_with_status_0(
    harness: ProcessHarness, kind: str, number: signal.Signals
) -> None:
    url = f"server://127.0.0.1:{free_port()}/127.0.0.1:{free_port()}?shutdown_timeout=300s"
    command = harness.start_url(url) if kind == "url" else harness.start_daemon({"t": url})
    command.wait_for_log("listening")
    began = time.monotonic()
    command.signal(number)
    assert command.wait_exit() == 0
    assert time.monotonic() - began < time_allowed(1.5), "no visitor is connected, so there is nothing to wait for"
    assert command.stdout_text() == ""


@pytest.mark.parametrize("kind", ["url", "up"])
def test_a_second_process_signal_ends_the_process_at_once(harness: ProcessHarness, kind: str) -> None:
    target = harness.start_target()
    port, visitor_port = free_port(), free_port()
    url = f"server://127.0.0.1:{port}/127.0.0.1:{visitor_port}?shutdown_timeout=300s"
    server = harness.start_url(url) if kind == "url" else harness.start_daemon({"t": url})
    harness.start_url(f"client://127.0.0.1:{port}/127.0.0.1:{target.port}")
    time_to_first_byte(("127.0.0.1", visitor_port), within=5)
    with connect(("127.0.0.1", visitor_port)) as visitor:
        assert round_trip(visitor, b"here") == b"here"
        server.signal(signal.SIGTERM)
        server.wait_for_log("drain|shutting down")
        assert round_trip(visitor, b"still") == b"still"
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait_exit() in {0, 1}
        assert time.monotonic() - began < time_allowed(1.5)
        assert read_stream_end(visitor) in {"end", "reset"}


def test_a_drain_ends_after_the_shutdown_timeout(harness: ProcessHarness) -> None:
    pair = harness.start_pair(both="shutdown_timeout=1s").wait_up()
    with connect(pair.visitors) as visitor:
        assert round_trip(visitor, b"here") == b"here"
        began = time.monotonic()
        pair.server.signal(signal.SIGTERM)
        assert pair.server.wait_exit() == 0
        assert 0.8 < time.monotonic() - began < time_allowed(3)
        assert read_stream_end(visitor) in {"end", "reset"}


@pytest.mark.parametrize("delay", [0.03, 0.06, 0.1, 0.2, 0.4])
@pytest.mark.parametrize("kind", ["url", "up", "check"])
def test_ctrl_c_at_any_moment_of_the_start_prints_no_traceback(
    harness: ProcessHarness, kind: str, delay: float
) -> None:
    url = f"server://127.0.0.1:{free_port()}/127.0.0.1:{free_port()}"
    if kind == "url":
        command = harness.start_url(url)
    elif kind == "up":
        command = harness.start_daemon({"t": url})
    else:
        file = harness.directory / "tunnels.yaml"
        file.write_text(f"version: 1\ntunnels:\n  t: {url}\n")
        command = harness.start_command("check", str(file))
    time.sleep(delay)  # the moment of the interrupt is the subject of the test
    command.signal(signal.SIGINT)
    status = command.wait_exit()
    if "Traceback" in command.log_text() and not OURS.search(command.log_text()):
        harness.commands.remove(command)
        pytest.skip("the interpreter itself was still starting, and its traceback is not ours")
    assert status in {0, 130, -signal.SIGINT}


def test_descriptors_are_released_after_many_visitors(harness: ProcessHarness) -> None:
    pair = harness.start_pair(lambda sock: sock.sendall(receive_exactly(sock, 4))).wait_up()
    exchange(pair.visitors, b"warm")
    for end in (pair.server, pair.client):
        wait_until(lambda: end.tunnel()["pool"]["idle"] >= 1, within=5, what="the pool is filled")  # noqa: B023  called at once
    before = {end.name: descriptors(end.pid) for end in (pair.server, pair.client)}
    for _ in range(300):
        exchange(pair.visitors, b"four")
    for end in (pair.server, pair.client):
        slack = pair.server.tunnel()["pool"]["capacity"] + 16  # the pool may have grown, and pipes are kept for reuse
        wait_until(
            lambda: descriptors(end.pid) <= before[end.name] + slack,  # noqa: B023  called at once
            within=5,
            what=f"{end.name} releases descriptors",
        )


def descriptors(pid: int) -> int:
    """Return the number of open descriptors of a process."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
