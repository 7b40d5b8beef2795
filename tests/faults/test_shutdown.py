"""SIGTERM under load: who is here finishes, nobody is cut within the limit, and the process ends with 0."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable

import pytest

from tests.faults.conftest import Figure
from tests.integration.harness import Stage, until
from tests.integration.peers import Address, ask, connect, ending, receive
from tests.scale import FULL, GUARD

LIMIT = 10.0 if FULL else 2 * GUARD
"""SHUTDOWN_TIMEOUT in seconds."""
STAY = 3.0 if FULL else 1.0
"""Seconds for which visitors stay after the signal."""
STAYING = 50 if FULL else 10
COMING = 8 if FULL else 3


class Load:
    """Visitors who stay, and others who come and go as fast as they are served, until there is no door any more."""

    def __init__(self, address: Address) -> None:
        self.served = 0
        self.cut: list[str] = []
        self._address = address
        self._leaving = threading.Event()
        self._closed = threading.Event()
        self._comers: list[threading.Thread] = []
        self._stayers = [self._begin(self._stay) for _ in range(STAYING)]
        self._comers = [self._begin(self._come_and_go) for _ in range(COMING)]

    def knock(self, count: int) -> None:
        """So many more come, whose connections the kernel alone has made when this returns."""
        for _ in range(count):
            sock = connect(self._address)
            sock.sendall(b"?")
            self._comers.append(self._begin(lambda sock=sock: self._visit(sock)))  # type: ignore[misc]  # each its own

    def come_no_more(self) -> None:
        """Nobody else comes; those under way are served."""
        self._closed.set()
        for thread in self._comers:
            thread.join(2 * GUARD)

    def leave(self) -> None:
        """Everybody who stays takes his leave."""
        self._leaving.set()
        for thread in (*self._stayers, *self._comers):
            thread.join(2 * GUARD)

    @staticmethod
    def _begin(work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    def _stay(self) -> None:
        with connect(self._address) as sock:
            try:
                while not self._leaving.wait(0.05):
                    token = os.urandom(64)
                    assert ask(sock, token) == token
                sock.shutdown(socket.SHUT_WR)
                assert ending(sock) == "end"
                self.served += 1
            except (OSError, AssertionError) as error:
                self.cut.append(f"one who stayed: {error!r}")

    def _come_and_go(self) -> None:
        while not self._closed.is_set():
            try:
                sock = connect(self._address)
                sock.sendall(b"?")
            except OSError:
                return  # there is no door any more
            self._visit(sock)

    def _visit(self, sock: socket.socket) -> None:
        with sock:
            try:
                assert receive(sock, 1) == b"?"
                self.served += 1
            except (OSError, AssertionError) as error:
                self.cut.append(f"one who came: {error!r}")
                self._closed.set()


@pytest.mark.case("SIGTERM under load", deadline=60)
@pytest.mark.parametrize("which", ["entrance", "exit"])
@pytest.mark.parametrize("direction", ["reverse", pytest.param("forward", marks=pytest.mark.slow)])
def test_sigterm(stage: Stage, figure: Figure, direction: str, which: str) -> None:
    """Whoever had a connection is served to the end, also who came in the very moment; then it ends, with 0.

    The entrance is stopped while some connect, so that the signal finds them before an accept loop that has not seen
    them. (With the exit gone new visitors wait for another one: they come no more when it is told to go.) With a drain
    that cuts (``Engine.run`` not waiting for ``_drain``) nobody is served to the end; with a reverse server's door
    closed at once (``Engine._drain`` without ``has_queue``) those who wait for a data connection wait in vain.
    """
    pair = stage.pair(direction=direction, both=f"shutdown_timeout={LIMIT:g}s").up(within=15)
    is_server = (which == "entrance") is (direction == "reverse")
    end = pair.server if is_server else pair.client
    load = Load(pair.visitors)
    until(lambda: load.served > 20, within=10, what=f"visitors come and go; {load.cut}")
    if which == "exit":
        load.come_no_more()
        end.signal(signal.SIGTERM)
    else:
        end.signal(signal.SIGSTOP)
        load.knock(5)
        end.signal(signal.SIGTERM)
        end.signal(signal.SIGCONT)
    time.sleep(STAY)  # the drain, while visitors stay
    assert end.process.poll() is None
    load.leave()
    left = time.monotonic()
    assert end.ends(within=5) == 0
    took = time.monotonic() - left
    assert load.cut == []
    figure(f"{load.served} served, none cut, ended {took:.1f} s after the last had left")


@pytest.mark.case("a second SIGTERM under load", deadline=60)
def test_second(stage: Stage, figure: Figure) -> None:
    """It ends at once, whoever is here, and with 0.

    With every signal taken for the first (``process.stop_signals`` always calling ``drain``) it stays for its limit.
    """
    pair = stage.pair(both="shutdown_timeout=300s").up(within=15)
    with contextlib.ExitStack() as leaving:
        visitors = [leaving.enter_context(connect(pair.visitors)) for _ in range(STAYING)]
        for visitor in visitors:
            assert ask(visitor, b"here") == b"here"
        pair.server.signal(signal.SIGTERM)
        pair.server.says("shutting down")
        assert ask(visitors[0], b"still") == b"still"
        began = time.monotonic()
        pair.server.signal(signal.SIGTERM)
        assert pair.server.ends(within=3) == 0
        took = time.monotonic() - began
        assert {ending(visitor) for visitor in visitors} <= {"end", "reset"}
        pair.server.says(f"{STAYING} visitors were cut off")
    figure(f"ended after {took:.2f} s with {STAYING} visitors, 0")
