"""SIGTERM under load: connected visitors finish, none is closed within the limit, and the process exits with 0."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable

import pytest

from tests.faults.conftest import FigureRecorder
from tests.support.peers import Address, connect, read_stream_end, receive_exactly, round_trip
from tests.support.processes import ProcessHarness
from tests.support.scale import GUARD_S, IS_FULL_SCALE
from tests.support.waiting import wait_until

SHUTDOWN_TIMEOUT_S = 10.0 if IS_FULL_SCALE else 2 * GUARD_S
"""SHUTDOWN_TIMEOUT in seconds."""
STAY_S = 3.0 if IS_FULL_SCALE else 1.0
"""Seconds for which visitors stay connected after the process signal."""
LONG_VISITORS = 50 if IS_FULL_SCALE else 10
SHORT_VISITOR_THREADS = 8 if IS_FULL_SCALE else 3


class VisitorLoad:
    """Long-lived visitors, and short visits in quick succession until the port is closed."""

    def __init__(self, address: Address) -> None:
        self.served = 0
        self.failures: list[str] = []
        self._address = address
        self._finishing = threading.Event()
        self._closed = threading.Event()
        self._short_threads: list[threading.Thread] = []
        self._long_threads = [self._start(self._stay_connected) for _ in range(LONG_VISITORS)]
        self._short_threads = [self._start(self._visit_repeatedly) for _ in range(SHORT_VISITOR_THREADS)]

    def connect_more(self, count: int) -> None:
        """Connect ``count`` more visitors; their connections are in the backlog when this returns."""
        for _ in range(count):
            sock = connect(self._address)
            sock.sendall(b"?")
            self._short_threads.append(self._start(lambda sock=sock: self._visit(sock)))  # type: ignore[misc]  # mypy does not infer defaults of lambdas

    def stop_short_visits(self) -> None:
        """Start no more short visits and wait until the current ones are served."""
        self._closed.set()
        for thread in self._short_threads:
            thread.join(2 * GUARD_S)

    def finish(self) -> None:
        """Let the long-lived visitors end their streams."""
        self._finishing.set()
        for thread in (*self._long_threads, *self._short_threads):
            thread.join(2 * GUARD_S)

    @staticmethod
    def _start(work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    def _stay_connected(self) -> None:
        with connect(self._address) as sock:
            try:
                while not self._finishing.wait(0.05):
                    token = os.urandom(64)
                    assert round_trip(sock, token) == token
                sock.shutdown(socket.SHUT_WR)
                assert read_stream_end(sock) == "end"
                self.served += 1
            except (OSError, AssertionError) as error:
                self.failures.append(f"long-lived visitor: {error!r}")

    def _visit_repeatedly(self) -> None:
        while not self._closed.is_set():
            try:
                sock = connect(self._address)
                sock.sendall(b"?")
            except OSError:
                return  # the port is closed
            self._visit(sock)

    def _visit(self, sock: socket.socket) -> None:
        with sock:
            try:
                assert receive_exactly(sock, 1) == b"?"
                self.served += 1
            except (OSError, AssertionError) as error:
                self.failures.append(f"short visit: {error!r}")
                self._closed.set()


@pytest.mark.case("SIGTERM under load", deadline=60)
@pytest.mark.parametrize("which", ["ingress", "egress"])
@pytest.mark.parametrize("direction", ["reverse", pytest.param("forward", marks=pytest.mark.slow)])
def test_sigterm_lets_every_visitor_finish(
    harness: ProcessHarness, record_figure: FigureRecorder, direction: str, which: str
) -> None:
    """Every connected visitor is served to the end, those still in the backlog included; then the exit status is 0.

    The ingress is stopped (SIGSTOP) while visitors connect, so that they are in the backlog when SIGTERM arrives. When
    the egress ends, new visitors would wait for another egress, so short visits stop before the process signal.

    Seen to fail: with an engine that does not wait for its drain no visitor is served to the end. With the tunnel port
    of a reverse server closed at once, visitors that wait for a data connection are never served.
    """
    pair = harness.start_pair(direction=direction, both=f"shutdown_timeout={SHUTDOWN_TIMEOUT_S:g}s").wait_up(within=15)
    is_server = (which == "ingress") is (direction == "reverse")
    end = pair.server if is_server else pair.client
    load = VisitorLoad(pair.visitors)
    wait_until(lambda: load.served > 20, within=10, what=f"visitors come and go; {load.failures}")
    if which == "egress":
        load.stop_short_visits()
        end.signal(signal.SIGTERM)
    else:
        end.signal(signal.SIGSTOP)
        load.connect_more(5)
        end.signal(signal.SIGTERM)
        end.signal(signal.SIGCONT)
    time.sleep(STAY_S)  # the drain under test, with connected visitors
    assert end.process.poll() is None
    load.finish()
    left = time.monotonic()
    assert end.wait_exit(within=5) == 0
    took = time.monotonic() - left
    assert load.failures == []
    record_figure(f"{load.served} served, none closed early, ended {took:.1f} s after the last visitor")


@pytest.mark.case("a second SIGTERM under load", deadline=60)
def test_a_second_sigterm_ends_the_process_at_once(harness: ProcessHarness, record_figure: FigureRecorder) -> None:
    """The process ends at once with status 0, whatever visitors are connected.

    Seen to fail: if every process signal only starts a drain, the process stays until its shutdown timeout.
    """
    pair = harness.start_pair(both="shutdown_timeout=300s").wait_up(within=15)
    with contextlib.ExitStack() as connections:
        visitors = [connections.enter_context(connect(pair.visitors)) for _ in range(LONG_VISITORS)]
        for visitor in visitors:
            assert round_trip(visitor, b"here") == b"here"
        pair.server.signal(signal.SIGTERM)
        pair.server.wait_for_log("shutting down")
        assert round_trip(visitors[0], b"still") == b"still"
        began = time.monotonic()
        pair.server.signal(signal.SIGTERM)
        assert pair.server.wait_exit(within=3) == 0
        took = time.monotonic() - began
        assert {read_stream_end(visitor) for visitor in visitors} <= {"end", "reset"}
        pair.server.wait_for_log(f"{LONG_VISITORS} visitors were disconnected")
    record_figure(f"ended after {took:.2f} s with {LONG_VISITORS} visitors, status 0")
